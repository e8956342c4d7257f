"""The suite `longrange`: small models trained on tasks with a long memory (chapter 04).

    memory     delay and reconstruct: frozen linear systems, their floors and what training reaches
    classify   digits and listops: starts of S4D, and S4D against attention

The full sizes are for a GPU, and `python -m ssmlib.bench.longrange --out DIR` does them in as many
calls as it takes. `rows(experiment, "small")` trains for seconds to minutes on one CPU thread.
"""

from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

import torch

from ssmlib.bench.ledger import Ledger, OutOfTime, Row
from ssmlib.bench.longrange import classify, memory
from ssmlib.bench.provenance import provenance
from ssmlib.bench.table import number, table, text
from ssmlib.bench.timing import default_device

__all__ = ["EXPERIMENTS", "Ledger", "OutOfTime", "rows", "run", "summary"]

EXPERIMENTS = ("delay", "reconstruct", "digits", "listops")
COLUMNS = (
    ("", 11, text("experiment")),
    ("", 7, text("row")),
    ("", 9, lambda row: str(row.get("system") or row.get("layer") or "")),
    ("", 8, text("init")),
    ("", 7, text("memory")),
    ("dt", 9, number("dt", form=".3g")),
    ("lr", 6, number("lr", form="g")),
    ("seed", 4, text("seed")),
    ("floor", 6, number("floor", form=".3f")),
    ("error", 6, number("relative", form=".3f")),
    ("right", 6, number("test_accuracy", form=".1%")),
    ("s", 6, number("seconds", form=".1f")),
    ("", 0, lambda row: "" if row["status"] == "ok" else str(row["status"])),
)


def rows(
    experiment: str,
    size: str = "full",
    device: str | torch.device | None = None,
    ledger: Ledger | None = None,
    only: Container[tuple[str, ...]] | None = None,
) -> Iterator[Row]:
    """Train one of EXPERIMENTS, and yield its rows as they come.

    size: "full" for a GPU, "small" for a CPU, "tiny" to see that it runs. only: some of the systems
    (("legs",), ...) or layers (see `classify.rows`). Raises ValueError for another name, and
    OutOfTime where the ledger says so.
    """
    known = memory.SIZES | classify.SIZES
    if experiment not in known:
        raise ValueError(f"experiment: expected one of {', '.join(known)}, got {experiment!r}")
    if size not in known[experiment]:
        raise ValueError(f"size: expected one of {', '.join(known[experiment])}, got {size!r}")
    module = memory if experiment in memory.SIZES else classify
    ledger = Ledger(None, "") if ledger is None else ledger
    yield from module.rows(
        experiment, known[experiment][size], ledger, default_device(device), only
    )


def run(
    quick: bool = False,
    device: str | torch.device | None = None,
    progress: Callable[[str], None] | None = None,
    keep: Path | None = None,
    seconds: float | None = None,
    only: Container[str] = EXPERIMENTS,
) -> list[Row]:
    """All rows of the suite; quick=True trains the tiny sizes, for four steps each.

    keep: a file of rows that are done, which a later call continues. Nothing new is begun after
    `seconds`: then OutOfTime is raised. only: some of EXPERIMENTS. progress is called with a line
    of text after each row.
    """
    device = default_device(device)
    source = provenance("", device)
    where = ", ".join(f"{key} {source[key]}" for key in ("device", "torch", "triton", "ssmlib"))

    def tell(row: dict[str, Any]) -> None:
        if progress is not None:
            progress(table([row], COLUMNS, head=False))

    ledger = Ledger(keep, where, seconds, tell)
    size = "tiny" if quick else "full"
    wanted = [name for name in EXPERIMENTS if name in only]
    return [row for name in wanted for row in rows(name, size, device, ledger)]


def summary(rows: list[Row]) -> str:
    """The rows as a table."""
    return table(rows, COLUMNS)
