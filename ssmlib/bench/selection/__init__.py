"""The suite `selection`: what a layer gains when B, C and dt depend on the input (chapter 05).

    selective_copying   experiment 5: three systems in three wrappers, and Mamba piece by piece
    induction           experiment 6: Mamba against attention, far beyond the trained length

    cases       what is trained, at which sizes
    wrappers    the layers of the grid
    fit         some of them, trained side by side
    sweep       learning rates and seeds
    published   what the paper reports

`rows(experiment, "small")` trains for a minute or two on one CPU thread.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from ssmlib.bench.ledger import Ledger, OutOfTime, Row
from ssmlib.bench.provenance import provenance
from ssmlib.bench.selection.cases import EXPERIMENTS, SIZES, cases_of
from ssmlib.bench.selection.published import published_share
from ssmlib.bench.selection.sweep import sweep_all
from ssmlib.bench.table import number, table, text
from ssmlib.bench.timing import default_device

__all__ = [
    "EXPERIMENTS",
    "Ledger",
    "OutOfTime",
    "best",
    "published_share",
    "rows",
    "rows_on_file",
    "run",
    "run_size",
    "summary",
]

NAMES = ("experiment", "part", "layer", "variant")
COLUMNS = (
    ("", 17, text("experiment")),
    ("", 9, text("layer")),
    ("", 12, text("variant")),
    ("lr", 6, number("lr", form="g")),
    ("lrs", 3, text("lrs")),
    ("seeds", 5, text("seeds")),
    ("length", 7, text("length")),
    ("right", 6, number("accuracy", form=".1%")),
    ("worst", 6, number("worst", form=".1%")),
    ("paper", 6, number("published", form=".1%")),
)
PROGRESS = (
    *COLUMNS[:4],
    ("seed", 4, text("seed")),
    *COLUMNS[6:8],
    ("loss", 6, number("loss", form=".3f")),
    ("s", 6, number("seconds", form=".1f")),
    ("", 0, lambda row: "" if row["status"] == "ok" else str(row["status"])),
)


def rows(
    experiment: str,
    size: str = "full",
    device: str | torch.device | None = None,
    ledger: Ledger | None = None,
    only: Container[tuple[str, str]] | None = None,
    together: int = 1,
) -> Iterator[Row]:
    """Train the cases of one of EXPERIMENTS, and yield a row per run and tested length.

    size: "full" for a GPU, "small" for a CPU, "tiny" to see that it runs. only: some of the cases,
    as (layer, variant). together: how many are trained side by side, see `fit`.
    Raises ValueError for another name, and OutOfTime where the ledger says so.
    """
    if experiment not in SIZES:
        raise ValueError(f"experiment: expected one of {', '.join(SIZES)}, got {experiment!r}")
    if size not in SIZES[experiment]:
        known = ", ".join(SIZES[experiment])
        raise ValueError(f"size: expected one of {known}, got {size!r}")
    chosen = SIZES[experiment][size]
    wanted = [
        case
        for case in cases_of(experiment, chosen)
        if only is None or (case.layer, case.variant) in only
    ]
    ledger = Ledger(None, "") if ledger is None else ledger
    yield from sweep_all(wanted, chosen, ledger, str(default_device(device)), together)


def run(
    quick: bool = False,
    device: str | torch.device | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Row]:
    """All rows of the suite at full size; quick=True trains the tiny sizes, for four steps each."""
    return run_size("tiny" if quick else "full", device, progress, together=1 if quick else 9)


def run_size(
    size: str,
    device: str | torch.device | None = None,
    progress: Callable[[str], None] | None = None,
    keep: Path | None = None,
    seconds: float | None = None,
    only: Container[str] = EXPERIMENTS,
    together: int = 1,
) -> list[Row]:
    """All rows of the suite at one of its sizes, see `rows`.

    keep: a file of rows that are done, which a later call continues. Nothing new is begun after
    `seconds`: then OutOfTime is raised. only: some of EXPERIMENTS. together: see `rows`. progress
    is called with a line of text after each row.
    """
    device = default_device(device)

    def tell(row: dict[str, Any]) -> None:
        if progress is not None:
            progress(table([row], PROGRESS, head=False))

    ledger = Ledger(keep, _where(device), seconds, tell)
    found = [
        list(rows(name, size, device, ledger, together=together))
        for name in EXPERIMENTS
        if name in only
    ]
    return [row for each in found for row in sorted(each, key=_place)]


def rows_on_file(keep: Path, device: str | torch.device | None = None) -> list[Row]:
    """What a call of `run_size` with this file has measured so far."""
    return sorted(Ledger(keep, _where(default_device(device))).rows, key=_place)


def best(rows: Iterable[Row]) -> list[Row]:
    """A row per case and length: the mean over the seeds at the learning rate that did best.

    lrs: how many were tried. seeds: how many were averaged. accuracy, worst: their mean and their
    least. published: see `published_share`. The first seed at the trained length decides; the
    shortest length that is there, where rows were picked out and that is not among them.
    """
    chosen = []
    ordered = sorted(rows, key=_place)
    for names, group in itertools.groupby(ordered, key=lambda row: [row[key] for key in NAMES]):
        runs = list(group)
        lengths, trained = {row["length"] for row in runs}, runs[0]["train_length"]
        decisive = trained if trained in lengths else min(lengths)
        decide = [row for row in runs if row["length"] == decisive]
        tried = Counter(row["lr"] for row in decide)
        seed = min(row["seed"] for row in decide)
        first = {row["lr"]: row["accuracy"] for row in decide if row["seed"] == seed}
        lr = max(first, key=lambda lr: (first[lr], tried[lr]))  # of equals, the one gone on with
        kept = [row for row in runs if row["lr"] == lr]
        for length in sorted({row["length"] for row in kept}):
            each = [row["accuracy"] for row in kept if row["length"] == length]
            told = published_share(names[0], *names[2:], trained, length)
            chosen.append(
                dict(zip(NAMES, names, strict=True))
                | {"lr": lr, "lrs": len(first), "seeds": len(each), "length": length}
                | {"accuracy": mean(each), "worst": min(each), "published": told}
            )
    return chosen


def summary(rows: list[Row]) -> str:
    """What came out best of each case, beside what was published: a table for each experiment."""
    parts = itertools.groupby(best(rows), key=lambda row: row["experiment"])
    return "\n".join(f"{name}\n{table(list(part), COLUMNS[1:])}" for name, part in parts)


def _where(device: torch.device) -> str:
    source = provenance("", device)
    return ", ".join(f"{key} {source[key]}" for key in ("device", "torch", "triton", "ssmlib"))


def _place(row: Row) -> tuple:
    return tuple(row[key] for key in (*NAMES, "lr", "seed", "length"))
