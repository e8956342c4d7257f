"""The four figures: what each one draws, its caption, and its picture in words."""

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch

from ssmlib.costs import DEVICES, MODELS, context_bytes, parameter_bytes, parameters
from ssmlib.costs.checks import find
from ssmlib.discretize import METHODS
from ssmlib.example import TOKENS
from ssmlib.shapes import check_number
from ssmlib.viz import stills
from ssmlib.viz.host import Figure

RULES = {  # the names of discretize.METHODS, as a reader meets them
    "zoh": "zero-order hold",
    "exponential_euler": "exponential Euler (Mamba)",
    "bilinear": "bilinear (S4)",
    "euler": "Euler",
}


def attention_grid(
    max_length: int = 131072, length: int = 8, d_state: int = 16, d: int = 64
) -> Figure:
    """The n × n scores of one attention head beside a state of d_state × d numbers, to one scale.

    max_length: the slider's last length n, in tokens. length: where it starts. d: the channels of
    the head that the state replaces. Raises ValueError for sizes below 1 or length > max_length.
    """
    check_number(low=1, whole=True, max_length=max_length, d_state=d_state, d=d)
    check_number(low=1, high=max_length, whole=True, length=length)
    side = max(64, d, d_state)
    data = {"max_length": max_length, "length": length, "d_state": d_state, "d": d}
    return Figure(
        name="attention_grid",
        data=data,
        alt=(
            f"{_article(length)} {length} by {length} grid of attention scores,"
            f" {length**2} in all, with the {length * (length + 1) // 2} on and below the diagonal"
            f" coloured; beside it, to the same scale, a state of {d_state} by {d}"
            " numbers, whose size no length changes."
        ),
        caption=(
            "Drag the number of tokens n. The grid of scores grows in both directions and at"
            f" n = {math.isqrt(d_state * d - 1) + 1} is as large as the state. From n = {side} on"
            " the picture zooms out to keep the grid in view: the state, which has not changed,"
            " shrinks to a point."
        ),
        draw=partial(stills.attention_grid, **data),
    )


def _article(n: int) -> str:
    """The article that the spoken number takes: an eight, an eleven thousand, a one hundred."""
    first = f"{n:,}".split(",")[0]
    return "An" if first[0] == "8" or first in ("11", "18") else "A"


def kv_calculator(model: str = "Llama-3.1-70B", context: int = 131072, batch: int = 1) -> Figure:
    """What a context costs in memory for the models of `costs.MODELS`, with 80 GB GPUs beside it.

    model: the one selected first, a name in `costs.MODELS`. context: tokens of each request,
    batch: requests at once.
    Raises ValueError for an unknown model and for numbers below 1.
    """
    shape = find("model", model, MODELS)
    check_number(low=1, whole=True, context=context, batch=batch)
    weights, state = parameter_bytes(shape), context_bytes(shape, 0, batch)
    cache = context_bytes(shape, context, batch) - state
    gpu_bytes = DEVICES["H100 SXM"].memory
    title = f"{model}, {context:,} tokens, {batch} request{'s' * (batch > 1)}"
    parts = {
        "weights": (weights, "muted"),
        "KV cache": (cache, "attention"),
        "state": (state, "state"),
    }
    parts = {label: part for label, part in parts.items() if part[0]}
    told = ", ".join(f"{label} {size / 1e9:,.2f} GB" for label, (size, _) in parts.items())
    return Figure(
        name="kv_calculator",
        data={
            "models": [_memory(name) for name in MODELS],
            "selected": model,
            "context": context,
            "batch": batch,
            "gpu_bytes": gpu_bytes,
        },
        alt=f"{title}: {told}, drawn as a bar that fills GPUs of 80 GB.",
        caption=(
            "Choose a model, then drag the context and the number of requests. The cache grows with"
            " both, and soon outgrows the weights. Then choose a state space model: its state grows"
            " with the requests alone."
        ),
        draw=partial(stills.kv_calculator, parts, gpu_bytes, title),
    )


def _memory(name: str) -> dict[str, Any]:
    """What the calculator needs to know of a model; the bytes of a state are those of float32."""
    m = MODELS[name]
    return {
        "name": name,
        "parameters": parameters(m),
        "kv_values": 2 * m.pattern.count("*") * m.kv_heads * m.head_dim,
        "state_bytes": context_bytes(m, 0),
        "context": m.context,
    }


