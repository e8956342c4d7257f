"""The suite `ladder`: the rungs of chapter 06 on a GPU, and what makes the steps between them.

`rung`: one selective scan, forward, from a loop of launches to the library's kernel.
`footprint`: how fast a multiprocessor reads again what it has read before, by how much that is.
`launch`: short sequences, each launch asked for by the host, or replayed from a graph.
`crossover`: the scan and causal attention at as many tokens, cut into sequences of length n.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple

import torch

from ssmlib.backends import interpreting
from ssmlib.bench.cell import Setting, ceiling_row, fill
from ssmlib.bench.ladder.crossover import crossover_cell
from ssmlib.bench.ladder.hardware import footprints, launches
from ssmlib.bench.ladder.rungs import CALLS, FORMS, Shape, moved, rung_cell
from ssmlib.bench.table import Row, collect, number, table, text
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
PLAIN = ("loop", "doubling", "library")  # the forms that are PyTorch on a CPU


class Sizes(NamedTuple):
    """Of the rungs and the launches the shape; how far footprints go; tokens of a crossover in all.

    width: of the crossover's model; shortest: its first length of a sequence.
    """

    rung: Shape
    launch: Shape
    kilobytes: int
    tokens: int
    width: int
    shortest: int


RUNG = Shape(8, 4096, 2048, 16)
FULL = Sizes(RUNG, Shape(1, 1536, 2048, 16), 16384, tokens=65536, width=1024, shortest=512)
QUICK = Sizes(Shape(2, 8, 16, 4), Shape(1, 64, 128, 4), 64, tokens=64, width=16, shortest=16)
LAPTOP = Sizes(Shape(1, 256, 256, 16), Shape(1, 64, 512, 16), 65536, tokens=0, width=0, shortest=1)


def run(
    quick: bool = False,
    device: str | torch.device | None = None,
    progress: Callable[[str], None] | None = None,
    save: Callable[[Row], None] | None = None,
    parts: Collection[str] = PARTS,
) -> list[dict[str, Any]]:
    """The ceilings, and the rows of these parts of the suite. quick=True takes tiny sizes.

    progress is called with a line of text after each row, save with the row itself.
    """
    device = default_device(device)
    seconds = (0.0, 0.01) if quick else (0.05, 0.2)
    setting = Setting(device, ceilings(device, time_s=seconds[1]), *seconds)
    forms = list(FORMS) if device.type == "cuda" or interpreting() else list(PLAIN)
    rows = itertools.chain(
        [ceiling_row(setting.top)], _rows(setting, QUICK if quick else FULL, forms, parts)
    )
    return collect(rows, COLUMNS, progress, save)


def here(device: str | torch.device | None = None) -> list[dict[str, Any]]:
    """The rows of the suite for this machine: in full on a GPU, at a laptop's size on a CPU.

    On a CPU it uses one thread, and there is no crossover: one long sequence
    leaves the scan there little to do side by side.
    """
    device = default_device(device)
    if device.type == "cuda":
        return run(device=device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # operations this small would wait for a second one
    try:
        setting = Setting(device, ceilings(device, time_s=0.05), 0.0, 0.03)
        return [ceiling_row(setting.top), *_rows(setting, LAPTOP, PLAIN, PARTS[:3])]
    finally:
        torch.set_num_threads(threads)


def summary(rows: list[dict[str, Any]]) -> str:
    """The rows as a table, under the copy bandwidth."""
    top, *others = rows
    return f"copy {top['copy_bytes_per_s'] / 1e12:.3f} TB/s\n{table(others, COLUMNS)}"


def _rows(
    setting: Setting, sizes: Sizes, forms: Iterable[str], parts: Collection[str]
) -> Iterator[dict[str, Any]]:
    if "rung" in parts:
        for form in forms:
            yield fill(rung_cell(sizes.rung, form, setting.device), setting)
    if "footprint" in parts:
        yield from footprints(setting, sizes.kilobytes)
    if "launch" in parts:
        yield from launches(setting, sizes.launch)
    if "crossover" in parts:
        n = sizes.shortest
        while n <= sizes.tokens:
            for form in ("scan", "attention"):
                for which in ("forward", "forward+backward"):
                    args = (sizes.tokens, sizes.width, n, form, which, setting.device)
                    yield fill(crossover_cell(*args), setting)
            n *= 2


__all__ = ["CALLS", "FORMS", "RUNG", "Shape", "here", "moved", "run", "summary"]
