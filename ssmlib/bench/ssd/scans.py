"""Cells of state space duality, with softplus, bias and D: whole sequences, and one token."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssmlib.bench.cell import Cell, captured
from ssmlib.bench.ssd import peers
from ssmlib.bench.timing import working_dtype
from ssmlib.ssd import ssd, ssd_step, ssd_step_


class Shape(NamedTuple):
    """Batch, length, heads, channels of a head, groups, state size."""

    b: int
    t: int
    h: int
    p: int
    g: int
    n: int


SHAPES = (
    Shape(8, 4096, 64, 64, 1, 128),
    Shape(4, 8192, 80, 64, 1, 128),
    Shape(1, 65536, 64, 64, 1, 128),
    Shape(8, 2048, 24, 64, 1, 128),
    Shape(1, 1024, 128, 64, 1, 128),
    Shape(16, 2048, 64, 64, 8, 64),
)
STEPS = tuple(Shape(b, 1, h, 64, 1, 128) for b, h in ((1, 64), (64, 80), (128, 64), (256, 64)))
CHUNK = 64  # tokens whose products are counted as one masked matrix
CHECKED = 160  # tokens: the float64 loop takes a few operations on each
Op = Callable[..., Tensor]


class Cost(NamedTuple):
    """FLOPs, bytes and exponentials that a pass takes at the least."""

    flops: int
    n_bytes: int
    special: int


def cost(shape: Shape, backward: bool, itemsize: int) -> Cost:
    """Of one pass in chunks of 64 tokens, whose future half is left out; with its gradients.

    FLOPs, per token and head: forward 64 p + 4 p n, backward 2 * 64 p + 8 p n, of which the states
    and their gradients are 2 p n each; per token and group, 64 n and 3 * 64 n more. Moved: forward
    x, dt, B, C, y, backward those but y again, dy and four gradients. Exponentials: half a row of
    the mask and 4, in each pass.
    """
    b, t, h, p, g, n = shape
    tokens, q = b * t, CHUNK
    flops = tokens * (h * (q * p + 4 * p * n) + g * q * n)
    moved = tokens * (2 * h * p + h + 2 * g * n)
    special = tokens * h * (q // 2 + 4)
    if backward:
        flops += tokens * (h * (2 * q * p + 8 * p * n) + 3 * g * q * n)
        moved += tokens * (3 * h * p + 2 * h + 4 * g * n)
        special *= 2
    return Cost(flops, moved * itemsize, special)


def ours(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    return ssd(x, dt, A, B, C, D, dt_bias=bias, dt_softplus=True)[0]


def ssd_cell(shape: Shape, which: str, device: torch.device, by: Op = ours, **labels: Any) -> Cell:
    """One pass over whole sequences; "forward+backward" makes every gradient. See `cost`.

    by: y of x, dt, A, B, C, D and the bias of dt. labels: more of them, or others.
    """
    b, t, h, p, g, n = shape
    backward, dtype = which != "forward", working_dtype(device)
    A, D, bias = parameters(h, device, backward)
    widths = {"x": (h, p), "dt": (h,), "B": (g, n), "C": (g, n), "dy": (h, p)}

    def draw(size: int) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        drawn = []
        for name in ("x", "dt", "B", "C", *(["dy"] * backward)):
            tokens = torch.randn(b, size, *widths[name], generator=generator, device=device)
            drawn.append(tokens.to(dtype).requires_grad_(backward and name != "dy"))
        return tuple(drawn)

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        x, dt, B, C, *dy = inputs
        with torch.set_grad_enabled(backward):
            y = by(x, dt, A, B, C, D, bias)
        return (y, *torch.autograd.grad(y, [x, dt, B, C, A, D, bias], dy)[:4]) if dy else (y,)

    def truth(*inputs: Tensor) -> tuple[Tensor, ...]:
        x, dt, B, C = inputs[:4]
        wide = [v.detach().double() for v in (A, D, bias)]
        how = {"dt_softplus": True, "backend": "reference"}
        with torch.set_grad_enabled(backward):
            y = ssd(x, dt, wide[0], B, C, wide[1], dt_bias=wide[2], **how)[0]
        return (y, *torch.autograd.grad(y, inputs[:4], inputs[4])) if backward else (y,)

    least = cost(shape, backward, dtype.itemsize)
    return Cell(
        labels=labels_of("ssd", shape, which, dtype) | labels,
        flops=least.flops,
        n_bytes=least.n_bytes,
        needs=24 * dtype.itemsize * b * t * h * p,
        n=t,
        check_at=min(t, CHECKED),
        draw=draw,
        run=run,
        truth=truth,
        special=least.special,
    )


def step_cell(shape: Shape, provider: str, device: torch.device) -> Cell:
    """One token: its state, in float32, is read and written; the rest is small beside it.

    The timed calls update one state in place again and again, as a CUDA graph, which is how a model
    decodes; the checked one starts afresh.
    """
    b, _, h, p, g, n = shape
    ours, dtype = provider == "ssmlib", working_dtype(device)
    A, D, bias = parameters(h, device, False)

    def draw(size: int) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        shapes = [(b, h, p), (b, h), (b, g, n), (b, g, n), (b, h, p, n)]
        drawn = [torch.randn(s, generator=generator, device=device) for s in shapes]
        return (*(x.to(dtype) for x in drawn[:-1]), drawn[-1])

    def run(x: Tensor, dt: Tensor, B: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, ...]:
        if ours:
            return (ssd_step_(x, dt, A, B, C, D, None, bias, True, state=state),)
        return (peers.step(state, x, dt, A, B, C, D, bias),)

    def truth(x: Tensor, dt: Tensor, B: Tensor, C: Tensor, _: Tensor) -> tuple[Tensor, ...]:
        state, wide = draw(1)[-1][-1:].double(), [v.double() for v in (A, D, bias)]
        return ssd_step(x, dt, wide[0], B, C, wide[1], None, wide[2], True, state=state)[:1]

    small = b * (2 * h * p + h + 2 * g * n) * dtype.itemsize
    cell = Cell(
        labels=labels_of("ssd decode", shape, "step", dtype) | {"provider": provider},
        flops=0,
        n_bytes=8 * b * h * p * n + small,
        needs=16 * b * h * p * n,
        n=1,
        check_at=1,
        draw=draw,
        run=run,
        truth=truth,
        lanes=6 * b * h * p * n,
    )
    return captured(cell)


def parameters(h: int, device: torch.device, learned: bool) -> tuple[Tensor, Tensor, Tensor]:
    """A, D and the bias of dt, (h,), float32: a Mamba-2 layer's at its start."""
    generator = torch.Generator(device).manual_seed(1)
    A = -torch.empty(h, device=device).uniform_(1, 16, generator=generator)
    dt = torch.exp(torch.empty(h, device=device).uniform_(-6.9, -2.3, generator=generator))
    made = A, torch.ones(h, device=device), torch.log(torch.expm1(dt))
    return tuple(v.requires_grad_(learned) for v in made)


def labels_of(experiment: str, shape: Shape, which: str, dtype: torch.dtype) -> dict[str, Any]:
    """The first columns of a row: d channels in all, n tokens."""
    b, t, h, p, g, n = shape
    names = {"experiment": experiment, "provider": "ssmlib", "form": None, "pass": which}
    sizes = {"b": b, "d": h * p, "n": t, "h": h, "g": g, "state_size": n}
    return names | sizes | {"dtype": str(dtype).removeprefix("torch.")}
