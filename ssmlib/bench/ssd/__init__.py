"""The suite `ssd`: state space duality and Mamba-2's layer, against public kernels and attention.

`ssd`: forward, and forward with all gradients, at six shapes; `ssd graph`: at three of them,
replayed as a CUDA graph, where launching kernels costs nothing; `ssd decode`: one token.
`mamba-2 block`, `mamba block`: a whole layer.
`state size`, `quadratic`, `crossover`, `crossover decode`: see `ssmlib.bench.ssd.compare`.

Providers: ssmlib; mamba-ssm where it is installed, in the same process. Its kernels are tuned at
full size before they are checked and timed; `ssmlib.bench.ssd.ahead` compiles what they try. Floors
are of four kinds, see `Ceilings.floor`. What a CPU takes is in the suite `ssd_cpu`.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from ssmlib.bench.cell import Cell, Setting, captured, ceiling_row, fill
from ssmlib.bench.ssd import block, compare, peers
from ssmlib.bench.ssd.scans import SHAPES, STEPS, Shape, ssd_cell, step_cell
from ssmlib.bench.table import Row, collect, number, table, text
from ssmlib.bench.timing import ceilings, default_device

PASSES = ("forward", "forward+backward")
BACKENDS = ("flash", "cudnn")
GRAPHS = (SHAPES[0], SHAPES[3], SHAPES[4])  # a large one, and two that a host is slow to launch
TINY = (Shape(2, 33, 4, 16, 2, 4),)
COLUMNS = (
    ("", 16, text("experiment")),
    ("", 30, lambda row: str(row.get("provider") or row.get("form") or "")),
    ("", 16, text("pass")),
    ("b", 4, text("b")),
    ("h", 4, text("h")),
    ("g", 4, text("g")),
    ("t", 6, text("n")),
    ("state", 5, text("state_size")),
    ("ms", 9, number("seconds", 1e3)),
    ("floor ms", 9, number("floor_seconds", 1e3)),
    ("by", 8, text("bound")),
    ("peak MB", 9, number("peak_bytes", 1e-6, ".0f")),
    ("error", 7, number("error", form=".1e")),
    ("", 0, lambda row: "" if row["status"] == "ok" else str(row["status"])),
)


def run(
    quick: bool = False,
    device: str | torch.device | None = None,
    progress: Callable[[str], None] | None = None,
    save: Callable[[Row], None] | None = None,
) -> list[dict[str, Any]]:
    """All rows: the ceilings, then the operations, the layer, and the comparisons.

    quick=True takes tiny sizes. progress is called with a line of text after each row, save with
    the row itself.
    """
    device = default_device(device)
    seconds = (0.0, 0.01) if quick else (0.05, 0.15)
    top = ceilings(device, time_s=2 * seconds[1])
    if device.type == "cuda":
        from ssmlib.bench.rates import with_rates  # needs triton

        top = with_rates(top, device)
    setting = Setting(device, top, *seconds)
    return collect(_rows(setting, quick), COLUMNS, progress, save)


def summary(rows: list[dict[str, Any]]) -> str:
    """The rows as a table, under the ceilings."""
    top, *others = rows
    rates = {"copy": "copy_bytes_per_s", "products": "matmul_flops_per_s"}
    rates |= {"exponentials": "special_per_s", "lanes": "lanes_per_s"}
    told = [f"{name} {top[key] / 1e12:.3f} T/s" for name, key in rates.items() if key in top]
    return f"{', '.join(told)}\n{table(others, COLUMNS)}"


def _rows(setting: Setting, quick: bool) -> Iterator[dict[str, Any]]:
    yield ceiling_row(setting.top)
    for cell in _cells(quick, setting.device):
        yield fill(cell, setting)


def _cells(quick: bool, device: torch.device) -> Iterator[Cell]:
    peer = peers.installed(device)
    if peer and not quick:
        from ssmlib.bench.ssd.ahead import compile_ahead  # needs triton

        compile_ahead()
    for shape in TINY if quick else SHAPES:
        for which in PASSES:
            made = [ssd_cell(shape, which, device)]
            for chunk in peers.CHUNKS if peer else ():
                by, name = partial(peers.scan, chunk=chunk), f"{peer}, chunk {chunk}"
                made.append(_tuned(ssd_cell(shape, which, device, by, provider=name)))
            yield from made
            if device.type == "cuda" and shape in (*GRAPHS, *TINY):
                yield from (captured(cell, experiment="ssd graph") for cell in made)
    for shape in (Shape(2, 1, 4, 16, 2, 4),) if quick else STEPS:
        for provider in filter(None, ("ssmlib", peer)):
            yield step_cell(shape, provider, device)
    size = block.TINY if quick else block.FULL
    for which in PASSES:
        yield block.mamba2_cell(size, "ssmlib", which, device)
        if fused := peers.fused_block(device):
            yield _tuned(block.mamba2_cell(size, fused, which, device))
        yield block.mamba_cell(size, which, device)
    sizes = compare.QUICK if quick else compare.FULL
    backends = list(BACKENDS if device.type == "cuda" else BACKENDS[:1])
    yield from compare.state_cells(sizes, device)
    yield from compare.quadratic_cells(sizes, device)
    yield from compare.crossover_cells(sizes, backends, device)
    yield from compare.decoding_cells(sizes, backends, device)


def _tuned(cell: Cell) -> Cell:
    """The cell, once kernels that choose their form by trying have tried at its full size."""
    with contextlib.suppress(RuntimeError):  # its row will say what it cannot do
        cell.run(*cell.draw(cell.n))
    return cell
