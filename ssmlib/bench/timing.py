"""Time and memory of a call, and the two rates that bound every call.

On a GPU a call is timed by events around it, with the L2 cache flushed before: the flush also keeps
the GPU busy while the host queues the call, so that launch gaps stay out of short calls.
"""

import gc
import itertools
import math
import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ssmlib.backends import default_device
from ssmlib.shapes import check_number

FLUSH_BYTES = 2**30


class Timing(NamedTuple):
    """Seconds of one call: the median and the 20th and 80th percentile of `repeats` calls."""

    median: float
    p20: float
    p80: float
    repeats: int


class Ceilings(NamedTuple):
    """What this device does at most, per second: bytes read plus bytes written, and FLOPs.

    special and lanes, where a suite measured them: exponentials, and ordinary instructions of one
    lane (a fused multiply-add is one), by `ssmlib.bench.rates`.
    """

    copy_bytes_per_s: float
    matmul_flops_per_s: float
    dtype: str
    special_per_s: float | None = None
    lanes_per_s: float | None = None

    def floor(
        self, flops: float, n_bytes: float, special: float = 0.0, lanes: float = 0.0
    ) -> tuple[float, str]:
        """The seconds that a call needs at least, and which of its four needs binds."""
        times = {
            "bytes": n_bytes / self.copy_bytes_per_s,
            "flops": flops / self.matmul_flops_per_s,
            "special": special / (self.special_per_s or math.inf),
            "lanes": lanes / (self.lanes_per_s or math.inf),
        }
        bound = max(times, key=times.__getitem__)
        return times[bound], bound


def measure(
    fn: Callable,
    *,
    warmup_s: float = 0.1,
    time_s: float = 0.5,
    device: str | torch.device | None = None,
    inputs: Sequence[tuple] = ((),),
    min_repeats: int = 3,
    max_repeats: int = 1000,
) -> Timing:
    """Time fn(*inputs[i]), taking turns through `inputs`; the plain fn() if there are none.

    Warms up for two calls and at least warmup_s seconds, then repeats for about time_s seconds, at
    least min_repeats and at most max_repeats times. device is where fn works: by default CUDA if
    there is one. What fn returns is dropped. Raises ValueError on an argument out of range.
    """
    check_number(low=0, warmup_s=warmup_s, time_s=time_s)
    check_number(low=2, whole=True, min_repeats=min_repeats)
    check_number(low=min_repeats, whole=True, max_repeats=max_repeats)
    if not callable(fn):
        raise ValueError(f"fn: expected something to call, got {type(fn).__name__}")
    _check_inputs(inputs)
    device, turns = default_device(device), itertools.cycle(inputs)

    def call() -> None:
        fn(*next(turns))

    each = _warm_up(call, warmup_s, device)
    repeats = min(max(math.ceil(time_s / each), min_repeats), max_repeats)
    seconds = (_cuda_times if device.type == "cuda" else _host_times)(call, repeats, device)
    p20, *_, p80 = statistics.quantiles(seconds, n=5, method="inclusive")
    return Timing(statistics.median(seconds), p20, p80, repeats)


def peak_memory(fn: Callable, *, device: str | torch.device | None = None) -> int:
    """Most bytes that fn() holds at once, above what was held before it.

    fn runs twice, because libraries keep a workspace from their first call on. On a CPU the tensors
    that its operations return are counted, but not the scratch inside one operation.
    """
    device = default_device(device)
    fn()
    if device.type != "cuda":
        return _host_peak(fn)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    start = torch.cuda.memory_allocated(device)
    fn()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - start


def ceilings(
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    time_s: float = 0.5,
) -> Ceilings:
    """Measure the device's copy bandwidth and its matrix product rate on random data.

    The copy reads 1 GiB and writes as much on a GPU, 64 MiB on a CPU; the product is square, of
    side 8192 or 512, in `dtype` (by default `working_dtype(device)`).
    """
    device = default_device(device)
    dtype = dtype or working_dtype(device)
    on_gpu = device.type == "cuda"
    n_bytes, side = (2**30, 8192) if on_gpu else (2**26, 512)
    source = torch.randn(n_bytes // 4, device=device)
    pair = [(torch.zeros_like(source), source)]
    copy = measure(torch.Tensor.copy_, time_s=time_s, device=device, inputs=pair)
    del source, pair
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = measure(lambda: a @ b, time_s=time_s, device=device)
    name = str(dtype).removeprefix("torch.")
    return Ceilings(2 * n_bytes / copy.median, 2 * side**3 / product.median, name)


def working_dtype(device: torch.device) -> torch.dtype:
    """What models compute in there: bfloat16, float16 on GPUs older than that, float32 on a CPU."""
    if device.type != "cuda":
        return torch.float32
    has_bfloat16 = torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if has_bfloat16 else torch.float16


def release(device: torch.device) -> None:
    """Give a GPU's memory that nothing holds any more back to it."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def _check_inputs(inputs: Sequence[tuple]) -> None:
    if not isinstance(inputs, Sequence) or isinstance(inputs, str) or len(inputs) == 0:
        kind = type(inputs).__name__
        raise ValueError(f"inputs: expected a list of at least one tuple, got {kind}")
    for i, turn in enumerate(inputs):
        if not isinstance(turn, tuple):
            raise ValueError(f"inputs[{i}]: expected a tuple, got {type(turn).__name__}")


def _warm_up(call: Callable[[], None], warmup_s: float, device: torch.device) -> float:
    """Call, and return the seconds that one call took once the first had compiled and cached."""
    call()
    _wait(device)
    began, runs = time.perf_counter(), 0
    while runs == 0 or time.perf_counter() - began < warmup_s:
        call()
        _wait(device)
        runs += 1
    return max((time.perf_counter() - began) / runs, 1e-9)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cuda_times(call: Callable[[], None], repeats: int, device: torch.device) -> list[float]:
    with torch.cuda.device(device):
        total = torch.cuda.get_device_properties(device).total_memory
        flush = torch.empty(min(FLUSH_BYTES, total // 16), dtype=torch.int8, device=device)
        starts, ends = (
            [torch.cuda.Event(enable_timing=True) for _ in range(repeats)] for _ in range(2)
        )
        for start, end in zip(starts, ends, strict=True):
            flush.zero_()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize(device)
    return [start.elapsed_time(end) / 1e3 for start, end in zip(starts, ends, strict=True)]


def _host_times(call: Callable[[], None], repeats: int, device: torch.device) -> list[float]:
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return seconds


class _Storages(TorchDispatchMode):
    """Counts the bytes of the storages that operations return, for as long as each lives."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self.known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Callable, types: Iterable, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        given = [x.untyped_storage() for x in _tensors((args, kwargs))]
        for storage in (x.untyped_storage() for x in _tensors(out)):
            if storage not in self.known and all(storage is not g for g in given):
                self.known.add(storage)
                self.held += storage.nbytes()
                weakref.finalize(storage, self._let_go, storage.nbytes())
        self.peak = max(self.peak, self.held)
        return out

    def _let_go(self, n_bytes: int) -> None:
        self.held -= n_bytes


def _tensors(tree: object) -> list[torch.Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


def _host_peak(fn: Callable) -> int:
    with _Storages() as storages:
        fn()
    return storages.peak
