"""The figure of chapter 03: draw a signal, choose a measure and n, watch it being remembered."""

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssmlib.hippo import MEASURES, input_ages, project, reconstruct
from ssmlib.shapes import check_number
from ssmlib.viz.host import Figure
from ssmlib.viz.stills import COLOUR, LARGE, SMALL

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Still

STEPS = 240
PRESETS = {
    "waves": "two waves",
    "chirp": "a wave that quickens",
    "steps": "steps",
    "pulse": "one early pulse",
    "noise": "smooth noise",
}
NAMES = {
    "legs": "LegS: all of the past",
    "legt": "LegT: a window",
    "fourier": "Fourier: a window",
    "lagt": "LagT: fading",
    "warped": "LegS matrices, time-invariant (S4)",
}


def hippo_draw(
    measure: str = "legs", n: int = 16, preset: str = "waves", window: int = 80
) -> Figure:
    """A signal of 240 inputs, its n coefficients as time plays, and the past that they return.

    measure: a name in `hippo.MEASURES`; preset: a name in PRESETS, drawn over by the reader.
    window: the length of the window, or the fading time, in inputs; "legs" has none.
    Raises ValueError for unknown names, n beyond 64 (even for "fourier"), and window beyond 240.
    """
    check_number(low=1, high=64, whole=True, n=n)
    check_number(low=20, high=STEPS, whole=True, window=window)
    for name, value, known in (("measure", measure, MEASURES), ("preset", preset, PRESETS)):
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    drawn = {name: signal(name) for name in PRESETS}
    dt = None if measure == "legs" else 1 / window
    c = project(drawn[preset][None], n, measure, dt=dt)[0][0, 0]
    return Figure(
        name="hippo_draw",
        data={
            "measure": measure,
            "n": n,
            "preset": preset,
            "window": window,
            "measures": list(NAMES.items()),
            "presets": list(PRESETS.items()),
            "signals": {name: [round(x, 4) for x in u.tolist()] for name, u in drawn.items()},
        },
        alt=(
            f"A signal of {STEPS} inputs, {PRESETS[preset]}, and over it what {n} coefficients of"
            f" the measure {NAMES[measure].split(':')[0]} return of it; below, the coefficients as"
            " bars."
        ),
        caption=(
            "Draw over the signal, or choose one, and press Play. LegS keeps the oldest third about"
            " as well as the newest, ever more coarsely. Then choose its time-invariant form: the"
            " newest third becomes sharp and the oldest is lost."
        ),
        draw=partial(_still, drawn[preset], c, measure, dt),
    )


def signal(preset: str) -> Tensor:
    """The 240 inputs of a preset, between -1.6 and 1.6, float64."""
    x = (torch.arange(STEPS, dtype=torch.float64) + 0.5) / STEPS
    if preset == "waves":
        return 0.7 * torch.sin(2 * math.pi * 3 * x) + 0.4 * torch.sin(2 * math.pi * 7 * x + 1)
    if preset == "chirp":
        return torch.sin(2 * math.pi * (1 + 5 * x) * x)
    if preset == "steps":
        return torch.tensor([0.8, -0.5, 1.2, 0.2, -1.0, 0.6]).double()[(6 * x).long()]
    if preset == "pulse":
        return 1.4 * torch.exp(-(((x - 0.15) / 0.03) ** 2))
    turns = torch.arange(1, 9, dtype=torch.float64)[:, None]
    phase = torch.rand(8, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return 0.29 * torch.sin(2 * math.pi * (turns * x + phase)).sum(0)


def _still(u: Tensor, c: Tensor, measure: str, dt: float | None) -> "Still":
    from matplotlib.figure import Figure as Still

    still = Still(figsize=(6.6, 3.4), facecolor=COLOUR["paper"], layout="constrained")
    past, bars = still.subplots(2, 1, height_ratios=(2.4, 1))
    ages = input_ages(len(u), dt)
    kept = ages <= MEASURES[measure].oldest
    places = torch.arange(len(u))[kept].tolist()
    past.plot(u.tolist(), color=COLOUR["input"], lw=1.4)
    past.plot(places, reconstruct(c, ages[kept], measure).tolist(), color=COLOUR["state"], lw=2)
    past.set(xlim=(0, len(u)), ylim=(-1.7, 1.7))
    past.set_title(NAMES[measure], fontsize=LARGE, color=COLOUR["ink"])
    bars.bar(range(len(c)), c.tolist(), color=COLOUR["state"])
    bars.set_title(f"the {len(c)} numbers in memory", fontsize=SMALL, color=COLOUR["muted"])
    for ax in (past, bars):
        ax.axis("off")
        ax.axhline(0, color=COLOUR["line"], lw=0.8, zorder=0)
    return still
