"""One measurement of a suite, from its prediction to its row.

What it must cost is counted first: what cannot fit is not allocated, what would take minutes is not
started, and what is wrong is not timed. The row's "status" says which, and is "ok" otherwise.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ssmlib.bench.timing import Ceilings, measure, peak_memory, release

TOLERANCE = {"bfloat16": 2e-2, "float16": 5e-3, "float32": 1e-4}
SLOWER = 4  # a call is expected to take at most as many times its floor


@dataclass(frozen=True)
class Setting:
    """Where and how long: the device, its ceilings, and the seconds that one cell may take."""

    device: torch.device
    top: Ceilings
    warmup_s: float = 0.1
    time_s: float = 0.5
    limit_s: float = 120.0


@dataclass(frozen=True)
class Cell:
    """What to run, at which size, and what it costs at the least.

    labels: the row's first columns. draw(size): inputs, batch first, at length `size`. run(*inputs)
    and truth(*inputs) give the same tensors, batch first; truth gets the batch's last member in
    float64, at the length check_at. needs: bytes without which run cannot work, inputs included.
    special, lanes: exponentials and other instructions of one lane, where those may bind. graph:
    see `captured`; its memory is not that of a call, and is not measured.
    """

    labels: dict[str, Any]
    flops: int
    n_bytes: int
    needs: int
    n: int
    check_at: int
    draw: Callable[[int], tuple[Tensor, ...]]
    run: Callable[..., tuple[Tensor, ...]]
    truth: Callable[..., tuple[Tensor, ...]]
    special: int = 0
    lanes: int = 0
    graph: bool = False


def captured(cell: Cell, **labels: Any) -> Cell:
    """The same work replayed as a CUDA graph, where launching kernels takes the host no time.

    The first call with its inputs is made as it is: it is the one that is checked. On a CPU, all.
    """
    held: list = [None, None]  # the inputs seen last, and the graph of them with what it writes

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        if held[0] is not inputs[0] or not inputs[0].is_cuda:
            held[:] = inputs[0], None
            return cell.run(*inputs)
        if held[1] is None:
            held[1] = _capture(cell.run, inputs)
        graph, made = held[1]
        graph.replay()
        return made

    return replace(cell, labels=cell.labels | labels, run=run, graph=True)


def _capture(
    run: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...]
) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is allocated once, and compiled, is so before
        for _ in range(2):
            run(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = run(*inputs)
    return graph, made


def fill(cell: Cell, setting: Setting) -> dict[str, Any]:
    """The cell's row: its costs and floor, and the measurement if it could be made.

    Columns: seconds, p20, p80, repeats, peak_bytes (above the inputs), flops, bytes, special,
    floor_seconds, bound (see `Ceilings.floor`), error (relative, at length checked_at) and status.
    """
    floor, bound = setting.top.floor(cell.flops, cell.n_bytes, cell.special, cell.lanes)
    measured = dict.fromkeys(("seconds", "p20", "p80", "repeats", "peak_bytes", "error"))
    counted = {"flops": cell.flops, "bytes": cell.n_bytes, "special": cell.special}
    counted |= {"floor_seconds": floor, "bound": bound}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            release(setting.device)
            status = _refusal(cell, floor, setting) or _measure(cell, setting, measured)
        except torch.OutOfMemoryError:
            status = "out of memory"
        except RuntimeError as error:  # a backend that cannot run these inputs says so this way
            status = f"unavailable: {_reason(error, [str(w.message) for w in told])}"
    return cell.labels | measured | counted | {"checked_at": cell.check_at, "status": status}


def ceiling_row(top: Ceilings) -> dict[str, Any]:
    """The device's ceilings, as a row beside the others."""
    known = {name: value for name, value in top._asdict().items() if value is not None}
    return {"experiment": "ceilings", **known, "status": "ok"}


def relative_error(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """The largest ‖got − want‖ / ‖want‖ over the tensors, in float64; NaN if anything is."""
    pairs = [(g.detach().double(), w.detach().double()) for g, w in zip(got, want, strict=True)]
    errors = torch.stack([(g - w).norm() / w.norm() for g, w in pairs])
    return errors.max().item()  # max carries a NaN


def _refusal(cell: Cell, floor: float, setting: Setting) -> str | None:
    if setting.device.type == "cuda" and cell.needs > torch.cuda.mem_get_info(setting.device)[0]:
        return f"skipped: would need {cell.needs / 1e9:.0f} GB"
    calls = 8  # two to warm up, three to time, two for the memory, one to check
    expected = SLOWER * calls * floor
    if expected > setting.limit_s:
        return f"skipped: would take about {expected:.0f} s"
    return None


def _reason(error: RuntimeError, told: list[str]) -> str:
    """The error; where it says only that no kernel is left, the warning before it, with the why."""
    reasons = [str(error).strip()]
    if "No available kernel" in reasons[0]:
        vague = ("kernel not used because", "runtime disabled")
        reasons = [text for text in told if not any(v in text for v in vague)] + reasons
    return reasons[0].splitlines()[0].split(" (Triggered")[0][:100]


def _measure(cell: Cell, setting: Setting, measured: dict[str, Any]) -> str:
    inputs = cell.draw(cell.check_at)
    got = [y[-1:] for y in cell.run(*inputs)]
    last = [x[-1:].detach().double().requires_grad_(x.requires_grad) for x in inputs]
    measured["error"] = error = relative_error(got, cell.truth(*last))
    del got, last
    if not error <= TOLERANCE[cell.labels["dtype"]]:
        return f"wrong: relative error {error:.1e}"
    if cell.check_at != cell.n:
        inputs = cell.draw(cell.n)
    release(setting.device)
    timing = measure(
        cell.run,
        warmup_s=setting.warmup_s,
        time_s=setting.time_s,
        device=setting.device,
        inputs=[inputs],
    )
    measured |= {"seconds": timing.median, "p20": timing.p20, "p80": timing.p80}
    measured |= {"repeats": timing.repeats}
    if not (cell.graph and setting.device.type == "cuda"):
        measured |= {"peak_bytes": peak_memory(lambda: cell.run(*inputs), device=setting.device)}
    return "ok"
