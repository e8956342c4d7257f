"""The suite `scan`: the selective scan and what stands around it, against the public kernels.

`selective scan`: forward, and forward with all gradients, at five shapes; `decode`: one token;
`copied state`: the same bytes as a token's, copied.
`linear scan`, `causal conv1d`: forward and backward, which only move bytes.

What a CPU takes is in the suite `scan_cpu`.

Providers: ssmlib; mamba-ssm and causal-conv1d where they are installed, in the same process, each
given its inputs in the layout that it likes best. Floors are of four kinds, see `Ceilings.floor`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from ssmlib.bench.cell import Cell, Setting, ceiling_row, fill
from ssmlib.bench.scan.movers import conv_cell, scan_cell
from ssmlib.bench.scan.peers import installed
from ssmlib.bench.scan.selective import (
    SHAPES,
    STEPS,
    Shape,
    copied_state_cell,
    selective_cell,
    step_cell,
)
from ssmlib.bench.table import Row, collect, number, table, text
from ssmlib.bench.timing import ceilings, default_device

MOVED = Shape(b=8, d=4096, t=4096, n=1)
COLUMNS = (
    ("", 14, text("experiment")),
    ("provider", 22, text("provider")),
    ("", 16, text("pass")),
    ("b", 4, text("b")),
    ("d", 5, text("d")),
    ("t", 7, text("n")),
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
    """All rows: the ceilings, then the operations.

    quick=True takes tiny sizes. progress is called with a line of text after each row, save with
    the row itself.
    """
    device = default_device(device)
    seconds = (0.0, 0.02) if quick else (0.1, 0.4)
    top = ceilings(device, time_s=seconds[1])
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
    for cell in _cells(setting, quick):
        yield fill(cell, setting)


def _cells(setting: Setting, quick: bool) -> Iterator[Cell]:
    device = setting.device
    peers = installed(device)
    for shape in [Shape(2, 8, 33, 4)] if quick else SHAPES:
        for provider in ("ssmlib", *(p for p in peers if p.startswith("mamba-ssm"))):
            for which in ("forward", "forward+backward"):
                yield selective_cell(shape, provider, which, device)
    moved = Shape(2, 8, 33, 1) if quick else MOVED
    for which in ("forward", "backward"):
        yield scan_cell(moved, which, device)
    for provider in ("ssmlib", *(p for p in peers if p.startswith("causal-conv1d"))):
        for which in ("forward", "backward"):
            yield conv_cell(moved, provider, which, device)
    for shape in [Shape(2, 8, 1, 4)] if quick else STEPS:
        for provider in ("ssmlib", *(p for p in peers if p.startswith("mamba-ssm"))):
            yield step_cell(shape, provider, device)
        yield copied_state_cell(shape, device)
