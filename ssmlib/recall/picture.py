"""One example of each task, drawn: what is said, and below it what is asked.

`draw_tasks()` is a figure of all of them, `draw_example` one row of it, and `describe()` the rows
as text, for a reader who cannot see them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from ssmlib.plots import color
from ssmlib.recall.kinds import TASKS
from ssmlib.recall.needles import CAPITALS
from ssmlib.recall.regression import regression
from ssmlib.recall.treecall import Grammar
from ssmlib.train.task import UNSCORED

ROLES = {  # the palette's colour of a token, by what it is there for
    "key": "linear",
    "value": "state",
    "context": "hybrid",
    "mark": "attention",
    "filler": "muted",
}
Named = tuple[str, str]  # what stands in a cell, and its role


@dataclass(frozen=True)
class Scene:
    """An example: the task, its arguments, a title, and how a token is called."""

    task: str
    title: str
    name: Callable[[int], Named]
    setting: Mapping[str, Any]
    seed: int = 0


def _ranges(*parts: tuple[int, str, str]) -> Callable[[int], Named]:
    """Tokens by range: (first token, its letters or a sign before its number, role)."""

    def name(token: int) -> Named:
        first, signs, role = max(part for part in parts if part[0] <= token)
        if len(signs) == 1:
            return signs, role
        return signs[token - first], role

    return name


LOWER = CAPITALS.lower()


def _scenes() -> tuple[Scene, ...]:
    strings = _ranges((0, " ", "filler"), (1, "$|.", "mark"), (4, LOWER, "value"))
    pairs = _ranges((0, "·", "filler"), (1, CAPITALS, "key"), (8, LOWER, "value"))
    return (
        Scene(
            "mqar",
            "multi-query associative recall",
            pairs,
            {"length": 22, "pairs": 4, "vocab": 16, "filler": "zero"},
        ),
        Scene(
            "associative_recall",
            "associative recall",
            _ranges((0, "?", "mark"), (1, CAPITALS, "key"), (8, LOWER, "value")),
            {"pairs": 5, "keys": range(1, 8), "values": range(8, 16)},
        ),
        Scene(
            "joint_recall",
            "joint recall: the value depends on the context",
            _ranges(
                (0, " ", "filler"),
                (1, "[|", "mark"),
                (3, LOWER, "value"),
                (9, "AB", "key"),
                (11, "①②", "context"),
            ),
            {"contexts": 2, "keys": 2, "values": 6},
            seed=1,
        ),
        Scene("copying", "copying", strings, {"length": 19, "shortest": 8, "longest": 8}),
        Scene(
            "lookup",
            "lookup, suffix: what was to be looked up comes last",
            strings,
            {"length": 19, "shortest": 11, "longest": 11, "given": 2, "answer": 3},
        ),
        Scene(
            "lookup",
            "lookup, prefix: it comes first",
            strings,
            {
                "length": 20,
                "shortest": 11,
                "longest": 11,
                "given": 2,
                "answer": 3,
                "kind": "prefix",
            },
        ),
        Scene(
            "selective_copying",
            "selective copying",
            _ranges((0, "·", "filler"), (1, LOWER, "value"), (9, "?", "mark")),
            {"length": 20, "items": 4, "vocab": 10},
        ),
        Scene(
            "induction",
            "induction heads",
            _ranges((0, LOWER, "value"), (9, "?", "mark")),
            {"length": 20, "vocab": 10},
        ),
        Scene(
            "needle",
            "a needle in a haystack",
            _ranges(
                (0, "?", "mark"),
                (1, "thegrassisgreen", "filler"),
                (16, CAPITALS, "value"),
            ),
            {
                "length": 32,
                "symbols": 9,
                "words": 15,
                "alphabet": CAPITALS,
                "secret": "PINEAPPLE",
                "depth": 0.4,
            },
        ),
        Scene(
            "treecall",
            "associative treecall: say the parent",
            _ranges((0, " ", "filler"), (1, "?", "mark"), (2, CAPITALS, "key")),
            {"length": 20, "grammar": Grammar.random(3, terminals=20)},
            seed=4,
        ),
        Scene(
            "repeats",
            "MAD: in-context recall",
            _ranges((0, CAPITALS, "key"), (5, LOWER, "value")),
            {"length": 21, "vocab": 10},
        ),
        Scene(
            "repeats",
            "MAD: noisy recall",
            _ranges((0, CAPITALS, "key"), (5, LOWER, "value"), (10, "0123", "filler")),
            {"length": 21, "vocab": 14, "noise": 0.3, "noise_vocab": 4},
        ),
        Scene(
            "motifs",
            "MAD: fuzzy recall",
            _ranges((0, " ", "filler"), (1, CAPITALS, "key"), (4, LOWER, "value")),
            {"length": 22, "vocab": 8},
        ),
        Scene(
            "compression",
            "MAD: compression, answered from the last state alone",
            _ranges((0, LOWER, "value"), (9, "?", "mark")),
            {"length": 14, "vocab": 10},
        ),
        Scene(
            "memorization",
            "MAD: memorization, the same table in every sequence",
            _ranges((0, CAPITALS, "key"), (4, LOWER, "value"), (9, "?", "mark")),
            {"length": 16, "vocab": 10},
        ),
    )


def examples(seed: int = 0) -> list[tuple[str, list[Named], list[Named | None]]]:
    """Each task of tokens: its title, what a sequence says, and what it asks under each token."""
    found = []
    for scene in _scenes():
        draw = TASKS[scene.task].draw
        tokens, targets = draw(batch=1, seed=scene.seed + seed, **scene.setting)
        said = [scene.name(token) for token in tokens[0].tolist()]
        asked = [None if t == UNSCORED else scene.name(t) for t in targets[0].tolist()]
        found.append((scene.title, said, asked))
    return found


def describe(seed: int = 0) -> str:
    """The rows of `draw_tasks`, as text."""
    lines = []
    for title, said, asked in examples(seed):
        answers = " ".join(" ." if word is None else f" {word[0]}" for word in asked)
        lines.append(f"{title}\n  said  {' '.join(f' {w}' for w, _ in said)}\n  asked {answers}")
    return "\n".join(lines)


def draw_tasks(seed: int = 0) -> Figure:
    """A row for each task: cells by role, and below them what is asked and where; at last the
    regression, as points."""
    scenes = examples(seed)
    n, widest = len(scenes), max(len(said) for _, said, _ in scenes)
    figure = Figure(figsize=(8.0, 0.86 * n + 2.0), layout="constrained")
    *rows, last = figure.subplots(n + 1, 1, height_ratios=[0.86] * n + [2.0])
    for ax, scene in zip(rows, scenes, strict=True):
        draw_example(ax, *scene, width=widest)
    draw_regression(last, seed)
    return figure


def draw_regression(ax: Axes, seed: int = 0, points: int = 8) -> None:
    """In-context regression in one dimension: the points by number, and the last one asked."""
    inputs, y = (x[0, :, 0].tolist() for x in regression(1, points, 1, seed, noise=0.1))
    ax.set_title("in-context regression: y of the last x", loc="left", fontsize=9.5, pad=2)
    ax.set(xlabel="x", ylabel="y")
    ax.plot(inputs[:-1], y[:-1], "o", color=color("state"))
    ax.plot(inputs[-1:], y[-1:], "o", color=color("attention"), markerfacecolor="none")
    for i, place in enumerate(zip(inputs, y, strict=True)):
        word = "?" if i == points - 1 else str(i + 1)
        ax.annotate(word, place, xytext=(5, 3), textcoords="offset points", fontsize=8.5)


def draw_example(
    ax: Axes,
    title: str,
    said: Iterable[Named],
    asked: Iterable[Named | None],
    width: int | None = None,
) -> None:
    """Draw what is said as a row of cells, and what is asked of it below."""
    said, asked = list(said), list(asked)
    ax.set(xlim=(-0.6, (width or len(said)) - 0.4), ylim=(1.5, -0.5), aspect="equal")
    ax.axis("off")
    ax.set_title(title, loc="left", fontsize=9.5, pad=2)
    for i, (word, answer) in enumerate(zip(said, asked, strict=True)):
        _cell(ax, i, 0, word, filled=word[0].strip() != "")
        if answer is not None:
            _cell(ax, i, 1, answer, filled=False)


def _cell(ax: Axes, x: int, y: int, named: Named, filled: bool) -> None:
    word, role = named
    hue = color(ROLES[role])
    quiet = role == "filler"
    box = FancyBboxPatch(
        (x - 0.4, y - 0.4),
        0.8,
        0.8,
        boxstyle="round,pad=0,rounding_size=0.15",
        facecolor=hue if filled and not quiet else "none",
        edgecolor=hue if filled or y else color("line"),
        linewidth=0.8 if quiet else 1.2,
    )
    ax.add_patch(box)
    ink = color("paper") if filled and not quiet else hue
    ax.text(x, y, word, ha="center", va="center_baseline", fontsize=8.5, color=ink)
