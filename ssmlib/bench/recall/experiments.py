"""Which cases there are, experiment by experiment, at each size.

mqar      mixers by width and length
pareto    more of each family at one length, for recall against bytes of state
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from ssmlib.bench.recall.cases import Case, Course
from ssmlib.bench.recall.models import model_of

MIXTURE = (16, 8, 4)  # tokens of a sequence for each pair in it


@dataclass(frozen=True)
class Size:
    """How much of it: see the fields of `Course`, and the functions below for the others."""

    lengths: tuple[int, ...]
    widths: tuple[int, ...]
    vocab: int
    steps: int
    lrs: tuple[float, ...]
    seeds: int
    batch: int = 48
    sequences: int = 512


MQAR = {
    "full": Size((64, 128, 256), (32, 64, 128), 512, 2000, (3e-3, 1e-3, 1e-2), 3),
    "tiny": Size((16,), (8,), 32, 4, (1e-2, 1e-3), 2, 6, 8),
}
VARIANTS: tuple[tuple[str, dict[str, int]], ...] = (
    ("attention", {}),
    ("mamba2", {"n": 16}),
    ("mamba2", {"n": 64}),
    ("mamba2", {"n": 256}),
    ("s4d", {}),
    ("h3", {}),
    ("mamba", {}),
    ("linear_attention", {}),
    ("window", {"window": 16}),
    ("hybrid", {}),
)


def _mqar(size: Size) -> Iterator[Case]:
    for (mixer, options), length, d in product(VARIANTS, size.lengths, size.widths):
        yield mqar_case("mqar", mixer, length, d, size, **options)


def _pareto(size: Size) -> Iterator[Case]:
    length = size.lengths[len(size.lengths) // 2]
    taken = [(mixer, options) for mixer, options in VARIANTS]
    more = [("mamba2", {"n": n}) for n in (4, 8, 32, 128)]
    more += [("mamba", {"n": n}) for n in (4, 8, 32, 64)]
    more += [("window", {"window": w}) for w in (4, 8, 32, 64)]
    more += [("linear_attention", {"features": f}) for f in (4, 8, 24)]
    for (mixer, options), d in product(more, size.widths):
        if (mixer, options) not in taken:
            yield mqar_case("pareto", mixer, length, d, size, **options)


def mqar_case(experiment: str, mixer: str, length: int, d: int, size: Size, **options: Any) -> Case:
    """Trained on sequences with few, more and length / 4 pairs; asked about each, most first."""
    settings = tuple(
        {"length": length, "pairs": length // each, "vocab": size.vocab, "filler": "zero"}
        for each in MIXTURE
    )
    course = Course(
        "mqar",
        settings,
        settings[::-1],
        length // min(MIXTURE),
        size.steps,
        size.lrs,
        size.batch,
        size.seeds,
        sequences=size.sequences,
    )
    return Case(experiment, mixer, told(options), model_of(mixer, size.vocab, d, **options), course)


def told(options: dict[str, Any]) -> str:
    """Options as a row shows them: "n=16"."""
    return " ".join(f"{name}={value}" for name, value in options.items())


EXPERIMENTS: dict[str, tuple[Callable[[Any], Iterator[Case]], dict[str, Any]]] = {
    "mqar": (_mqar, MQAR),
    "pareto": (_pareto, MQAR),
}
SIZES = ("full", "tiny")


def cases_of(experiment: str, size: str) -> list[Case]:
    """The experiment's cases. Raises ValueError for an unknown experiment or size."""
    if experiment not in EXPERIMENTS:
        known = ", ".join(EXPERIMENTS)
        raise ValueError(f"experiment: expected one of {known}, got {experiment!r}")
    if size not in SIZES:
        raise ValueError(f"size: expected one of {', '.join(SIZES)}, got {size!r}")
    make, sizes = EXPERIMENTS[experiment]
    return list(make(sizes[size]))
