"""Cells of the two operations that only move bytes: the linear scan, and the causal convolution.

Backward is timed alone, along a graph that the drawing of the inputs leaves behind.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ssmlib.bench.cell import Cell
from ssmlib.bench.scan import peers
from ssmlib.bench.scan.selective import CHECKED, Shape, labels
from ssmlib.bench.timing import working_dtype
from ssmlib.convolution import causal_conv1d
from ssmlib.scan import scan

WIDTH = 4
Op = Callable[..., Tensor]


def scan_cell(shape: Shape, which: str, device: torch.device) -> Cell:
    """h_t = a_t h_{t-1} + x_t: 3 numbers moved a step, 5 backward (a, h, dh in; da, dx out)."""
    dtype = working_dtype(device)

    def draw(size: int) -> list[Tensor]:
        a, x, dh = _normal(3, (shape.b, size, shape.d), dtype, device)
        return [torch.sigmoid(a.float() + 2).to(dtype), x, dh]

    def forward(a: Tensor, x: Tensor) -> Tensor:
        return scan(a, x)[0]

    def exact(a: Tensor, x: Tensor) -> Tensor:
        return scan(a, x, backend="reference")[0]

    moved = 5 if which == "backward" else 3
    return _cell("linear scan", "ssmlib", which, shape, dtype, moved, draw, forward, exact)


def conv_cell(shape: Shape, provider: str, which: str, device: torch.device) -> Cell:
    """Width 4, bias and SiLU: 2 numbers moved a step, 3 backward (x, dy in; dx out)."""
    ours, dtype = provider == "ssmlib", working_dtype(device)
    weight, bias = _normal(2, (shape.d, WIDTH), torch.float32, device)
    weight, bias = (p.to(dtype) for p in (weight / 2, bias[:, 0]))
    wide = weight.double(), bias.double()
    if which == "backward":
        weight.requires_grad_(), bias.requires_grad_()

    def draw(size: int) -> list[Tensor]:
        drawn = _normal(2, (shape.b, size, shape.d), dtype, device)
        return drawn if ours else [x.mT.contiguous() for x in drawn]

    def forward(x: Tensor) -> Tensor:
        return causal_conv1d(x, weight, bias, "silu")[0] if ours else peers.conv1d(x, weight, bias)

    def exact(x: Tensor) -> Tensor:
        x = x if ours else x.mT
        y = causal_conv1d(x, *wide, "silu", backend="reference")[0]
        return y if ours else y.mT

    moved, also = (3 if which == "backward" else 2), [weight, bias]
    args = (shape, dtype, moved, draw, forward, exact, also)
    return _cell("causal conv1d", provider, which, *args)


def _cell(
    experiment: str,
    provider: str,
    which: str,
    shape: Shape,
    dtype: torch.dtype,
    moved: int,
    tensors: Callable[[int], list[Tensor]],
    forward: Op,
    exact: Op,
    parameters: list[Tensor] | None = None,
) -> Cell:
    """`tensors(size)` gives the inputs and the gradient of the output; `moved` numbers a step."""
    backward, parameters = which == "backward", parameters or []

    def draw(size: int) -> tuple[Tensor, ...]:
        *inputs, dy = tensors(size)
        if not backward:
            return tuple(inputs)
        inputs = [x.requires_grad_() for x in inputs]
        return (*inputs, dy, forward(*inputs))

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        if not backward:
            with torch.no_grad():
                return (forward(*inputs),)
        *inputs, dy, y = inputs
        grads = torch.autograd.grad(y, [*inputs, *parameters], dy, retain_graph=True)
        return grads[: len(inputs)]

    def truth(*inputs: Tensor) -> tuple[Tensor, ...]:
        if not backward:
            return (exact(*inputs),)
        *inputs, dy, _ = inputs
        return torch.autograd.grad(exact(*inputs), inputs, dy)

    e = shape.b * shape.t * shape.d
    return Cell(
        labels=labels(experiment, provider, which, shape, dtype),
        flops=0,
        n_bytes=moved * dtype.itemsize * e,
        needs=8 * dtype.itemsize * e,
        n=shape.t,
        check_at=min(shape.t, CHECKED),
        draw=draw,
        run=run,
        truth=truth,
    )


def _normal(
    count: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    return [torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(count)]
