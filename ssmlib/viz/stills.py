"""The still pictures, on paper: what GitHub shows, and a page without scripts."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssmlib.palette import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Still

COLOUR = {name: light for name, (light, _) in PALETTE.items()}
SMALL, LARGE = 9, 10.5
EDGE = 1e-12  # how near to the unit circle is on it, as in dt_dial.mjs


def attention_grid(max_length: int, length: int, d_state: int, d: int) -> "Still":
    still, (ax, text) = _paper(6.6, 3.5, (1.25, 1))
    side = max(length, d)
    seen = min(length, 512)  # beyond 512 a cell is thinner than a pixel
    lower = [[float(key <= query) for key in range(seen)] for query in range(seen)]
    _cells(ax, lower, "attention", (0, length, length, 0))
    for k in range(1, length if length <= 64 else 1):
        ax.plot([0, length], [k, k], [k, k], [0, length], color=COLOUR["paper"], lw=0.6)
    left = side * 1.1
    _cells(ax, [[1.0] * d_state] * d, "state", (left, left + d_state, d, 0))
    ax.set(xlim=(0, left + d_state), ylim=(side, 0), aspect="equal")
    _lines(
        text,
        ("tokens n", f"{length:,}", "ink"),
        ("scores, n²", f"{length**2:,}", "attention"),
        ("causal, n(n+1)/2", f"{length * (length + 1) // 2:,}", "ink"),
        (f"state, {d_state} × {d}", f"{d_state * d:,}", "state"),
    )
    return still


def kv_calculator(parts: dict[str, tuple[float, str]], gpu_bytes: float, title: str) -> "Still":
    """parts: {label: (bytes, colour)}, in the order in which they fill the GPUs."""
    still, (ax, text) = _paper(6.6, 2.4, (1.25, 1))
    total, start = sum(size for size, _ in parts.values()), 0.0
    gpus = max(1, min(8, -int(-total // gpu_bytes)))
    for size, colour in parts.values():
        ax.barh(0, size, left=start, height=0.5, color=COLOUR[colour])
        start += size
    for i in range(gpus):
        ax.barh(0, gpu_bytes, left=i * gpu_bytes, height=0.5, fill=False, ec=COLOUR["ink"], lw=1)
        ax.text(
            (i + 0.5) * gpu_bytes,
            -0.42,
            "80 GB",
            ha="center",
            fontsize=SMALL,
            color=COLOUR["muted"],
        )
    ax.text(0, 0.5, title, fontsize=SMALL, color=COLOUR["muted"])
    ax.set(xlim=(0, gpus * gpu_bytes), ylim=(-0.8, 0.9))
    _lines(
        text,
        *((label, f"{size / 1e9:,.2f} GB", colour) for label, (size, colour) in parts.items()),
        ("together", f"{total / 1e9:,.2f} GB", "ink"),
    )
    return still


def dt_dial(powers: Sequence[complex], response: Sequence[float]) -> "Still":
    """powers: A_bar^k from k = 0, response: the real part of what they leave of one token."""
    a_bar, half = powers[1], half_life(abs(powers[1]))
    still, (plane, ax) = _paper(6.6, 3.0, (1, 1.5))
    from matplotlib.patches import Circle

    plane.add_patch(Circle((0, 0), 1, fc=COLOUR["panel"], ec=COLOUR["muted"]))
    seen = [p for p in powers if math.hypot(p.real, p.imag) <= 1.3]
    plane.plot([p.real for p in seen], [p.imag for p in seen], ".-", color=COLOUR["state"], lw=0.8)
    plane.plot([a_bar.real], [a_bar.imag], "o", ms=9, color=COLOUR["linear"], mec=COLOUR["paper"])
    plane.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal")
    plane.set_title(f"Ā = {complex_text(a_bar)}", fontsize=LARGE, color=COLOUR["linear"])
    steps = range(len(response))
    ax.vlines(steps, 0, response, color=COLOUR["state"], lw=1.2, alpha=0.5)
    ax.plot(steps, response, "o", ms=3, color=COLOUR["state"])
    top = abs(response[0]) or 1.0
    if half < len(response):
        ax.vlines(half, 0, 1.1 * top, color=COLOUR["input"], ls="--", lw=1)
    ax.set(xlim=(-0.5, len(response)), ylim=(-1.1 * top, 1.1 * top))
    ax.axhline(0, color=COLOUR["line"], lw=0.8, zorder=0)
    ax.set_title(f"what one token leaves, {fades(abs(a_bar))}", fontsize=SMALL, color=COLOUR["ink"])
    return still


def state_heatmap(rows: list[list[float]], tokens: Sequence[str]) -> "Still":
    from matplotlib.colors import LinearSegmentedColormap

    still, (ax,) = _paper(6.6, 0.6 + 0.32 * len(rows), (1,))
    most = max(abs(x) for row in rows for x in row) or 1.0
    ends = [COLOUR["muted"], COLOUR["panel"], COLOUR["state"]]
    ax.imshow(
        rows,
        cmap=LinearSegmentedColormap.from_list("signed", ends),
        vmin=-most,
        vmax=most,
        aspect="auto",
    )
    for t, token in enumerate(tokens):
        style = {"fontsize": LARGE, "color": COLOUR["ink"], "parse_math": False}
        ax.text(-0.8, t, token, ha="right", va="center", **style)
        ax.axhline(t + 0.5, color=COLOUR["paper"], lw=2)
    for k in range(len(rows[0])):
        ax.axvline(k + 0.5, color=COLOUR["paper"], lw=2)
    ax.set_title(f"the state's {len(rows[0])} numbers, after each token", fontsize=LARGE)
    return still


def complex_text(z: complex) -> str:
    """Four digits; only the real part where the imaginary one is 0."""
    return f"{z:.4g}" if z.imag else f"{z.real:.4g}"


def half_life(radius: float) -> float:
    """The steps in which a state of |A_bar| = radius halves; infinite on the circle and outside."""
    if radius >= 1 - EDGE:
        return math.inf
    return math.log(2) / -math.log(radius) if radius else 0.0


def fades(radius: float) -> str:
    """What becomes of a state of |A_bar| = radius, in words."""
    if radius > 1 + EDGE:
        return "growing at every step"
    half = half_life(radius)
    return "never fading" if math.isinf(half) else f"with a half-life of {half:.4g} steps"


def _paper(width: float, height: float, ratios: Sequence[float]) -> "tuple[Still, Sequence[Axes]]":
    """Axes side by side, outside of pyplot: no global state, no backend, nothing shown twice."""
    from matplotlib.figure import Figure as Still

    still = Still(figsize=(width, height), facecolor=COLOUR["paper"], layout="constrained")
    still.get_layout_engine().set(wspace=0.12, w_pad=0.1, h_pad=0.1)
    axes = still.subplots(1, len(ratios), squeeze=False, width_ratios=ratios)[0]
    for ax in axes:
        ax.axis("off")
    return still, axes


def _cells(
    ax: "Axes", values: list[list[float]], colour: str, extent: tuple[float, float, float, float]
) -> None:
    from matplotlib.colors import ListedColormap

    colours = ListedColormap([COLOUR["line"], COLOUR[colour]])
    ax.imshow(values, cmap=colours, vmin=0, vmax=1, extent=extent, interpolation="nearest")


def _lines(ax: "Axes", *lines: tuple[str, str, str]) -> None:
    """Label, value and colour, one under the other, as in the interactive figure's list."""
    ax.set(xlim=(0, 1), ylim=(-ax.figure.get_figheight() / 0.36, 0))
    for i, (label, value, colour) in enumerate(lines):
        ax.text(0, -i - 0.5, label, va="center", fontsize=SMALL, color=COLOUR["muted"])
        ax.text(1, -i - 0.5, value, va="center", ha="right", fontsize=LARGE, color=COLOUR[colour])
