"""The picture on the landing page: the book's chapters along the line that leaves the parabola.

One `CHAPTERS` table; whether a chapter is written is read from `_toc.yml` and the notebooks there
are. The same list of links is a plot on a wide page and a column on a narrow one: the stylesheet
decides, so that there is one thing to read, to click and to hear.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Chapter:
    """A chapter of the plan; hue is a name of the palette, part an index into PARTS."""

    file: str
    title: str
    part: int
    hue: str


PARTS = (
    "The quadratic wall",
    "Memory as a linear system",
    "Selection",
    "Duality",
    "Composing",
    "The wider family",
    "In practice",
)
NUMERALS = ("I", "II", "III", "IV", "V", "VI", "VII")
CHAPTERS = (
    Chapter("01_attention_cost", "The cost of attention", 0, "attention"),
    Chapter("02_discretization", "Discretization", 1, "linear"),
    Chapter("03_hippo", "HiPPO", 1, "linear"),
    Chapter("04_s4_convolution", "S4", 1, "linear"),
    Chapter("05_selective_scan", "The selective scan", 2, "linear"),
    Chapter("06_parallel_scan", "Parallel scans", 2, "linear"),
    Chapter("07_ssd", "State space duality", 3, "linear"),
    Chapter("08_hybrids", "Hybrid models", 4, "hybrid"),
    Chapter("09_recall_limits", "Limits of recall", 4, "hybrid"),
    Chapter("10_linear_attention", "Linear attention", 5, "linear"),
    Chapter("11_delta_rule", "The delta rule", 5, "linear"),
    Chapter("12_inference", "Inference", 6, "linear"),
    Chapter("13_scaling_out", "Scaling out", 6, "linear"),
    Chapter("14_distillation", "Distillation", 6, "linear"),
    Chapter("15_applications", "Applications", 6, "linear"),
)

# The plot, in percent of its box: both curves leave ORIGIN, the parabola through its top edge.
ORIGIN = (1.5, 79.0)
SLOPE = 0.55
BEND = 0.15
FIRST, LAST, STOP = 19.5, 92.5, 16.5  # x of chapters 02 and 15, and of 01, on the parabola
BETWEEN_PARTS = 0.45  # in steps from chapter to chapter

DESCRIPTION = (
    "Two curves over the length of a sequence: a parabola, the cost of attention, which soon leaves"
    " the picture, and a straight line, on which the chapters after the first follow each other."
)


def arc(root: Path) -> str:
    """The picture as HTML, with links for the chapters that are written."""
    written = written_chapters(root)
    parts = "\n".join(_part(index, written) for index in range(len(PARTS)))
    return f"""\
<nav class="lt-arc" aria-label="The chapters">
<div class="lt-arc-box">
<svg class="lt-arc-plot" viewBox="0 0 100 100" preserveAspectRatio="none" role="img">
<title>{DESCRIPTION}</title>
<path class="lt-arc-axes" d="M{ORIGIN[0]} 0V{ORIGIN[1]}H100"/>
<path class="lt-arc-parabola" d="{_parabola_path()}"/>
<path class="lt-arc-line" d="M{ORIGIN[0]} {ORIGIN[1]}L100 {line(100):.2f}"/>
</svg>
<p class="lt-arc-label lt-arc-cost" aria-hidden="true">cost</p>
<p class="lt-arc-label lt-arc-square" aria-hidden="true"><b>n²</b> every pair</p>
<p class="lt-arc-label lt-arc-straight" aria-hidden="true"><b>n</b> one state</p>
<p class="lt-arc-label lt-arc-length" aria-hidden="true">length n</p>
<ol class="lt-arc-parts">
{parts}
</ol>
</div>
<p class="lt-arc-legend"><span class="lt-dot is-written"></span> written
<span class="lt-dot"></span> not yet written</p>
</nav>
"""


def written_chapters(root: Path) -> set[str]:
    """The chapters that the table of contents lists and that lie in notebooks/."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    listed = {name.removeprefix("notebooks/") for name in _files(toc)}
    return {c.file for c in CHAPTERS if c.file in listed and _notebook(root, c).exists()}


def line(x: float) -> float:
    """The straight line's height at x, in percent from the top."""
    return ORIGIN[1] - SLOPE * (x - ORIGIN[0])


def parabola(x: float) -> float:
    return ORIGIN[1] - BEND * (x - ORIGIN[0]) ** 2


def places() -> list[tuple[float, float]]:
    """Where each chapter stands: the first on the parabola, the others along the line."""
    steps = [0.0]
    for before, after in pairwise(CHAPTERS[1:]):
        steps.append(steps[-1] + 1 + BETWEEN_PARTS * (before.part != after.part))
    along = [FIRST + (LAST - FIRST) * step / steps[-1] for step in steps]
    return [(STOP, parabola(STOP)), *((x, line(x)) for x in along)]


def _notebook(root: Path, chapter: Chapter) -> Path:
    return root / "notebooks" / f"{chapter.file}.ipynb"


def _files(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "file":
                yield value
            else:
                yield from _files(value)
    elif isinstance(node, list):
        for value in node:
            yield from _files(value)


def _parabola_path() -> str:
    """One quadratic Bézier is a parabola exactly; it ends where it leaves the box."""
    x0, y0 = ORIGIN
    end = x0 + (y0 / BEND) ** 0.5
    return f"M{x0} {y0}Q{(x0 + end) / 2:.2f} {y0} {end:.2f} 0"


def _part(index: int, written: set[str]) -> str:
    here = [
        (i, c, x, y)
        for i, (c, (x, y)) in enumerate(zip(CHAPTERS, places(), strict=True))
        if c.part == index
    ]
    reach = 0.3 * (LAST - FIRST) / (len(CHAPTERS) - 2)
    start, end = (ORIGIN[0], STOP) if index == 0 else (here[0][2] - reach, here[-1][2] + reach)
    items = "\n".join(_chapter(i, c, x, y, written) for i, c, x, y in here)
    return (
        f'<li class="lt-part" style="--from:{start:.2f}%;--to:{100 - end:.2f}%;'
        f'--hue:var(--lt-{here[0][1].hue})">\n'
        f'<p class="lt-part-name"><span class="lt-numeral">{NUMERALS[index]}</span>'
        f" {escape(PARTS[index])}</p>\n<ol>\n{items}\n</ol></li>"
    )


def _chapter(index: int, chapter: Chapter, x: float, y: float, written: set[str]) -> str:
    there = chapter.file in written
    side = "is-left" if index == 0 else "is-above" if index % 2 == 0 else "is-below"
    words = (
        f'<span class="lt-number">{chapter.file[:2]}</span> <span>{escape(chapter.title)}</span>'
    )
    if there:
        words = f'<a href="../notebooks/{chapter.file}.html">{words}</a>'
    else:
        words = (
            f'<span class="lt-planned">{words}<span class="lt-state">not yet written</span></span>'
        )
    return (
        f'<li class="lt-chapter {side}{" is-written" * there}" style="--x:{x:.2f}%;--y:{y:.2f}%;'
        f'--hue:var(--lt-{chapter.hue})"><span class="lt-dot"></span>{words}</li>'
    )
