"""The rows of the record `scan` beside their floor, a public kernel, and what we set out for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
SAME = ("experiment", "pass", "b", "d", "n")  # what two rows share that did the same work
FIRST = (8, 4096, 2048)  # b, d, n of the shape whose goal is the highest


@dataclass(frozen=True)
class Verdict:
    """One row of ours. peers: the rows of others for the same work. goal: None where there is none.

    A goal is a number of `times` as fast as every peer, or a `share` of the speed of the floor.
    """

    row: Row
    peers: list[Row]
    kind: str
    goal: float | None

    @property
    def share(self) -> float:
        return self.row["floor_seconds"] / self.row["seconds"]

    @property
    def times(self) -> float | None:
        """How many times as fast as the fastest peer; None without one."""
        least = min((peer["seconds"] for peer in self.peers), default=None)
        return None if least is None else least / self.row["seconds"]

    @property
    def met(self) -> bool | None:
        """Whether the goal was reached; None without a goal, or without the peer it is about."""
        reached = self.times if self.kind == "times" else self.share
        return None if self.goal is None or reached is None else reached >= self.goal

    @property
    def heavier(self) -> bool | None:
        """Whether it held more memory at once than the leanest peer; None if that is not known."""
        held = [peer["peak_bytes"] for peer in self.peers if peer.get("peak_bytes") is not None]
        own = self.row.get("peak_bytes")
        return None if own is None or not held else own > min(held)


def goal(row: Row) -> tuple[str, float | None]:
    """What a row was meant to reach: ("times" or "share", the number)."""
    if row["experiment"] == "selective scan":
        first = (row["b"], row["d"], row["n"]) == FIRST
        return "times", {"forward": (1.5, 2.0), "forward+backward": (2.0, 3.0)}[row["pass"]][first]
    if row["experiment"] == "cpu scan":
        return "times", {"forward": 2.0, "forward+backward": 3.0}[row["pass"]]
    if row["experiment"] == "cpu step":
        return "times", 100.0
    if row["experiment"] == "decode":
        return "share", 0.8 if row["b"] >= 32 else None
    if row["experiment"] in ("linear scan", "causal conv1d"):
        return "share", {"forward": 0.8, "backward": 0.7}[row["pass"]]
    return "share", None


def verdicts(rows: Iterable[Row]) -> list[Verdict]:
    """A verdict on each measured row of this library, in the rows' order."""
    measured = [row for row in rows if row.get("seconds") and row.get("floor_seconds")]
    ours = [row for row in measured if row.get("provider") == "ssmlib"]
    others = [row for row in measured if row.get("provider") not in ("ssmlib", None)]
    return [
        Verdict(row, [o for o in others if all(o.get(k) == row.get(k) for k in SAME)], *goal(row))
        for row in ours
    ]


def shape_of(row: Row) -> str:
    return f"b {row['b']}, d {row['d']:,}, t {row['n']:,}"


def markdown(made: Iterable[Verdict]) -> str:
    """The verdicts as a table in Markdown; under it who the peers are and how many goals were met.

    A goal written as a factor is about the fastest peer, one written as a percentage about the
    floor.
    """
    made = list(made)
    lines = ["| operation | b · d · t | ms | floor, ms | reached | peer, ms | times | goal | |"]
    lines += ["|:--|:--|--:|:--|--:|--:|--:|--:|:--|", *map(_line, made)]
    names = sorted({peer["provider"] for verdict in made for peer in verdict.peers})
    told = [verdict.met for verdict in made if verdict.met is not None]
    heavy = [verdict.heavier for verdict in made if verdict.heavier is not None]
    below = (
        f"Peers: {', '.join(names) or 'none was measured'}. {sum(told)} of {len(told)} goals met."
    )
    if heavy:
        below += f" Peak memory above the peer's in {sum(heavy)} of {len(heavy)} rows."
    return "\n".join([*lines, "", below])


def _line(verdict: Verdict) -> str:
    row, peers = verdict.row, verdict.peers
    aim = {"times": "{:g}×", "share": "{:.0%}"}[verdict.kind]
    cells = [
        f"{row['experiment']}, {row['pass']}",
        f"{row['b']} · {row['d']:,} · {row['n']:,}",
        f"{row['seconds'] * 1e3:.3g}",
        f"{row['floor_seconds'] * 1e3:.3g} {row['bound']}",
        f"{verdict.share:.0%}",
        "–" if not peers else f"{min(peer['seconds'] for peer in peers) * 1e3:.3g}",
        "–" if verdict.times is None else f"{verdict.times:.2f}",
        "–" if verdict.goal is None else aim.format(verdict.goal),
        {True: "met", False: "**missed**", None: ""}[verdict.met],
    ]
    return f"| {' | '.join(cells)} |"
