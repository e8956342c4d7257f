"""Rows of runs, and of each case one row: mean, interval, what was tried, what is published."""

import itertools
import math
from collections.abc import Iterable, Sequence
from statistics import mean, stdev
from typing import Any

from ssmlib.bench.ledger import Row
from ssmlib.bench.recall.claims import verdicts
from ssmlib.bench.recall.published import published
from ssmlib.bench.table import number, table, text

NAMES = ("experiment", "course", "mixer", "variant", "d_model")
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 % of Student's t, by number of seeds
COLUMNS = (
    ("", 8, text("experiment")),
    ("", 9, text("course")),
    ("", 16, text("mixer")),
    ("", 22, text("variant")),
    ("d", 4, text("d_model")),
    ("lr", 6, number("lr", form="g")),
    ("lrs", 3, text("lrs")),
    ("seeds", 5, text("seeds")),
    ("steps", 5, number("steps", form=".0f")),
    ("bytes", 8, text("state_bytes")),
    ("tested", 44, text("tested")),
    ("right", 6, number("accuracy", form=".1%")),
    ("low", 6, number("low", form=".1%")),
    ("high", 6, number("high", form=".1%")),
    ("whole", 6, number("exact", form=".1%")),
    ("told", 6, number("published", form=".1%")),
)
PROGRESS = (
    *COLUMNS[:6],
    ("", 4, text("seed")),
    *COLUMNS[8:12],
    ("s", 6, number("seconds", form=".2f")),
    ("", 0, lambda row: "" if row["status"] == "ok" else str(row["status"])),
)


def best(rows: Iterable[Row]) -> list[Row]:
    """A row per case and tested setting: the mean over the seeds at the best learning rate.

    That is, of the rates with the most seeds, the one with the best mean on the first test. lrs:
    how many were tried; seeds: how many are averaged. accuracy, low, high: the mean and, from two
    seeds on, its 95 % interval by Student's t, cut at 0 and 1; worst: the least; exact, steps,
    seconds, steps_to_90: means, the last None if any is. diverged: how many runs did, at any rate.
    published, source: see `published`.
    """
    ordered = in_order(row for row in rows if row["experiment"] != "throughput")
    made = []
    for names, group in itertools.groupby(ordered, key=_names):
        runs = list(group)
        tried: dict[float, list[float]] = {}
        for row in runs:
            if row["test"] == 0:
                tried.setdefault(row["lr"], []).append(row["accuracy"])
        lr = max(tried, key=lambda lr: (len(tried[lr]), mean(tried[lr])))
        kept = sorted((row for row in runs if row["lr"] == lr), key=lambda row: row["test"])
        lost = {(row["lr"], row["seed"]) for row in runs if row["status"] == "diverged"}
        known = {"lr": lr, "lrs": len(tried), "diverged": len(lost)}
        for _, some in itertools.groupby(kept, key=lambda row: row["test"]):
            made.append(dict(zip(NAMES, names, strict=True)) | known | _averaged(list(some)))
    return made


def by_case(rows: Iterable[Row], experiment: str, key: str) -> dict[tuple[str, ...], list[float]]:
    """Course, mixer, variant and d_model of each case, to its means of `key` in all its tests."""
    cases: dict[tuple[str, ...], list[float]] = {}
    for row in best(row for row in rows if row["experiment"] == experiment):
        cases.setdefault(tuple(str(row[name]) for name in NAMES[1:]), []).append(row[key])
    return cases


def lines_of(cases: dict[tuple[str, ...], list[float]]) -> str:
    """What `by_case` found, a line a case, in percent."""
    width = max(len(" ".join(case)) for case in cases)
    return "\n".join(
        " ".join([f"{' '.join(case):>{width}}", *(f"{share:>6.1%}" for share in shares)])
        for case, shares in cases.items()
    )


def in_order(rows: Iterable[Row]) -> list[Row]:
    """Rows by experiment and case, rate, seed and test."""
    return sorted(rows, key=lambda row: (*map(str, _names(row)[:4]), *_place(row)))


def summary(rows: Sequence[Row]) -> str:
    """What came out best of each case, and what training side by side is worth."""
    averaged = best(rows)
    lines = [
        f"{row['way']:>9}  {row['models']} models  {row['model_steps_per_second']:.0f} steps/s"
        f"  {row['speedup']:.2f}x"
        for row in rows
        if row["experiment"] == "throughput"
    ]
    lines += [
        f"{'met' if found.met else 'missed':>9}  {found.ours:8.3g}  {found.claim}"
        for found in verdicts(averaged)
        if found.met is not None
    ]
    return "\n".join([table(averaged, COLUMNS), *lines])


def progress_line(row: Row) -> str:
    """A row of a run, or of the throughput, in a line."""
    if row["experiment"] == "throughput":
        return f"throughput, {row['way']}: {row['model_steps_per_second']:.0f} steps/s"
    return table([row], PROGRESS, head=False)


def interval(shares: Sequence[float]) -> tuple[float | None, float | None]:
    """The 95 % interval of the mean of 2 to 5 shares; (None, None) for one, which tells nothing."""
    k = len(shares)
    if k == 1:
        return None, None
    if k not in STUDENT:
        raise ValueError(f"shares: expected 1 to {max(STUDENT)} of them, got {k}")
    half = STUDENT[k] * stdev(shares) / math.sqrt(k)
    return max(0.0, mean(shares) - half), min(1.0, mean(shares) + half)


def command_of(row: Row) -> str:
    """The command that trains the cell of a row."""
    options = [f"--{part.replace('=', ' ')}" for part in row["variant"].split()]
    cell = (row["experiment"], "--course", row["course"], "--mixer", row["mixer"])
    return " ".join(["python -m ssmlib.recall", *cell, "--d", str(row["d_model"]), *options])


def _averaged(rows: Sequence[Row]) -> dict[str, Any]:
    shares = [row["accuracy"] for row in rows]
    low, high = interval(shares)
    same = ("test", "task", "trained", "tested", "length", "chance", "batch", "budget")
    same += ("state_bytes", "parameters")
    one = {key: rows[0][key] for key in same} | {"seeds": len(rows)}
    one |= {"accuracy": mean(shares), "low": low, "high": high, "worst": min(shares)}
    one |= {key: mean(row[key] for row in rows) for key in ("exact", "steps", "seconds")}
    reached = [row["steps_to_90"] for row in rows]
    one |= {"steps_to_90": None if None in reached else mean(reached)}
    near = published({key: rows[0][key] for key in NAMES} | one)
    return one | {"published": near and near[0], "source": near and near[1]}


def _names(row: Row) -> tuple:
    return tuple(row.get(key) for key in NAMES)


def _place(row: Row) -> tuple:
    return tuple(row.get(key) or 0 for key in ("d_model", "lr", "seed", "test"))
