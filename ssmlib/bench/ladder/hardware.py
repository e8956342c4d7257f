"""What a processor keeps near, and what it costs to ask for a launch."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmlib.bench.cell import Setting
from ssmlib.bench.ladder.rungs import FORMS, Shape, inputs, labels
from ssmlib.bench.timing import measure, working_dtype

LANES = 8192  # numbers that a program of `reread_kernel` reads at once


@triton.jit
def reread_kernel(x_ptr, out_ptr, size, apart, rounds, LANES: tl.constexpr):
    """Every program reads `size` numbers, `rounds` times, and adds them up.

    Those of one program begin `apart` numbers after those of the one before it.
    """
    program = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    total = tl.zeros((LANES,), tl.float32)
    for _ in range(rounds):
        for start in range(0, size, LANES):
            total += tl.load(x_ptr + program * apart + start + lane)
    tl.store(out_ptr + program * LANES + lane, total)


def footprints(setting: Setting, kilobytes: int) -> Iterator[dict[str, Any]]:
    """Rows of `footprint`: the same bytes read again and again, 32 kB to `kilobytes` of them.

    On a GPU by one program of 1,024 threads on each multiprocessor; form "own": each reads bytes of
    its own, "same": all of them read the same ones. On a CPU by one thread.
    """
    on_gpu = setting.device.type == "cuda"
    sizes = [32 * 2**k for k in range((kilobytes // 32).bit_length())]
    if on_gpu and kilobytes > 384:
        sizes += [96, 160, 192, 384]  # where a multiprocessor's own memory ends
    for form in ("own", "same") if on_gpu else ("own",):
        for bytes_each in (1024 * k for k in sorted(sizes)):
            reread = _on_gpu if on_gpu else _on_cpu
            rate, right = reread(setting, bytes_each, form)
            yield labels("footprint", form, None, None, torch.float32) | {
                "bytes_each": bytes_each,
                "bytes_per_s": rate,
                "status": "ok" if right else "wrong: the sum is not that of the numbers",
            }


def _on_gpu(setting: Setting, bytes_each: int, form: str) -> tuple[float, bool]:
    programs = torch.cuda.get_device_properties(setting.device).multi_processor_count
    size, rounds = bytes_each // 4, max(2, 64 * 2**20 // bytes_each)
    apart = size if form == "own" else 0
    out = torch.empty(programs * LANES, device=setting.device)
    x = torch.ones(size + apart * (programs - 1), device=setting.device)

    def reread() -> None:
        reread_kernel[(programs,)](x, out, size, apart, rounds, LANES=LANES, num_warps=32)

    seconds = measure(reread, time_s=setting.time_s / 4, device=setting.device).median
    right = bool((out == size // LANES * rounds).all().item())
    return bytes_each * programs * rounds / seconds, right


def _on_cpu(setting: Setting, bytes_each: int, form: str) -> tuple[float, bool]:
    size, rounds = bytes_each // 4, max(2, 32 * 2**20 // bytes_each)
    x = torch.ones(size).expand(rounds, size)  # each row is the same memory
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = measure(lambda: x.sum(1), time_s=setting.time_s, device="cpu").p20
    finally:
        torch.set_num_threads(threads)
    return bytes_each * rounds / seconds, bool((x.sum(1) == size).all())


def launches(setting: Setting, shape: Shape) -> Iterator[dict[str, Any]]:
    """Rows of `launch`: seconds of one call in a row of many, the host included.

    pass "each": asked for call by call; "graph", on a GPU: replayed from a recorded graph.
    """
    A = -torch.arange(1.0, shape.n + 1, device=setting.device).repeat(shape.d, 1)
    t = 64
    while t <= shape.t:
        drawn = inputs(shape._replace(t=t), working_dtype(setting.device), setting.device)
        for form in ("loop", "library"):

            def call(form: str = form, drawn: tuple[Tensor, ...] = drawn) -> None:
                x, dt, B, C = drawn
                FORMS[form](x, dt, A, B, C)

            ways = {"each": call}
            if setting.device.type == "cuda":
                ways["graph"] = _captured(call)
            for how, timed in ways.items():
                yield labels("launch", form, how, t, drawn[0].dtype) | {
                    "seconds": _in_a_row(timed, setting.time_s / 4),
                    "status": "ok",
                }
        t *= 2


def _captured(call: Callable[[], None]) -> Callable[[], None]:
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def _in_a_row(call: Callable[[], None], least_s: float) -> float:
    """Seconds a call, the least of three rows of as many calls as fill least_s."""
    call()
    _wait()
    began = time.perf_counter()
    call()
    _wait()
    calls = max(3, int(least_s / (time.perf_counter() - began)))
    rows = []
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(calls):
            call()
        _wait()
        rows.append((time.perf_counter() - began) / calls)
    return min(rows)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
