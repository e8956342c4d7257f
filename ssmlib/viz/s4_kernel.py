"""The figure of chapter 04: move the poles of a diagonal system, watch the kernel they make."""

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssmlib.convolution import direct_conv
from ssmlib.discretize import zoh_diagonal
from ssmlib.s4 import kernel_diagonal, poles
from ssmlib.shapes import check_number
from ssmlib.viz.host import Figure
from ssmlib.viz.stills import COLOUR, LARGE, SMALL

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Still

STEPS = 160
LAG = 64
SIZES = (2, 4, 8, 16, 32)
INITS = {
    "legs": "LegS",
    "lin": "Lin: evenly spaced waves",
    "inv": "Inv: spaced as LegS, in closed form",
    "real": "Real: no waves",
    "random": "random frequencies",
}
WEIGHTS = {"ones": "all ones", "echo": f"fitted: an echo after {LAG} steps"}
SIGNALS = {"pulse": "one pulse", "blocks": "three blocks", "waves": "two waves"}


def s4_kernel(
    init: str = "legs", n: int = 16, dt: float = 0.016, weights: str = "ones", signal: str = "pulse"
) -> Figure:
    """The poles of a diagonal system as a_bar in the unit disk, its kernel, and what that does.

    init, n: where the n/2 poles start, an `s4.INITS` and a size in SIZES. dt: from 0.001 to 0.2.
    weights: C, "ones", or "echo": least squares towards a bump LAG steps late. B is 1, the rule the
    zero-order hold. signal: a name in SIGNALS. Raises ValueError for anything else.
    """
    check_number(low=0.001, high=0.2, dt=dt)
    for name, value, known in (
        ("init", init, INITS),
        ("n", n, SIZES),
        ("weights", weights, WEIGHTS),
        ("signal", signal, SIGNALS),
    ):
        if value not in known:
            told = ", ".join(map(str, known))
            raise ValueError(f"{name}: expected one of {told}, got {value!r}")
    started = {name: {size: _poles(name, size).tolist() for size in SIZES} for name in INITS}
    pairs = {
        name: {size: [[z.real, z.imag] for z in row] for size, row in rows.items()}
        for name, rows in started.items()
    }
    drawn = {name: inputs(name) for name in SIGNALS}
    return Figure(
        name="s4_kernel",
        data={
            "init": init,
            "n": n,
            "dt": dt,
            "weights": weights,
            "signal": signal,
            "lag": LAG,
            "inits": list(INITS.items()),
            "sizes": list(SIZES),
            "choices": list(WEIGHTS.items()),
            "presets": list(SIGNALS.items()),
            "poles": pairs,
            "echo": [round(x, 6) for x in echo().tolist()],
            "signals": {name: [round(x, 4) for x in x.tolist()] for name, x in drawn.items()},
        },
        alt=(
            f"Left, the unit disk with {n // 2} poles of the start {INITS[init].split(':')[0]} and"
            f" their mirror images; right, the kernel they make over {STEPS} steps, and below it a"
            f" signal, {SIGNALS[signal]}, with what the kernel turns it into."
        ),
        caption=(
            "Drag Δ first: every pole turns and sinks towards the centre, and the kernel is played"
            " faster. Then fit C to an echo and drag Δ again: too large, and no C finds it; too"
            " small, and it blurs. At last move one pole, in the disk or with its two sliders: near"
            " the rim it rings for long, and its angle is its pitch."
        ),
        draw=partial(_still, _poles(init, n), dt, weights, drawn[signal]),
    )


def kernel_of(a: Tensor, dt: float, weights: str) -> Tensor:
    """The kernel (STEPS,) of poles a (n/2,) complex128, with B = 1 and C as `weights` says."""
    one, step = torch.ones_like(a)[None], torch.tensor([dt], dtype=torch.float64)
    if weights == "ones":
        return kernel_diagonal(step, a[None], one, one, STEPS)[0]
    a_bar, b_bar = zoh_diagonal(a, torch.ones_like(a), dt)
    responses = 2 * b_bar * a_bar ** torch.arange(STEPS)[:, None]  # (t n/2)
    columns = torch.cat([responses.real, -responses.imag], dim=1)
    gram = columns.mT @ columns
    ridge = 1e-9 * gram.trace() * torch.eye(len(gram), dtype=gram.dtype)
    C = torch.complex(*torch.linalg.solve(gram + ridge, columns.mT @ echo()).chunk(2))
    return kernel_diagonal(step, a[None], one, C[None], STEPS)[0]


def echo() -> Tensor:
    """The kernel of a soft echo: a bump of mass 1 around LAG, float64."""
    i = torch.arange(STEPS, dtype=torch.float64)
    bump = torch.exp(-(((i - LAG) / 6) ** 2) / 2)
    return bump / bump.sum()


def inputs(signal: str) -> Tensor:
    """The STEPS inputs of a preset, between -1 and 1, float64."""
    i = torch.arange(STEPS, dtype=torch.float64)
    if signal == "pulse":
        return ((i >= 8) & (i < 20)).double()
    if signal == "blocks":
        first, second = ((i >= 6) & (i < 18)).double(), ((i >= 30) & (i < 48)).double()
        return first - 0.6 * second + 0.8 * ((i >= 66) & (i < 78)).double()
    return 0.6 * torch.sin(2 * math.pi * i / 40) + 0.4 * torch.sin(2 * math.pi * i / 11)


def _poles(init: str, n: int) -> Tensor:
    return poles(init, n, generator=torch.Generator().manual_seed(0))[0]


def _still(a: Tensor, dt: float, weights: str, x: Tensor) -> "Still":
    from matplotlib.figure import Figure as Still
    from matplotlib.patches import Circle

    still = Still(figsize=(6.6, 3.2), facecolor=COLOUR["paper"], layout="constrained")
    axes = still.subplot_mosaic("DKK;DSS")
    disk, top, below = axes["D"], axes["K"], axes["S"]
    disk.add_patch(Circle((0, 0), 1, fill=False, ec=COLOUR["line"]))
    a_bar = torch.exp(dt * a)
    for points, alpha in ((a_bar, 1.0), (a_bar.conj(), 0.3)):
        disk.scatter(
            points.real.tolist(), points.imag.tolist(), s=18, color=COLOUR["state"], alpha=alpha
        )
    disk.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), aspect="equal")
    disk.set_title("the poles Ā", fontsize=LARGE, color=COLOUR["ink"])
    K = kernel_of(a, dt, weights)
    top.plot(K, color=COLOUR["state"], lw=2)
    top.set_title("the kernel", fontsize=LARGE, color=COLOUR["ink"])
    y = direct_conv(x[None, :, None], K[None])[0, :, 0]
    below.plot(x, color=COLOUR["input"], lw=1.4)
    below.plot(y / y.abs().max(), color=COLOUR["linear"], lw=2)
    below.set_title("a signal, and its output", fontsize=SMALL, color=COLOUR["muted"])
    for ax in axes.values():
        ax.axis("off")
        ax.axhline(0, color=COLOUR["line"], lw=0.8, zorder=0)
    return still
