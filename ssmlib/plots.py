"""How every plot of the book looks, and the few helpers its figures share.

`use_style()` once per notebook; then plain matplotlib. Figures have a transparent background and
dark ink, so one picture serves the light page and, inverted by the page, the dark one.
`bytes_label`, `seconds_label` and `length_label` name one value, and are tick formatters too:
`ax.yaxis.set_major_formatter(seconds_label)`.
"""

import math
import statistics
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssmlib.palette import PALETTE

HUES = ("attention", "linear", "hybrid", "state", "input", "muted")  # the order of unnamed lines


class HasLine(Protocol):
    """What stands under a figure: a `ssmlib.bench.Record` is one."""

    @property
    def line(self) -> str: ...


def color(name: str, dark: bool = False) -> str:
    """The palette's colour `name`, as hex. Plots use the light variant, for the page inverts them.

    Raises ValueError for a name that the palette does not have.
    """
    if name not in PALETTE:
        raise ValueError(f"name: expected one of {', '.join(PALETTE)}, got {name!r}")
    return PALETTE[name][dark]


def use_style() -> None:
    """Set matplotlib's defaults, and in a notebook the PNG output, to the book's style."""
    mpl.rcParams.update(_style())
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        # the inline backend takes its own face colour and resolution, whatever rcParams say
        set_matplotlib_formats(
            "png", facecolor=_background(), dpi=mpl.rcParams["savefig.dpi"], bbox_inches="tight"
        )


def _background() -> str:
    # Colab's dark theme shows a transparent picture on dark and does not invert it
    return color("paper") if "google.colab" in sys.modules else "none"


def _style() -> dict[str, object]:
    ink, muted, line = color("ink"), color("muted"), color("line")
    return {
        "figure.figsize": (6.4, 3.8),
        "figure.dpi": 144,
        "savefig.dpi": 144,
        "figure.facecolor": _background(),
        "savefig.facecolor": _background(),
        "axes.facecolor": "none",
        "figure.constrained_layout.use": True,
        "font.size": 11,
        "axes.titlesize": 12,
        "axes.labelsize": 11,
        "xtick.labelsize": 10.5,
        "ytick.labelsize": 10.5,
        "legend.fontsize": 10.5,
        "legend.frameon": False,
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.titlecolor": ink,
        "axes.edgecolor": muted,
        "xtick.color": muted,
        "ytick.color": muted,
        "xtick.labelcolor": ink,
        "ytick.labelcolor": ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": line,
        "grid.linewidth": 0.6,
        "lines.linewidth": 2.0,
        "lines.markersize": 5.0,
        "image.cmap": "cividis",
        "axes.prop_cycle": mpl.cycler(color=[color(name) for name in HUES]),
    }


def fit_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The exponent p of the power law y = c x^p that fits best, by least squares in log-log.

    Raises ValueError unless there are two different x, and all values are positive and finite.
    """
    x, y = [float(v) for v in x], [float(v) for v in y]
    if len(x) != len(y) or len(set(x)) < 2:
        raise ValueError(
            f"x, y: expected as many of each, at two different x or more, got {len(x)} and {len(y)}"
        )
    if not all(math.isfinite(v) and v > 0 for v in x + y):
        raise ValueError("x, y: expected positive finite values: a power law has no others")
    return statistics.linear_regression([math.log(v) for v in x], [math.log(v) for v in y]).slope


def annotate_provenance(figure: Figure, record: HasLine, width: int = 88) -> None:
    """Write the record's provenance below everything else in the figure, `width` letters a line."""
    text = "\n".join(textwrap.wrap(record.line, width))
    figure.supxlabel(text, x=0.01, ha="left", fontsize=8, color=color("muted"))


def diagram(
    ax: Axes, pieces: Mapping[str, tuple[float, float, str]], arrows: Iterable[tuple[str, ...]]
) -> None:
    """Draw boxes and what flows between them on bare axes.

    pieces: {label: (x, y, the palette's colour of its edge)}. arrows: (from, to), or (from, to,
    what flows), by label. Raises ValueError for an arrow from or to no piece.
    """
    xs, ys = [x for x, _, _ in pieces.values()], [y for _, y, _ in pieces.values()]
    ax.set(xlim=(min(xs) - 0.7, max(xs) + 0.7), ylim=(min(ys) - 0.5, max(ys) + 0.5))
    ax.axis("off")
    style = {"boxstyle": "round,pad=0.45", "fc": color("panel"), "lw": 1.6}
    drawn = {
        label: ax.text(x, y, label, ha="center", va="center", bbox=style | {"ec": color(hue)})
        for label, (x, y, hue) in pieces.items()
    }
    for start, end, *flows in arrows:
        for label in (start, end):
            if label not in pieces:
                raise ValueError(f"arrows: expected one of {', '.join(pieces)}, got {label!r}")
        tail, head = pieces[start][:2], pieces[end][:2]
        way = {"arrowstyle": "-|>", "color": color("muted"), "shrinkA": 2, "shrinkB": 2}
        way |= {"patchA": drawn[start].get_bbox_patch(), "patchB": drawn[end].get_bbox_patch()}
        ax.annotate("", head, tail, arrowprops=way)
        (x0, y0), (x1, y1) = ax.transData.transform([tail, head])
        aside = 11 / math.hypot(x1 - x0, y1 - y0)  # points, to the left of the arrow
        offset = (-aside * (y1 - y0), aside * (x1 - x0))
        middle = ((tail[0] + head[0]) / 2, (tail[1] + head[1]) / 2)
        for text in flows:
            place = {"xytext": offset, "textcoords": "offset points", "color": color("state")}
            ax.annotate(text, middle, ha="center", va="center", **place)


def length_axis(ax: Axes, lengths: Sequence[int], label: str = "length n (tokens)") -> None:
    """Make the x axis logarithmic with a tick, such as 4K, at each of `lengths`."""
    ax.set_xscale("log", base=2)
    ax.set_xticks(list(lengths), [length_label(n) for n in lengths], minor=False)
    ax.set_xticks([], minor=True)
    ax.set_xlabel(label)


def bytes_label(value: float, position: int | None = None) -> str:
    """1.5 GB for 1.5e9: decimal prefixes, at most three digits."""
    return _prefixed(value, "B", ["", "K", "M", "G", "T", "P"])


def seconds_label(value: float, position: int | None = None) -> str:
    """20 µs for 2e-5; seconds are not turned into minutes."""
    prefixes = ["n", "µ", "m", ""]
    return _prefixed(value * 1e9, "s", prefixes)


def length_label(value: float, position: int | None = None) -> str:
    """128K for 131072 and 1M for 1048576: K is 1024 here; other lengths are written out, 1,500."""
    if not math.isfinite(value):
        return f"{value}"
    n = round(value)
    for size, letter in ((2**20, "M"), (2**10, "K")):
        if n >= size and n % size == 0:
            return f"{n // size}{letter}"
    return f"{n:,}"


def _prefixed(value: float, unit: str, prefixes: Sequence[str]) -> str:
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {unit}"
    rounded = float(f"{value:.3g}")  # 999.9 is 1.00 of the next prefix
    step = min(max(math.floor(math.log10(abs(rounded)) / 3), 0), len(prefixes) - 1)
    return f"{float(f'{rounded / 1000**step:.3g}'):g} {prefixes[step]}{unit}"
