"""One selective scan, without softplus, skip and gate, in six forms: the rungs as PyTorch calls."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssmlib.bench.cell import Cell
from ssmlib.bench.timing import working_dtype
from ssmlib.kernels import ladder
from ssmlib.kernels import selective_scan as kernel
from ssmlib.kernels.selective_scan.layout import saved_shape
from ssmlib.selective_scan import selective_scan

CHECKED = 128  # tokens that are compared with the float64 loop


class Shape(NamedTuple):
    """Batch, channels, length, state size."""

    b: int
    d: int
    t: int
    n: int


def loop(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Token by token, a few launches each."""
    h = torch.zeros(x.shape[0], *A.shape, device=x.device)
    y = torch.empty_like(x)
    for t in range(x.shape[1]):
        driven = (dt[:, t].float() * x[:, t])[..., None] * B[:, t, None]
        h = torch.exp(dt[:, t, :, None] * A) * h + driven
        y[:, t] = torch.einsum("bn,bdn->bd", C[:, t].float(), h)
    return y


def spread(x: Tensor, dt: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """The decay and the input of every state, (b t d n) in float32."""
    return torch.exp(dt[..., None] * A), (dt.float() * x)[..., None] * B[:, :, None]


def doubling(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Hillis and Steele in PyTorch, on every state at once."""
    a, h = spread(x, dt, A, B)
    stride = 1
    while stride < x.shape[1]:
        h = torch.cat([h[:, :stride], h[:, stride:] + a[:, stride:] * h[:, :-stride]], dim=1)
        a = torch.cat([a[:, :stride], a[:, stride:] * a[:, :-stride]], dim=1)
        stride *= 2
    return torch.einsum("btn,btdn->btd", C.float(), h).to(x.dtype)


def chunked(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    a, driven = (s.flatten(2) for s in spread(x, dt, A, B))
    h = ladder.chunked_scan(a, driven).unflatten(2, A.shape)
    return torch.einsum("btn,btdn->btd", C.float(), h).to(x.dtype)


def states(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    return ladder.states_scan(*spread(x, dt, A, B), C)


def fused(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    return ladder.fused_scan(x, dt, A, B, C)[0]


def library(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    return selective_scan(x, dt, A, B, C)[0]


FORMS = {
    "loop": loop,
    "doubling": doubling,
    "chunked": chunked,
    "states": states,
    "fused": fused,
    "library": library,
}


def moved(form: str, shape: Shape, size: int = 2) -> int:
    """Bytes that this form reads and writes; `size` of each of x, dt, B, C, y, states 4.

    A spread state is a and its input, each written once and read once, and h, written and read.
    `doubling` reads and writes a and h once more in every round.
    """
    b, d, t, n = shape
    tokens, spread_bytes = b * t * (3 * d + 2 * n) * size, 4 * b * t * d * n
    rounds = (t - 1).bit_length()
    passes = {"doubling": 2 + 4 * rounds + 1, "chunked": 2 + 3 + 1, "states": 2 + 2}
    state = 8 * b * d * n * t if form == "loop" else 0
    return tokens + state + passes.get(form, 0) * spread_bytes + 4 * d * n


def rung_cell(shape: Shape, form: str, device: torch.device) -> Cell:
    """One form, forward. Its bytes, and so its floor, are those that this form must move."""
    dtype = working_dtype(device)
    A = -torch.arange(1.0, shape.n + 1, device=device).repeat(shape.d, 1)
    spread_bytes = 4 * shape.b * shape.t * shape.d * shape.n
    sizes = {"b": shape.b, "d": shape.d, "state_size": shape.n}
    return Cell(
        labels=labels("rung", form, "forward", shape.t, dtype) | sizes,
        flops=0,
        n_bytes=moved(form, shape, dtype.itemsize),
        needs=6 * spread_bytes if form in ("doubling", "chunked", "states") else 0,
        n=shape.t,
        check_at=min(shape.t, CHECKED),
        draw=lambda t: inputs(shape._replace(t=t), dtype, device),
        run=lambda x, dt, B, C: (FORMS[form](x, dt, A, B, C),),
        truth=lambda x, dt, B, C: selective_scan(x, dt, A.double(), B, C, backend="reference")[:1],
    )


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """x, dt (b t d), B, C (b t n), with dt of the order of a Mamba layer's at its start."""
    b, d, t, n = shape
    x, raw = (normal((b, t, d), i, device) for i in (0, 1))
    B, C = (normal((b, t, n), i, device) for i in (2, 3))
    return tuple(v.to(dtype) for v in (x, torch.exp(raw - 4), B, C))


def normal(shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device)


def labels(
    experiment: str, form: str, which: str | None, n: int | None, dtype: torch.dtype
) -> dict[str, Any]:
    name = str(dtype).removeprefix("torch.")
    return {"experiment": experiment, "form": form, "pass": which, "n": n, "dtype": name}


def _calls() -> dict[str, Callable[[], object]]:
    """Each rung's launch, at types and sizes of a model, for `ssmlib.bench.assembly`."""
    b, t, d, n, S = 1, 64, 256, 16, 16
    x, dt, dy = torch.zeros(3, b, t, d, dtype=torch.bfloat16)
    B, C = torch.zeros(2, b, t, n, dtype=torch.bfloat16)
    A, wide = -torch.ones(d, n), torch.zeros(b, t, d, n)
    saved, state = torch.zeros(b, t // S, d, n), torch.zeros(b, d, n)
    system, plain = (x, dt, A, B[:, :, None], C[:, :, None]), (None, None, None, False, None, None)
    kept = torch.zeros(saved_shape(x, A, B[:, :, None], None))
    return {
        "tile_scan": lambda: ladder.tile_scan(x, dt),
        "chunked_scan": lambda: ladder.chunked_scan(x, dt),
        "states_scan": lambda: ladder.states_scan(wide, wide, C),
        "fused_scan": lambda: ladder.fused_scan(x, dt, A, B, C),
        "fused_backward": lambda: ladder.fused_backward(dy, x, dt, A, B, C, saved, S),
        "step": lambda: ladder.step(x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], state),
        "selective_scan": lambda: kernel.forward(*system, *plain, needs_grad=False),
        "selective_scan_backward": lambda: kernel.backward(dy, state, *system, *plain, kept),
    }


CALLS = _calls()
