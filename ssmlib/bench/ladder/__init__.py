"""The suite `ladder`: the rungs of chapter 06 on a GPU, and what makes the steps between them.

`rung`: one selective scan, forward, from a loop of launches to the library's kernel.
`footprint`: how fast a multiprocessor reads again what it has read before, by how much that is.
`launch`: short sequences, each launch asked for by the host, or replayed from a graph.
`crossover`: the scan and causal attention at as many tokens, cut into sequences of length n.
"""

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch

from ssmlib.backends import interpreting
from ssmlib.bench.cell import Setting, ceiling_row, fill
from ssmlib.bench.ladder.crossover import crossover_cell
from ssmlib.bench.ladder.hardware import footprints, launches
from ssmlib.bench.ladder.rungs import CALLS, FORMS, Shape, moved, rung_cell
from ssmlib.bench.table import number, table, text
from ssmlib.bench.timing import ceilings, default_device

COLUMNS = (
    ("", 9, text("experiment")),
    ("form", 12, text("form")),
    ("", 16, text("pass")),
    ("n", 6, text("n")),
    ("bytes each", 10, text("bytes_each")),
    ("ms", 9, number("seconds", 1e3)),
    ("floor ms", 9, number("floor_seconds", 1e3)),
    ("TB/s", 7, number("bytes_per_s", 1e-12, ".3f")),
    ("peak MB", 9, number("peak_bytes", 1e-6, ".0f")),
    ("error", 7, number("error", form=".1e")),
    ("", 0, lambda row: "" if row["status"] == "ok" else str(row["status"])),
)
PARTS = ("rung", "footprint", "launch", "crossover")
RUNG = Shape(8, 4096, 2048, 16)
LAUNCH = Shape(1, 1536, 2048, 16)
TOKENS, WIDTH = 65536, 1024  # of a crossover: tokens in all, and the model's width


def run(
    quick: bool = False,
    device: str | torch.device | None = None,
    progress: Callable[[str], None] | None = None,
    parts: Collection[str] = PARTS,
) -> list[dict[str, Any]]:
    """The ceilings, and the rows of these parts of the suite. quick=True takes tiny sizes.

    progress is called with a line of text after each row.
    """
    device = default_device(device)
    seconds = (0.0, 0.01) if quick else (0.05, 0.2)
    setting = Setting(device, ceilings(device, time_s=seconds[1]), *seconds)
    rows = [ceiling_row(setting.top)]
    for row in _rows(setting, quick, parts):
        rows.append(row)
        if progress is not None:
            progress(table([row], COLUMNS, head=False))
    return rows


def summary(rows: list[dict[str, Any]]) -> str:
    """The rows as a table, under the copy bandwidth."""
    top, *others = rows
    return f"copy {top['copy_bytes_per_s'] / 1e12:.3f} TB/s\n{table(others, COLUMNS)}"


def _rows(setting: Setting, quick: bool, parts: Collection[str]) -> Iterator[dict[str, Any]]:
    on_gpu = setting.device.type == "cuda"
    if "rung" in parts:
        shape = Shape(2, 8, 16, 4) if quick else RUNG
        plain = ("loop", "doubling", "library")
        for form in (f for f in FORMS if on_gpu or interpreting() or f in plain):
            yield fill(rung_cell(shape, form, setting.device), setting)
    if "footprint" in parts and on_gpu:
        yield from footprints(setting, quick)
    if "launch" in parts and on_gpu:
        yield from launches(setting, Shape(1, 64, 64, 4) if quick else LAUNCH)
    if "crossover" in parts:
        tokens, width, n = (64, 16, 16) if quick else (TOKENS, WIDTH, 512)
        while n <= tokens:
            for form in ("scan", "attention"):
                for which in ("forward", "forward+backward"):
                    cell = crossover_cell(tokens, width, n, form, which, setting.device)
                    yield fill(cell, setting)
            n *= 2


__all__ = ["CALLS", "FORMS", "RUNG", "Shape", "moved", "run", "summary"]
