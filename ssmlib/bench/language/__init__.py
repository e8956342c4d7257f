"""The suite `language_model`: what selection is worth on a text, and what a training step costs.

learn   byte-level models of equal size on the language reference that every Python carries
step    one training step of a Mamba with 130 million parameters, against mamba-ssm's kernels
"""

from collections.abc import Callable
from pathlib import Path

import torch

from ssmlib.bench.language.learn import FULL, TINY, chosen, learn_rows
from ssmlib.bench.language.step import step_rows
from ssmlib.bench.ledger import Ledger, Row
from ssmlib.bench.provenance import provenance
from ssmlib.bench.table import number, table, text
from ssmlib.bench.timing import default_device

__all__ = ["chosen", "learn_rows", "run", "step_rows", "summary"]

COLUMNS = (
    ("", 10, text("row")),
    ("", 18, lambda row: str(row.get("model") or row.get("provider") or "")),
    ("", 5, lambda row: "graph" if row.get("captured") else ""),
    ("parameters", 10, text("parameters")),
    ("lr", 6, number("lr", form="g")),
    ("steps", 5, text("steps")),
    ("seed", 4, text("seed")),
    ("step", 5, text("step")),
    ("train", 6, number("train_bits", form=".3f")),
    ("bits", 6, number("bits", form=".3f")),
    ("carried", 7, number("carried_bits", form=".3f")),
    ("s", 8, number("seconds", form=".4g")),
    ("floor s", 8, number("floor_seconds", form=".3g")),
    ("GB", 6, number("peak_bytes", 1e-9, ".1f")),
    ("", 0, lambda row: "" if row["status"] == "ok" else str(row["status"])),
)


def run(
    quick: bool = False,
    device: str | torch.device | None = None,
    progress: Callable[[str], None] | None = None,
    save: Callable[[Row], None] | None = None,
    keep: Path | None = None,
    seconds: float | None = None,
) -> list[Row]:
    """All rows of the suite; quick=True trains and times tiny sizes, for a few steps each.

    keep: a file of rows that are done, which a later call continues. Nothing new is begun after
    `seconds`: then `OutOfTime` is raised. progress is called with a line of text after each row,
    save with the row.
    """
    device = default_device(device)
    source = provenance("", device)
    where = ", ".join(f"{key} {source[key]}" for key in ("device", "torch", "triton", "ssmlib"))

    def tell(row: Row) -> None:
        if save is not None:
            save(row)
        if progress is not None and row["row"] != "curve":
            progress(table([row], COLUMNS, head=False))

    ledger = Ledger(keep, where, seconds, tell)
    rows = ledger.fill({"experiment": "step"}, lambda: step_rows(device, quick))
    return rows + list(learn_rows(TINY if quick else FULL, ledger, device))


def summary(rows: list[Row]) -> str:
    """The rows as a table, without the curves."""
    return table((row for row in rows if row["row"] != "curve"), COLUMNS)
