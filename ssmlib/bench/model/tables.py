"""Rows of the suite `model` as tables: all of them, and by length, by batch, at the largest one."""

from collections.abc import Callable, Iterable
from typing import Any

from ssmlib.bench.model.decode import ROOM
from ssmlib.bench.table import Row, number, table, text

COLUMNS = (
    ("", 10, text("experiment")),
    ("", 24, text("provider")),
    ("b", 5, text("b")),
    ("n", 8, text("n")),
    ("ms", 10, number("seconds", 1e3)),
    ("floor ms", 10, number("floor_seconds", 1e3)),
    ("by", 6, text("bound")),
    ("tokens/s", 10, number("tokens_per_s", form=".0f")),
    ("with prompt", 11, number("total_tokens_per_s", form=".0f")),
    ("state MB", 9, number("state_bytes", 1e-6, ".1f")),
    ("peak MB", 9, number("peak_bytes", 1e-6, ".0f")),
    ("", 0, lambda row: "" if row["status"] == "ok" else str(row["status"])),
)
STEPS = (
    COLUMNS[2],
    COLUMNS[4],
    ("of floor", 8, lambda row: f"{share_of_floor(row):.0%}"),
    *COLUMNS[7:9],
)
LENGTHS = (
    (
        "seconds to the first token, and of the floor's speed",
        "prefill",
        lambda row: f"{row['seconds']:.3g} {share_of_floor(row):4.0%}",
    ),
    (
        "milliseconds of one more token, and of the floor's speed",
        "decode",
        lambda row: f"{row['seconds'] * 1e3:.3g} {share_of_floor(row):4.0%}",
    ),
    (
        "MB above the weights while a prompt is read, at most",
        "prefill",
        lambda row: f"{row['peak_bytes'] / 1e6:.0f}" if row["peak_bytes"] else "",
    ),
)
AGAINST = {"transformer, MHA": "of MHA", "transformer": "of GQA"}


def share_of_floor(row: Row) -> float:
    """How much of its floor's speed a row has.

    A row without cache_bytes is of a time when room for ROOM more tokens was counted as read, and
    twice: that is taken off its floor of bytes again. Its weights were in half precision.
    """
    floor = row["floor_seconds"]
    if row["bound"] == "bytes" and "cache_bytes" not in row:
        cached = 2 * (row["parameters"] + row["state_bytes"]) - row["bytes"]
        floor *= 1 - 2 * cached * ROOM / row["n"] / row["bytes"]
    return floor / row["seconds"]


def summary(rows: list[dict[str, Any]]) -> str:
    """The rows as a table, under the ceilings."""
    top, *others = rows
    copy, product = top["copy_bytes_per_s"] / 1e12, top["matmul_flops_per_s"] / 1e12
    head = f"copy {copy:.3f} TB/s, {top['dtype']} matrix product {product:.1f} TFLOP/s"
    return f"{head}\n{table(others, COLUMNS)}"


def by_length(rows: list[dict[str, Any]]) -> str:
    """A column for each model: reading a prompt, a token after so many, and a prompt's memory."""
    return "\n\n".join(
        f"{title}\n{_table([row for row in rows if row['experiment'] == experiment], cell)}"
        for title, experiment, cell in LENGTHS
    )


def by_batch(rows: list[dict[str, Any]]) -> str:
    """The rows of one more token after 2K others, by batch: time, share of the floor's speed."""
    found = _batches(rows)
    return f"one more token, by batch\n{table(found, [_names(found), *STEPS])}"


def largest(rows: list[dict[str, Any]]) -> str:
    """Each model's largest batch: tokens a second, and how many times those of both Transformers.

    Of making tokens alone, and with the time that reading the prompts took.
    """
    most = {row["provider"]: row for row in _batches(rows) if "total_tokens_per_s" in row}
    columns = [_names(most.values()), COLUMNS[2]]
    for column, key in ((COLUMNS[7], "tokens_per_s"), (COLUMNS[8], "total_tokens_per_s")):
        columns += [column, *(_times(key, most[name], head) for name, head in AGAINST.items())]
    return f"the largest batches beside the Transformers'\n{table(most.values(), columns)}"


def _batches(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["experiment"] == "throughput" and row["status"] == "ok"]


def _names(rows: Iterable[Row]) -> tuple[str, int, Callable[[Row], str]]:
    return "", max(len(row["provider"]) for row in rows), text("provider")


def _times(key: str, other: Row, head: str) -> tuple[str, int, Callable[[Row], str]]:
    return head, 8, lambda row: f"{row[key] / other[key]:.2f}"


def _table(rows: list[Row], cell: Callable[[Row], str]) -> str:
    lines: dict[int, dict[str, str]] = {}
    for row in rows:
        told = cell(row) if row["status"] == "ok" else row["status"].split(":")[0]
        lines.setdefault(row["n"], {"n": f"{row['n']:,}"})[row["provider"]] = told
    names = dict.fromkeys(row["provider"] for row in rows)
    return table(lines.values(), [("tokens", 9, text("n")), *((n, 13, text(n)) for n in names)])
