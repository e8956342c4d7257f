"""Cells of the selective scan, with softplus, bias, D and gate: whole sequences, and one token."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssmlib.bench.cell import Cell, captured
from ssmlib.bench.scan import peers
from ssmlib.bench.timing import working_dtype
from ssmlib.selective_scan import selective_scan, selective_scan_step, selective_scan_step_


class Shape(NamedTuple):
    """Batch, channels, length, state size."""

    b: int
    d: int
    t: int
    n: int


SHAPES = (
    Shape(8, 4096, 2048, 16),
    Shape(8, 2048, 4096, 16),
    Shape(2, 4096, 16384, 16),
    Shape(1, 2048, 131072, 16),
    Shape(64, 1536, 512, 16),
)
STEPS = tuple(Shape(b, 4096, 1, 16) for b in (1, 32, 64, 256))
CHECKED = 96  # tokens: the float64 loop takes a few operations on each


def selective_cell(shape: Shape, provider: str, which: str, device: torch.device) -> Cell:
    """One pass over whole sequences; "forward+backward" makes every gradient.

    Counted per (b, t, d), with n = state size: n exponentials forward and n backward, 4 for
    softplus and silu and 5 for them and their derivatives; 4n + 14 and 14n + 30 other instructions;
    4 and 7 numbers of x's dtype moved.
    """
    b, d, t, n = shape
    backward, ours, dtype = which != "forward", provider == "ssmlib", working_dtype(device)
    A, D, bias = parameters(d, n, device, backward)
    names = ("x", "dt", "B", "C", "z")

    def draw(size: int) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        widths = {"x": d, "dt": d, "B": n, "C": n, "z": d, "dy": d}
        drawn = []
        for name in (*names, *(["dy"] * backward)):
            tokens = torch.randn(b, size, widths[name], generator=generator, device=device)
            tokens = tokens.to(dtype) if ours else tokens.to(dtype).mT.contiguous()
            drawn.append(tokens.requires_grad_(backward and name != "dy"))
        return tuple(drawn)

    def forward(x: Tensor, dt: Tensor, B: Tensor, C: Tensor, z: Tensor) -> Tensor:
        if not ours:
            return peers.mamba_scan(x, dt, A, B, C, D, z, bias)
        return selective_scan(x, dt, A, B, C, D, z, bias, dt_softplus=True)[0]

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(backward):
            y = forward(*inputs[:5])
        made = [y]
        if backward:
            made += torch.autograd.grad(y, [*inputs[:5], A, D, bias], inputs[5])[:5]
        return tuple(made) if ours else tuple(m.mT for m in made)

    def truth(*inputs: Tensor) -> tuple[Tensor, ...]:
        tokens = [x if ours else x.mT for x in inputs]
        wide = [p.detach().double() for p in (A, D, bias)]
        x, dt, B, C, z = tokens[:5]
        how = {"dt_softplus": True, "backend": "reference"}
        with torch.set_grad_enabled(backward):
            y = selective_scan(x, dt, wide[0], B, C, wide[1], z, wide[2], **how)[0]
        return (y, *torch.autograd.grad(y, tokens[:5], tokens[5])) if backward else (y,)

    e, size = b * t * d, dtype.itemsize
    moved = (11 if backward else 4) * size * e + (6 if backward else 2) * size * b * t * n
    return Cell(
        labels=labels("selective scan", provider, which, shape, dtype),
        flops=0,
        n_bytes=moved,
        needs=(24 if backward else 10) * size * e,
        n=t,
        check_at=min(t, CHECKED),
        draw=draw,
        run=run,
        truth=truth,
        special=e * (2 * n + 9 if backward else n + 4),
        lanes=e * (18 * n + 44 if backward else 4 * n + 14),
    )


def step_cell(shape: Shape, provider: str, device: torch.device) -> Cell:
    """One token: its state, in float32, is read and written; x, dt, z and y are small beside it.

    The timed calls update one state in place again and again, as a CUDA graph, which is how a model
    decodes; the checked one starts afresh.
    """
    b, d, _, n = shape
    ours, dtype = provider == "ssmlib", working_dtype(device)
    A, D, bias = parameters(d, n, device, False)

    def draw(size: int) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        shapes = [(b, d), (b, d), (b, n), (b, n), (b, d), (b, d, n)]
        drawn = [torch.randn(s, generator=generator, device=device) for s in shapes]
        return (*(x.to(dtype) for x in drawn[:-1]), drawn[-1])

    def run(
        x: Tensor, dt: Tensor, B: Tensor, C: Tensor, z: Tensor, state: Tensor
    ) -> tuple[Tensor, ...]:
        if ours:
            return (selective_scan_step_(x, dt, A, B, C, D, z, bias, True, state=state),)
        return (peers.mamba_step(state, x, dt, A, B, C, D, z, bias),)

    def truth(
        x: Tensor, dt: Tensor, B: Tensor, C: Tensor, z: Tensor, _: Tensor
    ) -> tuple[Tensor, ...]:
        state, wide = draw(1)[-1][-1:].double(), [p.double() for p in (A, D, bias)]
        how = {"state": state, "backend": "reference"}
        return selective_scan_step(x, dt, wide[0], B, C, wide[1], z, wide[2], True, **how)[:1]

    e = b * d
    cell = Cell(
        labels=labels("decode", provider, "step", shape, dtype),
        flops=0,
        n_bytes=e * (8 * n + 4 * dtype.itemsize),
        needs=e * (16 * n + 16),
        n=1,
        check_at=1,
        draw=draw,
        run=run,
        truth=truth,
        special=e * (n + 4),
        lanes=e * (4 * n + 14),
    )
    return captured(cell)


def copied_state_cell(shape: Shape, device: torch.device) -> Cell:
    """A state copied by torch, replayed as a step is: its bytes, and what a replay takes anyway."""
    b, d, _, n = shape

    def draw(size: int) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        state = torch.randn(b, d, n, generator=generator, device=device)
        return state, torch.zeros_like(state)

    e = b * d * n
    cell = Cell(
        labels=labels("copied state", "torch", "step", shape, torch.float32),
        flops=0,
        n_bytes=8 * e,
        needs=8 * e,
        n=1,
        check_at=1,
        draw=draw,
        run=lambda state, other: (other.copy_(state),),
        truth=lambda state, other: (state,),
    )
    return captured(cell)


def parameters(
    d: int, n: int, device: torch.device, learned: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """A (d n), D and the bias of dt (d,), float32: a Mamba layer's at its start."""
    generator = torch.Generator(device).manual_seed(1)
    A = -torch.arange(1.0, n + 1, device=device).repeat(d, 1)
    D = torch.ones(d, device=device)
    dt = torch.exp(torch.empty(d, device=device).uniform_(-6.9, -2.3, generator=generator))
    bias = torch.log(torch.expm1(dt))
    return tuple(p.requires_grad_(learned) for p in (A, D, bias))


def labels(
    experiment: str, provider: str, which: str, shape: Shape, dtype: torch.dtype
) -> dict[str, Any]:
    names = {"experiment": experiment, "provider": provider, "pass": which}
    sizes = {"b": shape.b, "d": shape.d, "n": shape.t, "state_size": shape.n}
    return names | sizes | {"dtype": str(dtype).removeprefix("torch.")}
