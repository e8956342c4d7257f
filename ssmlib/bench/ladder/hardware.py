"""What a multiprocessor keeps near, and what it costs to ask for a launch. CUDA only."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmlib.bench.cell import Setting
from ssmlib.bench.ladder.rungs import FORMS, Shape, inputs, labels
from ssmlib.bench.timing import measure

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


def footprints(setting: Setting, quick: bool) -> Iterator[dict[str, Any]]:
    """Rows of `footprint`: one program of 1,024 threads on each multiprocessor.

    form "own": each reads bytes of its own, "same": all of them read the same ones.
    """
    device = setting.device
    programs = torch.cuda.get_device_properties(device).multi_processor_count
    kilobytes = [32, 64] if quick else [32 * 2**k for k in range(10)] + [96, 160, 192, 384]
    out = torch.empty(programs * LANES, device=device)
    x = torch.ones(programs * 256 * max(kilobytes), device=device)
    for form in ("own", "same"):
        for bytes_each in (1024 * k for k in sorted(kilobytes)):
            size, rounds = bytes_each // 4, max(2, (2 if quick else 64) * 2**20 // bytes_each)
            sizes = (size, size if form == "own" else 0, rounds)

            def reread(sizes: tuple[int, ...] = sizes) -> None:
                reread_kernel[(programs,)](x, out, *sizes, LANES=LANES, num_warps=32)

            seconds = measure(reread, time_s=setting.time_s / 4, device=device).median
            right = bool((out == size // LANES * rounds).all().item())
            yield labels("footprint", form, None, None, torch.float32) | {
                "bytes_each": bytes_each,
                "seconds": seconds,
                "bytes_per_s": bytes_each * programs * rounds / seconds,
                "status": "ok" if right else "wrong: the sum is not that of the numbers",
            }


def launches(setting: Setting, shape: Shape) -> Iterator[dict[str, Any]]:
    """Rows of `launch`: seconds of one call in a row of many, the host included."""
    A = -torch.arange(1.0, shape.n + 1, device=setting.device).repeat(shape.d, 1)
    t = 64
    while t <= shape.t:
        drawn = inputs(shape._replace(t=t), torch.bfloat16, setting.device)
        for form in ("loop", "library"):

            def call(form: str = form, drawn: tuple[Tensor, ...] = drawn) -> None:
                x, dt, B, C = drawn
                FORMS[form](x, dt, A, B, C)

            for how, timed in (("each", call), ("graph", _captured(call))):
                yield labels("launch", form, how, t, torch.bfloat16) | {
                    "seconds": _in_a_row(timed),
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


def _in_a_row(call: Callable[[], None], least_s: float = 0.05) -> float:
    """Seconds a call, the least of three rows of as many calls as fill least_s."""
    call()
    torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    torch.cuda.synchronize()
    calls = max(3, int(least_s / (time.perf_counter() - began)))
    rows = []
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
        rows.append((time.perf_counter() - began) / calls)
    return min(rows)
