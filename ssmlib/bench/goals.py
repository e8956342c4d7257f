"""Rows of the speed records beside their floor, a public kernel, and what we set out for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

Row = Mapping[str, Any]
# what two rows share that did the same work
SAME = ("experiment", "pass", "b", "d", "n", "h", "g", "state_size", "threads")


class Goal(NamedTuple):
    """A number of `times` as fast as every peer, or a `share` of the speed of the floor.

    least: the number, None where there is none. memory: the most of the leanest peer's peak that
    may be held, None where that is no goal.
    """

    kind: str = "share"
    least: float | None = None
    memory: float | None = None


FIRST = (8, 4096, 2048)  # b, d, n of the selective scan whose goal is the highest
SCAN = {"forward": (1.5, 2.0), "forward+backward": (2.0, 3.0)}  # other shapes, the first one
MOVED = {"forward": 0.8, "backward": 0.7}
SSD = {  # b, n, h, g, state_size: times forward, and with backward
    (8, 4096, 64, 1, 128): (3.0, 3.0),
    (4, 8192, 80, 1, 128): (2.3, 2.5),
    (1, 65536, 64, 1, 128): (1.8, 2.0),
    (8, 2048, 24, 1, 128): (4.5, 4.0),
    (16, 2048, 64, 8, 64): (2.0, 2.0),
    (1, 1024, 128, 1, 128): (3.0, None),
}
HALF_THE_MEMORY = (8, 4096, 64, 1, 128)
PLAIN = {
    ("cpu scan", "forward"): Goal("times", 2.0),
    ("cpu scan", "forward+backward"): Goal("times", 3.0),
    ("cpu model", "training step"): Goal("times", 100.0),
    ("cpu mamba-2", "training step"): Goal("times", 1.5),
    ("cpu generation", "greedy"): Goal("times", 2.0),
    ("mamba-2 block", "forward+backward"): Goal("times", 1.5),
}


@dataclass(frozen=True)
class Verdict:
    """One row of ours. peers: the rows of others for the same work."""

    row: Row
    peers: list[Row]
    aim: Goal

    @property
    def share(self) -> float | None:
        """How much of the speed of its floor it has; None for a row without one."""
        floor = self.row.get("floor_seconds")
        return None if floor is None else floor / self.row["seconds"]

    @property
    def times(self) -> float | None:
        """How many times as fast as the fastest peer; None without one."""
        least = min((peer["seconds"] for peer in self.peers), default=None)
        return None if least is None else least / self.row["seconds"]

    @property
    def memory(self) -> float | None:
        """Its peak memory as a share of the leanest peer's; None if that is not known."""
        held = [peer["peak_bytes"] for peer in self.peers if peer.get("peak_bytes")]
        own = self.row.get("peak_bytes")
        return None if own is None or not held else own / min(held)

    @property
    def met(self) -> bool | None:
        """Whether the goal was reached; None without a goal, or without what it is about."""
        reached = self.times if self.aim.kind == "times" else self.share
        most = self.aim.memory
        if self.aim.least is None or reached is None or (most and self.memory is None):
            return None
        return reached >= self.aim.least and (most is None or self.memory <= most)


def goal(row: Row) -> Goal:
    """What a row was meant to reach."""
    experiment, which = row["experiment"], row["pass"]
    if experiment == "selective scan":
        return Goal("times", SCAN[which][(row["b"], row["d"], row["n"]) == FIRST])
    if experiment == "ssd":
        shape = tuple(row[key] for key in ("b", "n", "h", "g", "state_size"))
        least = SSD.get(shape, (None, None))[which != "forward"]
        return Goal("times", least, 0.5 if shape == HALF_THE_MEMORY else None)
    if experiment == "decode":
        return Goal("share", 0.8 if row["b"] >= 32 else None)
    if experiment == "ssd decode":
        return Goal("share", 0.9 if row["b"] >= 64 else None)
    if experiment in ("linear scan", "causal conv1d"):
        return Goal("share", MOVED[which])
    return PLAIN.get((experiment, which), Goal())


def verdicts(rows: Iterable[Row]) -> list[Verdict]:
    """A verdict on each measured row of this library, in the rows' order."""
    measured = [row for row in rows if row.get("seconds")]
    ours = [row for row in measured if row.get("provider") == "ssmlib"]
    others = [row for row in measured if row.get("provider") not in ("ssmlib", None)]
    return [
        Verdict(row, [o for o in others if all(o.get(k) == row.get(k) for k in SAME)], goal(row))
        for row in ours
    ]


def shape_of(row: Row) -> str:
    heads = f" = {row['h']} × {row['d'] // row['h']}" if row.get("h") else ""
    return f"b {row['b']}, d {row['d']:,}{heads}, t {row['n']:,}"


def markdown(made: Iterable[Verdict]) -> str:
    """The verdicts as a table in Markdown; under it who the peers are and how many goals were met.

    A goal written as a factor is about the fastest peer, one written as a percentage about the
    floor. Memory is the peak beside the leanest peer's.
    """
    made = list(made)
    heads = ("operation", "b · d · t", "ms", "floor, ms", "reached", "peer, ms", "times")
    lines = [f"| {' | '.join(heads)} | memory | goal |"]
    lines += ["|:--|:--|--:|:--|--:|--:|--:|--:|:--|", *map(_line, made)]
    names = sorted({peer["provider"] for verdict in made for peer in verdict.peers})
    told = [verdict.met for verdict in made if verdict.met is not None]
    heavy = [verdict.memory > 1 for verdict in made if verdict.memory is not None]
    below = (
        f"Peers: {', '.join(names) or 'none was measured'}. {sum(told)} of {len(told)} goals met."
    )
    if heavy:
        below += f" Peak memory above the peer's in {sum(heavy)} of {len(heavy)} rows."
    return "\n".join([*lines, "", below])


def _line(verdict: Verdict) -> str:
    row, peers, aim = verdict.row, verdict.peers, verdict.aim
    shown = {"times": "{:g}×", "share": "{:.0%}"}[aim.kind]
    asked = "–" if aim.least is None else shown.format(aim.least)
    asked = asked if aim.memory is None else f"{asked}, memory ≤ {aim.memory:g}"
    told = {True: "met", False: "**missed**", None: ""}[verdict.met]
    share = verdict.share
    cells = [
        f"{row['experiment']}, {row['pass']}".replace("+", " + "),  # where a line may break
        f"{row['b']} · {row['d']:,} · {row['n']:,}",
        f"{row['seconds'] * 1e3:.3g}",
        "–" if share is None else f"{row['floor_seconds'] * 1e3:.3g} {row['bound']}",
        "–" if share is None else _reached(verdict),
        "–" if not peers else f"{min(peer['seconds'] for peer in peers) * 1e3:.3g}",
        "–" if verdict.times is None else f"{verdict.times:.2f}",
        "–" if verdict.memory is None else f"{verdict.memory:.2f}",
        f"{asked} {told}".strip(),
    ]
    return f"| {' | '.join(cells)} |"


def _reached(verdict: Verdict) -> str:
    """The share of the floor; with a decimal where it would look like the goal that it misses."""
    shown, aim = f"{verdict.share:.0%}", verdict.aim
    looks = aim.kind == "share" and aim.least is not None and shown == f"{aim.least:.0%}"
    return f"{verdict.share:.1%}" if looks and not verdict.met else shown