def dt_dial(dt: float = 0.1, a: complex = -1.0, method: str = "zoh") -> Figure:
    """How the step Δ, one eigenvalue a and the rule of discretization make a memory.

    The controls start there: dt from 0.001 to 10, a with a real part from -4 to 0.5 and an
    imaginary part from 0 to 10, `method` a name in `discretize.METHODS`.
    Raises ValueError outside these ranges, for an a that is no number, and for "bilinear" at its
    pole a dt = 2, where that rule has no answer.
    """
    a = _eigenvalue(a)
    check_number(low=0.001, high=10, dt=dt)
    check_number(low=-4, high=0.5, **{"a.real": a.real})
    check_number(low=0, high=10, **{"a.imag": a.imag})
    if method not in RULES:
        raise ValueError(f"method: expected one of {', '.join(RULES)}, got {method!r}")
    if method == "bilinear" and dt * a == 2:
        told = f"dt={dt:g}, a={stills.complex_text(a)}"
        raise ValueError(f"dt, a: expected aΔ ≠ 2 for the bilinear rule, got {told}")
    powers, response = _response(dt, a, method)
    data = {"dt": dt, "re": a.real, "im": a.imag, "method": method, "methods": list(RULES.items())}
    return Figure(
        name="dt_dial",
        data=data,
        alt=(
            f"Left, the unit circle with A-bar at {stills.complex_text(powers[1])} and its powers;"
            f" right, what one token leaves in the state over {len(response)} steps,"
            f" {stills.fades(abs(powers[1]))}."
        ),
        caption=(
            "Drag Δ. Small: Ā sits at the circle's right edge, and the state is kept almost whole."
            " Large: Ā moves to the centre, and one token overwrites what was there. Then change"
            " the rule and drag Δ again: bilinear sends Ā to −1 instead, Euler out of the circle."
        ),
        draw=partial(stills.dt_dial, powers, response),
    )


def _eigenvalue(a: Any) -> complex:
    if not isinstance(a, str | bool):  # complex("1") would read the string
        with suppress(TypeError, ValueError, RuntimeError, OverflowError):
            return complex(a)
    raise ValueError(f"a: expected a number, real or complex, got {a!r}")


def _response(dt: float, a: complex, method: str) -> tuple[list[complex], list[float]]:
    """A_bar^k and the real part of A_bar^k B_bar for 48 steps; infinite or NaN past float64."""
    A = torch.tensor([[a]], dtype=torch.complex128)
    A_bar, B_bar = METHODS[method](A, torch.ones_like(A), dt)
    powers = torch.cat([torch.ones_like(A[0]), A_bar[0].expand(47)]).cumprod(0)
    return powers.tolist(), (powers * B_bar[0]).real.tolist()


def state_heatmap(states: Any, tokens: Sequence[str] = TOKENS) -> Figure:
    """A hidden state as it reads its tokens, one step at a time.

    states: (t, n) real numbers, the state after each token: a tensor, an array or nested lists.
    tokens: t strings, shown as they stand; half a surrogate pair becomes "?". Raises ValueError for
    another shape, for numbers that are not finite, and for tokens that are none or do not match.
    """
    rows = _rows(states)
    if not isinstance(tokens, Iterable):
        raise ValueError(f"tokens: expected {len(rows)} strings, got {type(tokens).__name__}")
    tokens = [str(token).encode("utf-8", "replace").decode() for token in tokens]
    if len(tokens) != len(rows):
        raise ValueError(f"tokens: expected {len(rows)} (t of states), got {len(tokens)}")
    n = len(rows[0])
    return Figure(
        name="state_heatmap",
        data={"states": rows, "tokens": tokens},
        alt=(
            f"A heat map with one row for each of {len(rows)} tokens ({', '.join(tokens)}), and in"
            f" each row the {n} numbers of the state after that token."
        ),
        caption=(
            "Step through the sentence. Each token rewrites the one row that is in memory; the rows"
            f" above it are history, drawn for us and gone for the model. The state has {n} numbers"
            f" after the first token and {n} after the last."
        ),
        draw=partial(stills.state_heatmap, rows, tokens),
    )


def _rows(states: Any) -> list[list[float]]:
    """Nested lists of floats, rounded to what a screen can show."""
    rows = states.tolist() if hasattr(states, "tolist") else states
    try:
        rows = [[float(f"{x:.6g}") for x in row] for row in rows]
    except (TypeError, ValueError):
        raise ValueError(f"states: expected real numbers (t, n), got {_told(states)}") from None
    widths = {len(row) for row in rows}
    if len(widths) != 1 or widths == {0}:
        raise ValueError(f"states: expected real numbers (t, n), got {_told(states)}")
    if not all(math.isfinite(x) for row in rows for x in row):
        raise ValueError("states: expected finite numbers, got NaN or infinity")
    return rows


def _told(states: Any) -> str:
    shape = getattr(states, "shape", None)
    kind = type(states).__name__ if shape is None else f"shape {tuple(shape)}"
    dtype = getattr(states, "dtype", None)
    return kind if dtype is None else f"{kind} of {dtype}"
