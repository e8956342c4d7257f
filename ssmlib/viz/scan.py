"""The figure of chapter 06: a scan, round by round."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from ssmlib.shapes import check_number
from ssmlib.viz.host import Figure
from ssmlib.viz.stills import COLOUR, LARGE, SMALL

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Still

Rounds = list[list[tuple[int, int]]]
LENGTHS = (2, 4, 8, 16, 32)


def scan_tree(
    schedules: Mapping[str, Callable[[int], Rounds]],
    length: int = 8,
    lengths: Sequence[int] = LENGTHS,
    follow: int = 0,
) -> Figure:
    """Which entries of a scan are combined in which round, for every schedule and length.

    schedules: names, and functions from a length to rounds of pairs (i, j). In a round, all at
    once, entry j becomes entry i combined with entry j. The figure starts with the first schedule
    and with `length`. follow: the entry, counted from 1, whose making is marked; 0 for none.
    Raises ValueError for a schedule that is no scan, and says in which round it goes wrong.
    """
    if not schedules:
        raise ValueError("schedules: expected at least one, got none")
    check_number(low=1, whole=True, length=length)
    if length not in lengths:
        raise ValueError(f"length: expected one of {', '.join(map(str, lengths))}, got {length}")
    check_number(low=0, high=length, whole=True, follow=follow)
    rounds = {name: {n: make(n) for n in lengths} for name, make in schedules.items()}
    for name, made in rounds.items():
        for n in lengths:
            check_scan(made[n], n, name)
    first = next(iter(rounds))
    shown = rounds[first][length]
    work = sum(map(len, shown))
    return Figure(
        name="scan_tree",
        data={
            "algorithm": first,
            "length": length,
            "lengths": list(lengths),
            "follow": follow,
            "rounds": rounds,
        },
        alt=(
            f"{first}, on {length} entries: {work} combinations, drawn as lines from one row of"
            f" dots to the next, in {len(shown)} rounds."
        ),
        caption=(
            "Choose an algorithm and step through its rounds. A line leads from each entry that is"
            " read to the entry that takes it in, and all lines of a round are drawn at once. The"
            " triangle shows which inputs an entry has taken in; a scan is done when it is full."
            " Then follow one entry back to its inputs, and compare rounds and combinations."
        ),
        draw=partial(_still, shown, length, first, follow),
    )


def check_scan(rounds: Rounds, n: int, name: str = "schedule") -> None:
    """Raise ValueError unless these rounds leave every entry with all inputs up to its own."""
    first = list(range(n))
    for r, pairs in enumerate(rounds, start=1):
        told = f"schedules[{name!r}], {n} entries, round {r}"
        after = list(first)
        if len({j for _, j in pairs}) < len(pairs):
            raise ValueError(f"{told}: two pairs write the same entry")
        for i, j in pairs:
            if not 0 <= i < j < n:
                raise ValueError(f"{told}: expected 0 <= i < j < {n}, got the pair ({i}, {j})")
            if i != first[j] - 1:
                raise ValueError(
                    f"{told}: ({i}, {j}) joins inputs {first[i]} to {i} with {first[j]} to {j},"
                    " which do not meet"
                )
            after[j] = first[i]
        first = after
    wrong = [j for j in range(n) if first[j]]
    if wrong:
        j = wrong[0]
        raise ValueError(
            f"schedules[{name!r}], {n} entries: expected entry {j} to end with inputs 0 to {j},"
            f" got {first[j]} to {j}"
        )


def _still(rounds: Rounds, n: int, name: str, follow: int) -> "Still":
    from matplotlib.figure import Figure as Still

    still = Still(figsize=(6.6, 3.4), facecolor=COLOUR["paper"], layout="constrained")
    ax = still.subplots()
    for j in range(n):
        ax.plot([j, j], [0, -len(rounds)], color=COLOUR["line"], lw=0.8)
    wanted = {follow - 1}
    for r in reversed(range(len(rounds))):
        for i, j in rounds[r]:
            leads = j in wanted and follow
            if leads:
                wanted.add(i)
            ax.plot([i, j], [-r, -r - 1], color=COLOUR["input" if leads else "state"],
                    lw=2.4 if leads else 1.2)  # fmt: skip
            ax.plot([j], [-r - 1], "o", ms=5, color=COLOUR["state"])
    for j in range(n if n <= 32 else 0):
        ax.text(j, 0.25, f"$x_{{{j + 1}}}$", ha="center", fontsize=SMALL, color=COLOUR["input"])
        ax.text(j, -len(rounds) - 0.4, f"$h_{{{j + 1}}}$", ha="center", va="top", fontsize=SMALL,
                color=COLOUR["state"])  # fmt: skip
    told = f"{name}: {sum(map(len, rounds))} combinations in {len(rounds)} rounds"
    ax.set_title(told, fontsize=LARGE, color=COLOUR["ink"])
    ax.set(ylim=(-len(rounds) - 1, 0.8))
    ax.axis("off")
    return still
