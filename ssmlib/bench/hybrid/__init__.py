"""The suite `hybrid`: how many layers must attend, and which (experiment 13, chapter 08).

    stream      what is learned: a text, recall and copying in turns
    cases       the models and their sizes
    fit         some of them, trained side by side; learning rates and seeds
    published   what others report

`run_size("small")` takes two layers and a few minutes on a CPU thread.
"""

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from ssmlib.bench.hybrid.cases import PLACES, SIZES, Case, Size, cases_of, pattern_of
from ssmlib.bench.hybrid.fit import sweep
from ssmlib.bench.ledger import Ledger, OutOfTime, Row
from ssmlib.bench.provenance import provenance
from ssmlib.bench.table import number, table, text
from ssmlib.bench.timing import default_device

__all__ = [
    "PLACES",
    "SIZES",
    "Case",
    "OutOfTime",
    "Size",
    "best",
    "cases_of",
    "pattern_of",
    "rows_on_file",
    "run",
    "run_size",
    "share_of_the_first",
    "summary",
]

COLUMNS = (
    ("attention", 9, text("attention")),
    ("place", 7, text("place")),
    ("positions", 9, text("positions")),
    ("lr", 6, number("lr", form="g")),
    ("seeds", 5, text("seeds")),
    ("loss", 6, number("loss", form=".3f")),
    ("text", 6, number("text_loss", form=".3f")),
    ("recall", 6, number("recall_accuracy", form=".1%")),
    ("copy", 6, number("copy_accuracy", form=".1%")),
)
PROGRESS = (
    *COLUMNS[:4],
    ("seed", 4, text("seed")),
    *COLUMNS[5:],
    ("s", 6, number("seconds", form=".1f")),
    ("", 0, lambda row: "" if row["status"] == "ok" else str(row["status"])),
)


def run(
    quick: bool = False,
    device: str | torch.device | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Row]:
    """All rows at full size; quick=True trains the tiny sizes, for three steps each."""
    return run_size("tiny" if quick else "full", device, progress, together=1 if quick else 9)


def run_size(
    size: str,
    device: str | torch.device | None = None,
    progress: Callable[[str], None] | None = None,
    keep: Path | None = None,
    seconds: float | None = None,
    together: int = 1,
) -> list[Row]:
    """All rows at one of SIZES.

    keep: a file of rows that are done, which a later call continues. Nothing new is begun after
    `seconds`: then OutOfTime is raised. together: models trained side by side. progress is called
    with a line of text after each row. Raises ValueError for another size.
    """
    if size not in SIZES:
        raise ValueError(f"size: expected one of {', '.join(SIZES)}, got {size!r}")
    device, chosen = default_device(device), SIZES[size]

    def tell(row: dict[str, Any]) -> None:
        if progress is not None:
            progress(table([row], PROGRESS, head=False))

    ledger = Ledger(keep, _where(device), seconds, tell)
    return sorted(sweep(list(cases_of(chosen)), chosen, ledger, str(device), together), key=_place)


def rows_on_file(keep: Path, device: str | torch.device | None = None) -> list[Row]:
    """What calls of `run_size` with this file have measured so far."""
    return sorted(Ledger(keep, _where(default_device(device))).rows, key=_place)


def best(rows: Iterable[Row]) -> list[Row]:
    """A row per case: means over the seeds at the rate where seed 0 had the least mean loss."""
    chosen = []
    for name, group in itertools.groupby(sorted(rows, key=_place), key=_name):
        runs = [row for row in group if row["status"] == "ok"]
        if not runs:
            continue
        lr = min((row for row in runs if row["seed"] == 0), key=lambda row: row["loss"])["lr"]
        kept = [row for row in runs if row["lr"] == lr]
        names = dict(zip(("attention", "place", "positions"), name, strict=True))
        shares = [k for k in kept[0] if k.endswith(("loss", "accuracy"))]
        means = {key: mean(row[key] for row in kept) for key in shares}
        chosen.append(names | {"lr": lr, "seeds": len(kept)} | means)
    return chosen


def share_of_the_first(found: Iterable[Row]) -> float:
    """Of the gain in mean loss from no attention to its best number: the first layer's part.

    found: rows of `best`; the best place counts, for one layer as for more. Raises ValueError where
    more attention gained nothing.
    """
    least: dict[int, float] = {}
    for row in found:
        n = row["attention"]
        least[n] = min(row["loss"], least.get(n, row["loss"]))
    gain = least[0] - min(least.values())
    if gain <= 0:
        raise ValueError("found: expected a gain from attention, got none")
    return (least[0] - least[1]) / gain


def summary(rows: list[Row]) -> str:
    """What came out best of each case."""
    return table(best(rows), COLUMNS)


def _where(device: torch.device) -> str:
    source = provenance("", device)
    return ", ".join(f"{key} {source[key]}" for key in ("device", "torch", "triton", "ssmlib"))


def _name(row: Row) -> tuple:
    return row["attention"], row["place"], row["positions"]


def _place(row: Row) -> tuple:
    return (*_name(row), row["lr"], row["seed"])
