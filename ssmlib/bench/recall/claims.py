"""What the rows were to show, and whether they do: each claim with its number, met or missed.

A claim about rows that are not there has no verdict.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from ssmlib.bench.ledger import Row

UNSELECTIVE = "s4d", "h3"  # nothing that they move along time looks at a token


class Verdict(NamedTuple):
    """A claim, our number, and whether it is met; None and None where rows are missing."""

    claim: str
    ours: float | None
    met: bool | None


def verdicts(best: Sequence[Row]) -> list[Verdict]:
    """Every claim, given the rows of `ssmlib.bench.recall.best`."""
    made = []
    for claim, number, holds in CLAIMS:
        try:
            ours = number(best)
        except (StopIteration, ValueError):
            ours = None
        made.append(Verdict(claim, ours, None if ours is None else holds(ours)))
    return made


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """The correlation of ranks, ties sharing theirs. Raises ValueError for fewer than 3 points."""
    if len(x) < 3:
        raise ValueError(f"x: expected 3 points or more, got {len(x)}")
    a, b = _ranks(x), _ranks(y)
    middle = (len(x) - 1) / 2
    both = sum((i - middle) * (j - middle) for i, j in zip(a, b, strict=True))
    own = [sum((i - middle) ** 2 for i in ranks) for ranks in (a, b)]
    return both / (own[0] * own[1]) ** 0.5 if min(own) else 0.0


def frontier(best: Sequence[Row], mixer: str, window: bool = False) -> list[tuple[int, float]]:
    """A family at the pareto course: bytes of state, and accuracy averaged over the tests."""
    course = next(row["course"] for row in best if row["experiment"] == "pareto")
    points: dict[tuple, list[Row]] = {}
    for row in best:
        own = row["mixer"] == mixer and row["variant"].startswith("window=") == window
        if row["experiment"] in ("mqar", "pareto") and row["course"] == course and own:
            points.setdefault((row["variant"], row["d_model"]), []).append(row)
    return sorted(
        (rows[0]["state_bytes"], sum(row["accuracy"] for row in rows) / len(rows))
        for rows in points.values()
    )


def _ranks(values: Sequence[float]) -> list[float]:
    below = [sum(other < value for other in values) for value in values]
    alike = [sum(other == value for other in values) for value in values]
    return [low + (many - 1) / 2 for low, many in zip(below, alike, strict=True)]


def _pick(best: Sequence[Row], experiment: str, **wanted: object) -> Iterator[Row]:
    wanted |= {"experiment": experiment}
    return (row for row in best if wanted.items() <= row.items())


def _one(best: Sequence[Row], key: str, experiment: str, **wanted: object) -> float:
    return next(_pick(best, experiment, **wanted))[key]


def _attention(best: Sequence[Row]) -> float:
    return min(r["accuracy"] for r in _pick(best, "mqar", mixer="attention", variant=""))


def _agree(best: Sequence[Row], vary: str, sign: int = 1) -> float:
    """Of all pairs of cells that differ in one thing alone, the share that is ordered as said."""
    rows = [row for mixer in UNSELECTIVE for row in _pick(best, "mqar", mixer=mixer, test=0)]
    kept = ("mixer", "d_model" if vary == "length" else "length")
    pairs = [
        (a["accuracy"], b["accuracy"])
        for a in rows
        for b in rows
        if all(a[key] == b[key] for key in kept) and a[vary] < b[vary]
    ]
    if not pairs:
        raise ValueError("no pairs")
    return sum((b - a) * sign > 0 for a, b in pairs) / len(pairs)


def _expansion(best: Sequence[Row]) -> float:
    """The best n = 256 among the cells in which n = 16 has at most .65."""
    small, large = (
        {
            (row["course"], row["d_model"]): row["accuracy"]
            for row in _pick(best, "mqar", mixer="mamba2", variant=n, test=0)
        }
        for n in ("n=16", "n=256")
    )
    return max(large[cell] for cell, share in small.items() if share <= 0.65 and cell in large)


def _rank_correlation(best: Sequence[Row], mixer: str, window: bool) -> float:
    """Shares that agree to a hundredth tie: their order is that of the seeds."""
    points = frontier(best, mixer, window)
    return spearman([size for size, _ in points], [round(share, 2) for _, share in points])


def _samples(best: Sequence[Row]) -> float:
    """Steps until Mamba copies .9 over those of the better attention; at least, if it never did."""
    theirs = next(_pick(best, "copying", mixer="mamba", test=0))
    ours = [r["steps_to_90"] for r in _pick(best, "copying", mixer="attention", test=0)]
    reached = [steps for steps in ours if steps is not None]
    return (theirs["steps_to_90"] or theirs["budget"]) / min(reached)


def _cure(best: Sequence[Row]) -> float:
    base = _one(best, "accuracy", "joint", mixer="mamba2", d_model=64)
    return _one(best, "accuracy", "joint", mixer="beside", variant="sparse=hax") - base


def _passkey(variant: str, mixer: str, test: int) -> Callable[[Sequence[Row]], float]:
    def share(best: Sequence[Row]) -> float:
        return _one(best, "exact", "passkey", mixer=mixer, variant=variant, test=test)

    return share


def _below(best: Sequence[Row]) -> float:
    pure = _passkey("n=64 times=2", "mamba2", 1)(best)
    return pure - _passkey("n=64 times=2", "hybrid", 1)(best)


def _is_1(x: float) -> bool:
    return x == 1


CLAIMS: tuple[tuple[str, Callable[[Sequence[Row]], float], Callable[[float], bool]], ...] = (
    ("attention answers .99 in every cell of mqar", _attention, lambda x: x >= 0.99),
    (
        "S4D and H3 rise with width",
        lambda b: _agree(b, "d_model", 1),
        lambda x: x == 1,
    ),
    ("and fall with length", lambda b: _agree(b, "length", -1), lambda x: x == 1),
    *(
        (
            f"{name}: recall rises with bytes of state, Spearman > .9",
            partial(_rank_correlation, mixer=mixer, window=window),
            lambda x: x > 0.9,
        )
        for name, mixer, window in (
            ("Mamba-2", "mamba2", False),
            ("Mamba", "mamba", False),
            ("sliding window", "attention", True),
            ("linear attention", "linear_attention", False),
        )
    ),
    ("Mamba-2 answers .9 with n = 256 where n = 16 has .65", _expansion, lambda x: x >= 0.9),
    ("copying takes Mamba ten times attention's samples", _samples, lambda x: x >= 10),
    (
        "Mamba copies at most .05 of strings twice as long",
        lambda b: _one(b, "exact", "copying", mixer="mamba", test=2),
        lambda x: x <= 0.05,
    ),
    (
        "with the letters given first Mamba finds .95",
        lambda b: _one(b, "exact", "lookup", mixer="mamba", course="prefix", test=0),
        lambda x: x >= 0.95,
    ),
    (
        "with the letters given last, at most .20",
        lambda b: _one(b, "exact", "lookup", mixer="mamba", course="suffix", test=0),
        lambda x: x <= 0.2,
    ),
    ("hashed and selected keys help Mamba-2 in joint recall", _cure, lambda x: x > 0),
    (
        "passkeys: .99 of all at the trained length",
        lambda b: min(row["exact"] for row in _pick(b, "passkey", test=0)),
        lambda x: x >= 0.99,
    ),
    (
        "a rotary transformer finds at most .05 at twice that",
        _passkey("positions=rotary times=2", "transformer", 1),
        lambda x: x <= 0.05,
    ),
    (
        "Mamba-2 finds more there, and less than .99",
        _passkey("n=64 times=2", "mamba2", 1),
        lambda x: 0.05 < x < 0.99,
    ),
    ("and this much more than with full attention in it", _below, lambda x: x > 0),
    (
        "with windowed attention it finds .95 at eight times the length",
        _passkey("n=64 times=2 window=32", "hybrid", 3),
        lambda x: x >= 0.95,
    ),
)
