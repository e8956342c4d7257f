"""The experiments: courses by name, and which models go through which of them.

mqar      mixers by width and length
pareto    more of each family at one length, for recall against bytes of state
copying   strings said again, at the trained length and beyond
lookup    what followed three letters, that are given before the string or after it
joint     values that depend on a context, by base layers and with something sparse beside them
passkey   a number hidden in a text longer than those trained on

`EXPERIMENTS[name][size]` is an `Experiment`; sizes are "full", for a GPU, "small", for a CPU, and
"tiny", to see that it runs. `ssmlib.bench.recall.published` says what differs from the published.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from math import inf
from typing import Any

from ssmlib.bench.recall.cases import Case, Course
from ssmlib.bench.recall.models import SPARSE, model_of
from ssmlib.recall import TASKS

SIZES = ("full", "small", "tiny")
MIXTURE = (16, 8, 4)  # tokens of a sequence for each pair in it
Cell = tuple[str, str, int, dict[str, Any]]  # course, mixer, d_model, options of the mixer


@dataclass(frozen=True)
class Experiment:
    """What there is to train: courses by name, and the cells, the most important first.

    lrs: for some mixers, other rates than the course's; each is to be tried on both sides of its
    best.
    """

    name: str
    courses: Mapping[str, Course]
    cells: tuple[Cell, ...]
    lrs: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def cases(self) -> Iterator[Case]:
        """The cells as cases."""
        for course, mixer, d, options in self.cells:
            yield self.case(course, mixer, d, **options)

    def course(self, name: str) -> Course:
        """Raises ValueError for a name that there is not."""
        if name not in self.courses:
            raise ValueError(f"course: expected one of {', '.join(self.courses)}, got {name!r}")
        return self.courses[name]

    def case(self, course: str, mixer: str, d: int, **options: Any) -> Case:
        """Any model on a course. Raises ValueError for a course or a model that there is not."""
        chosen = self.course(course)
        chosen = replace(chosen, lrs=self.lrs.get(mixer, chosen.lrs))
        task = TASKS[chosen.task]
        vocab = max(task.vocab(**setting) for setting in (*chosen.trained, *chosen.tested))
        variant = " ".join(f"{name}={value}" for name, value in sorted(options.items()))
        model = model_of(mixer, vocab, d, **options)
        return Case(self.name, course, mixer, variant, model, chosen)


def experiment_of(name: str, size: str = "full") -> Experiment:
    """Raises ValueError for an unknown name or size."""
    if name not in EXPERIMENTS:
        raise ValueError(f"experiment: expected one of {', '.join(EXPERIMENTS)}, got {name!r}")
    if size not in SIZES:
        raise ValueError(f"size: expected one of {', '.join(SIZES)}, got {size!r}")
    return EXPERIMENTS[name][size]


FAMILIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("attention", {}),
    ("mamba2", {"n": 16}),
    ("mamba2", {"n": 64}),
    ("mamba2", {"n": 256}),
    ("s4d", {}),
    ("h3", {}),
    ("mamba", {}),
    ("linear_attention", {}),
    ("hybrid", {}),
)
BETWEEN = FAMILIES[2], FAMILIES[7]  # not at the greatest of three lengths, to save time
MORE_OF_THEM = (("mamba2", "n", (4, 32)), ("mamba", "n", (4,)))
MORE_OF_THEM += (("linear_attention", "features", (4, 8)),)


def _mqar(length: int, vocab: int, **common: Any) -> Course:
    """Trained on few, more and length / 4 pairs, and asked about each, the most first."""
    settings = tuple(
        {"length": length, "pairs": length // each, "vocab": vocab, "filler": "zero"}
        for each in MIXTURE
    )
    return Course("mqar", settings, settings[::-1], length // min(MIXTURE), **common)


def _of_mqar(
    lengths: Mapping[int, int],
    widths: tuple[int, ...],
    windows: tuple[int, ...],
    attention: tuple[float, ...],
    **common: Any,
) -> dict[str, Experiment]:
    """lengths: the batch of each. windows: of attention, at the middle length and width; attention:
    rates of what has any."""
    courses = {str(t): _mqar(t, batch=batch, **common) for t, batch in lengths.items()}
    middle = str([*lengths][len(lengths) // 2])
    grid = tuple(
        (c, family[0], d, family[1])
        for family, (i, c), d in product(FAMILIES, enumerate(courses), widths)
        if i < 2 or family not in BETWEEN
    )
    more = [(m, {name: value}) for m, name, values in MORE_OF_THEM for value in values]
    further = [(middle, m, d, o) for (m, o), d in product(more, widths)]
    d = widths[len(widths) // 2]
    further += [(middle, "attention", d, {"window": window}) for window in windows]
    lrs = dict.fromkeys(("attention", "hybrid"), attention)
    return {
        "mqar": Experiment("mqar", courses, grid, lrs),
        "pareto": Experiment("pareto", {middle: courses[middle]}, tuple(further), lrs),
    }


COPIERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("attention", {"positions": "rotary"}),
    ("mamba", {"n": 16}),
    ("attention", {"positions": "none"}),
    ("mamba2", {"n": 64}),
    ("hybrid", {"n": 16}),
)
SEEKERS = (*COPIERS[1:4], ("attention", {"positions": "none", "times": 2}))


def _copying(longest: int, **common: Any) -> Course:
    """Trained on strings up to the longest, one at a time; tested at that length and beyond."""
    trained = {"length": 2 * longest + 3, "shortest": 5, "longest": longest}
    tested = tuple(
        {"length": 2 * n + 3, "shortest": n, "longest": n}
        for n in (longest, 3 * longest // 2, 2 * longest, 4 * longest)
    )
    return Course("copying", (trained,), tested, longest, schedule="constant", **common)


def _lookup(kind: str, longest: int, given: int, answer: int, **common: Any) -> Course:
    shared = {"kind": kind, "given": given, "answer": answer}
    more = given + answer + 4
    trained = {"length": longest + more, "shortest": longest // 3, "longest": longest, **shared}
    tested = tuple(
        {"length": n + more, "shortest": n, "longest": n, **shared}
        for n in (longest, 2 * longest, 3 * longest)
    )
    return Course("lookup", (trained,), tested, answer, **common)


def _of_copying(longest: int, d: int, **common: Any) -> dict[str, Experiment]:
    courses = {"copying": _copying(longest, **common)}
    cells = tuple(("copying", mixer, d, options) for mixer, options in COPIERS)
    return {"copying": Experiment("copying", courses, cells)}


def _of_lookup(d: int, **common: Any) -> dict[str, Experiment]:
    courses = {kind: _lookup(kind, **common) for kind in ("prefix", "suffix")}
    cells = tuple((kind, mixer, d, options) for kind, (mixer, options) in product(courses, SEEKERS))
    return {"lookup": Experiment("lookup", courses, cells)}


def _of_joint(
    contexts: tuple[int, int], keys: tuple[int, int], d: int, attention: tuple[float, ...], **common
) -> dict[str, Experiment]:
    setting = {"contexts": contexts, "keys": keys, "values": 16}
    course = Course("joint_recall", (setting,), (setting,), contexts[1] * keys[1], **common)
    base = (
        ("attention", d, {"times": 2}),
        ("mamba2", d, {"n": 32}),
        ("mamba", d, {"n": 16}),
        *(("beside", d, {"sparse": name}) for name in SPARSE),
        ("beside", d, {"base": "mamba"}),
        ("mamba2", 2 * d, {"n": 32}),
    )
    cells = tuple(("joint", *b) for b in base)
    return {"joint": Experiment("joint", {"joint": course}, cells, {"attention": attention})}


def _of_passkey(
    length: int, times: tuple[int, ...], d: int, **common: Any
) -> dict[str, Experiment]:
    settings = tuple({"length": length * k} for k in times)
    course = Course("needle", settings[:1], settings, 5, **common)
    models = (
        ("transformer", {"positions": "rotary"}),
        ("attention", {"positions": "rotary"}),
        ("mamba2", {"n": 64}),
        ("hybrid", {"n": 64}),
        ("hybrid", {"n": 64, "positions": "rotary"}),
        ("hybrid", {"n": 64, "window": 32}),
    )
    cells = tuple(("passkey", m, d, o | {"times": 2}) for m, o in models)
    return {"passkey": Experiment("passkey", {"passkey": course}, cells)}


_FULL = (
    _of_mqar(
        {64: 96, 128: 48, 256: 24},  # as many tokens, and answers, at each
        (32, 64, 128),
        (4, 16, 32, 64),
        vocab=256,
        steps=2000,
        lrs=(3e-3, 1e-2, 1e-3),
        attention=(3e-3, 1e-3, 5e-4, 2e-4),
    )
    | _of_copying(30, 64, steps=6000, lrs=(3e-3, 1e-3, 1e-2), solved=0.998)
    | _of_lookup(64, longest=30, given=3, answer=5, steps=4000, lrs=(3e-3, 1e-3, 1e-2))
    | _of_joint((4, 8), (4, 8), 64, (2e-3, 5e-3, 1e-3, 5e-4), steps=6000, lrs=(5e-3, 2e-3))
    | _of_passkey(256, (1, 2, 4, 8), 64, steps=10000, lrs=(3e-3, 1e-3), solved=inf)
)
_FEW = {"batch": 48, "sequences": 256}
_SMALL = (
    _of_mqar(
        {16: 48, 32: 48},
        (24, 48),
        (4, 8, 16),
        vocab=64,
        steps=500,
        lrs=(1e-2, 3e-2, 3e-3),
        attention=(1e-2, 3e-3),
        sequences=256,
    )
    | _of_copying(12, 32, steps=2000, lrs=(1e-2, 3e-3), **_FEW)
    | _of_lookup(32, longest=12, given=2, answer=2, steps=2000, lrs=(1e-2, 3e-3), **_FEW)
    | _of_joint((2, 3), (2, 3), 32, (3e-3, 1e-2), steps=2000, lrs=(1e-2, 3e-3), **_FEW)
    | _of_passkey(64, (1, 2, 4, 8), 32, steps=1500, lrs=(3e-3, 1e-2), **_FEW)
)
_NONE = {"steps": 4, "seeds": 2, "sequences": 8}
_TINY = (
    _of_mqar({16: 6}, (8,), (4, 8), (1e-2, 1e-3), vocab=32, lrs=(1e-2, 1e-3), **_NONE)
    | _of_copying(10, 8, lrs=(1e-2,), batch=6, **_NONE)
    | _of_lookup(8, longest=12, given=2, answer=2, lrs=(1e-2,), batch=6, **_NONE)
    | _of_joint((2, 2), (2, 3), 8, (1e-2,), lrs=(1e-2,), batch=6, **_NONE)
    | _of_passkey(32, (1, 2), 8, lrs=(1e-2,), batch=6, **_NONE)
)
EXPERIMENTS: dict[str, dict[str, Experiment]] = {
    name: {"full": full, "small": _SMALL[name], "tiny": _TINY[name]} for name, full in _FULL.items()
}
