"""The figures of chapter 05: a step for each token, and the steps that a trained model chose."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ssmlib.discretize import METHODS
from ssmlib.example import TOKENS, embed
from ssmlib.shapes import check_number
from ssmlib.viz.host import Figure
from ssmlib.viz.stills import COLOUR, LARGE, SMALL

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Still

NAME = TOKENS.index("Ada")
RULES = {
    "zoh": "zero-order hold",
    "exponential_euler": "exponential Euler (Mamba)",
    "bilinear": "bilinear (S4)",
}
PRESETS = {
    "alike": ("all alike: 0.3", (0.3,) * 8),
    "reset": ("0.3, but reset at Ada", (0.3, 0.3, 0.3, 5, 0.3, 0.3, 0.3, 0.3)),
    "filler": ("reset at Ada, and close for filler", (0.3, 0.3, 0.3, 5, 0.001, 0.001, 0.3, 0.3)),
    "door": ("a door: open for Ada alone", (0.001, 0.001, 0.001, 5, 0.001, 0.001, 0.001, 0.001)),
}
LINE = 72  # letters on a line of the still picture


def selection_dial(
    steps: str | Sequence[float] = "alike", a: float = -1.0, rule: str = "zoh", token: int = NAME
) -> Figure:
    """A memory of one number, h' = a h + x, reads the eight tokens with a step of its own for each.

    steps: a name in PRESETS, or eight numbers from 0.001 to 10. a: from -16 to 0.25. rule: a name
    in RULES. token: the one that the slider starts with, 0 to 7.
    Raises ValueError for anything else.
    """
    dt = _steps(steps)
    check_number(low=-16, high=0.25, a=a)
    check_number(low=0, high=len(TOKENS) - 1, whole=True, token=token)
    if rule not in RULES:
        raise ValueError(f"rule: expected one of {', '.join(RULES)}, got {rule!r}")
    x = embed(1)[0, :, 0]
    states, weights = read_with(x, dt, a, rule)
    share = (weights[NAME].abs() / weights.abs().sum()).item()
    return Figure(
        name="selection_dial",
        data={
            "tokens": list(TOKENS),
            "x": [round(v, 4) for v in x.tolist()],
            "dt": dt,
            "a": float(a),
            "rule": rule,
            "token": token,
            "rules": list(RULES.items()),
            "presets": [[key, name, list(values)] for key, (name, values) in PRESETS.items()],
        },
        alt=(
            f"Four rows of eight bars, one for each of the tokens {', '.join(TOKENS)}: the token as"
            " a number, its step, the state after it, and its weight in the last state, of which"
            f" Ada has {share:.1%}."
        ),
        caption=(
            "Start with all steps alike: Ada's weight in the last state is what her age allows."
            " Then give Ada a large step and the filler tiny ones, by the sliders or in the row of"
            " bars: she stays, unaged. Keep that and change the rule to bilinear: a large step no"
            " longer resets. Set a to 0.25, and it multiplies what it should have cleared."
        ),
        draw=partial(_dial_still, x, dt, states, weights),
    )


def read_with(x: Tensor, dt: Sequence[float], a: float, rule: str) -> tuple[Tensor, Tensor]:
    """The state after each token, and each token's weight in the last state; both float64 (t,)."""
    A, one = torch.tensor([[a]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    steps = [METHODS[rule](A, one, step) for step in dt]
    a_bar, b_bar = (torch.stack([pair[i][0, 0] for pair in steps]) for i in (0, 1))
    state, states = torch.zeros_like(x[0]), []
    for kept, written, token in zip(a_bar, b_bar, x, strict=True):
        state = kept * state + written * token
        states.append(state)
    later = torch.cat([a_bar[1:].flip(0).cumprod(0).flip(0), one[0]])
    return torch.stack(states), later * b_bar


def _steps(steps: str | Sequence[float]) -> list[float]:
    if isinstance(steps, str):
        if steps not in PRESETS:
            raise ValueError(f"steps: expected one of {', '.join(PRESETS)}, got {steps!r}")
        return [float(dt) for dt in PRESETS[steps][1]]
    if len(steps) != len(TOKENS):
        raise ValueError(f"steps: expected {len(TOKENS)} (one for each token), got {len(steps)}")
    for t, dt in enumerate(steps):
        check_number(low=0.001, high=10, **{f"steps[{t}]": dt})
    return [float(dt) for dt in steps]


def _dial_still(x: Tensor, dt: list[float], states: Tensor, weights: Tensor) -> "Still":
    from matplotlib.figure import Figure as Still

    still = Still(figsize=(6.6, 4.6), facecolor=COLOUR["paper"], layout="constrained")
    rows = (
        ("token x", x.tolist(), "input"),
        ("step Δ, by powers of ten", [math.log10(step) + 3.1 for step in dt], "linear"),
        ("state h", states.tolist(), "state"),
        ("weight in the last state", weights.tolist(), "state"),
    )
    for ax, (title, values, colour) in zip(still.subplots(4, 1, sharex=True), rows, strict=True):
        ax.bar(range(len(values)), values, width=0.4, color=COLOUR[colour])
        ax.axhline(0, color=COLOUR["line"], lw=0.8, zorder=0)
        ax.set_title(title, fontsize=SMALL, color=COLOUR["muted"], loc="left")
        ax.set_yticks([])
        ax.grid(False)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
    ax.set_xticks(range(len(TOKENS)), TOKENS, fontsize=LARGE, color=COLOUR["ink"])
    return still


def selection_text(
    text: str, steps: Mapping[str, Any], row: str | None = None, place: int = 0
) -> Figure:
    """A passage with the step Δ that a model chose at each byte, one row of steps at a time.

    text: t characters. steps: {name: (t,) positive numbers}, a tensor, an array or a list. row: the
    name shown first, the first one if None. place: the character that is marked first.
    Raises ValueError for rows that do not match the text, and for steps that are not positive.
    """
    if not text:
        raise ValueError("text: expected at least one character, got none")
    if not steps:
        raise ValueError("steps: expected at least one row, got none")
    rows = {str(name): _row(str(name), values, len(text)) for name, values in steps.items()}
    first = next(iter(rows)) if row is None else row
    if first not in rows:
        raise ValueError(f"row: expected one of {', '.join(rows)}, got {row!r}")
    check_number(low=0, high=len(text) - 1, whole=True, place=place)
    spread = max(rows[first]) / min(rows[first])
    return Figure(
        name="selection_text",
        data={
            "text": text,
            "rows": [{"name": name, "steps": values} for name, values in rows.items()],
            "row": list(rows).index(first),
            "place": place,
        },
        alt=(
            f"{len(text)} bytes of text, each shaded by the step that {first} chose for it; the"
            f" largest is {spread:.3g} times the smallest."
        ),
        caption=(
            "Choose a row, then walk through the text by the slider, or click a letter. The"
            " stronger the colour, the larger the step: this byte overwrites; without colour it"
            " passes by. All rows share one scale of ratios: one that hardly chooses looks flat."
        ),
        draw=partial(_text_still, text, rows[first], first),
    )


def _row(name: str, values: Any, t: int) -> list[float]:
    """Positive numbers, rounded to what a screen can show."""
    values = values.tolist() if hasattr(values, "tolist") else values
    try:
        numbers = [float(f"{float(v):.3g}") for v in values]
    except (TypeError, ValueError):
        raise ValueError(f"steps[{name!r}]: expected {t} numbers, got {values!r:.60}") from None
    if len(numbers) != t:
        raise ValueError(f"steps[{name!r}]: expected {t} (t of text), got {len(numbers)}")
    if not all(math.isfinite(v) and v > 0 for v in numbers):
        raise ValueError(f"steps[{name!r}]: expected positive finite numbers, got others")
    return numbers


def _text_still(text: str, steps: list[float], name: str) -> "Still":
    from matplotlib.colors import LinearSegmentedColormap, to_hex
    from matplotlib.figure import Figure as Still

    lines = _lines_of(text)
    size = (6.6, max(1.8, 0.8 + 0.27 * len(lines)))
    still = Still(figsize=size, facecolor=COLOUR["paper"], layout="none")
    ax = still.add_axes((0.02, 0.02, 0.96, 0.9))
    shades = LinearSegmentedColormap.from_list("step", [COLOUR["panel"], COLOUR["linear"]])
    logs = [math.log(v) for v in steps]
    low, wide = min(logs), max(max(logs) - min(logs), 1e-9)
    for down, line in enumerate(lines):
        for along, i in enumerate(line):
            shade = to_hex(shades(0.55 * (logs[i] - low) / wide))
            ax.add_patch(_cell(along, down, shade))
            letter = "⏎" if text[i] == "\n" else text[i]
            ax.text(
                along + 0.5, down + 0.5, letter, ha="center", va="center", fontsize=SMALL + 0.5,
                family="DejaVu Sans Mono", color=COLOUR["ink"], parse_math=False,
            )  # fmt: skip
    ax.set(xlim=(0, LINE), ylim=(len(lines), 0))
    ax.axis("off")
    ax.set_title(f"the steps of {name}", fontsize=LARGE, color=COLOUR["ink"], loc="left")
    return still


def _cell(along: int, down: int, shade: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((along, down), 1, 1, color=shade, lw=0)


def _lines_of(text: str) -> list[list[int]]:
    """Places in the text, line by line, each at most LINE long."""
    lines: list[list[int]] = [[]]
    for i, letter in enumerate(text):
        lines[-1].append(i)
        if letter == "\n" or len(lines[-1]) == LINE:
            lines.append([])
    return [line for line in lines if line]
