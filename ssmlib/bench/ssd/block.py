"""Cells of a whole layer: Mamba-2 by our modules and by mamba-ssm's one function, and Mamba.

Parameters are float32; what comes in and goes out, and the matrix products, bfloat16 on a GPU, by
autocast.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssmlib.bench.cell import Cell
from ssmlib.bench.ssd import peers
from ssmlib.bench.ssd.scans import CHECKED, Shape, cost, labels_of
from ssmlib.bench.timing import working_dtype
from ssmlib.costs import TRAINING
from ssmlib.mixers.mamba import Mamba, MambaConfig
from ssmlib.mixers.mamba2 import Mamba2, Mamba2Config

PASSES = ("forward", "forward+backward")


class Size(NamedTuple):
    """Features of the model, batch, tokens, state size of Mamba-2, channels of a head."""

    d: int
    b: int
    t: int
    n: int
    p: int


FULL = Size(d=2048, b=8, t=4096, n=128, p=64)
TINY = Size(d=16, b=2, t=33, n=4, p=8)


def mamba2_cell(size: Size, provider: str, which: str, device: torch.device) -> Cell:
    """Mamba-2; the peer runs with the same weights. Counted: `cost`, and the two projections."""
    config = Mamba2Config(state_size=size.n, head_dim=size.p)
    made = seeded(Mamba2 if provider == "ssmlib" else peers.Fused, size.d, config, device)
    exact = seeded(Mamba2, size.d, replace(config, backend="reference"), device)
    shape = Shape(size.b, size.t, made.heads, size.p, config.groups, size.n)
    inner = cost(shape, which != "forward", working_dtype(device).itemsize)
    labels = {"experiment": "mamba-2 block", "provider": provider, "d": size.d}
    labels = labels_of("", shape, which, working_dtype(device)) | labels
    return _cell(labels, size, made, exact, which, inner.flops, inner.special, device)


def mamba_cell(size: Size, which: str, device: torch.device) -> Cell:
    """Mamba, of 16 states a channel. Counted: its four projections."""
    made = seeded(Mamba, size.d, MambaConfig(), device)
    exact = seeded(Mamba, size.d, MambaConfig(backend="reference"), device)
    labels = {"experiment": "mamba block", "provider": "ssmlib", "form": None, "pass": which}
    labels |= {"b": size.b, "d": size.d, "n": size.t, "h": None, "g": None}
    labels |= {"state_size": made.d_state}
    labels |= {"dtype": str(working_dtype(device)).removeprefix("torch.")}
    return _cell(labels, size, made, exact, which, 0, 0, device)


def seeded(
    layer: Callable[[int, MambaConfig | Mamba2Config], nn.Module],
    d: int,
    config: MambaConfig | Mamba2Config,
    device: torch.device,
) -> nn.Module:
    """A layer, with equal weights for every class of it."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return layer(d, config).to(device)


def _cell(
    labels: dict,
    size: Size,
    made: nn.Module,
    exact: nn.Module,
    which: str,
    flops: int,
    special: int,
    device: torch.device,
) -> Cell:
    backward, dtype = which != "forward", working_dtype(device)
    exact = copy.deepcopy(exact).double()
    matrices = [m.weight.numel() for m in made.modules() if isinstance(m, nn.Linear)]
    tokens, times = size.b * size.t, TRAINING if backward else 1

    def draw(length: int) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        shape = (2 if backward else 1, size.b, length, size.d)
        x, *dy = torch.randn(shape, generator=generator, device=device).to(dtype).unbind(0)
        return (x.detach().clone().requires_grad_(backward), *dy)

    def through(module: nn.Module, x: Tensor, *dy: Tensor) -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(backward):
            y = module(x)[0]
        if not dy:
            return (y,)
        return (y, torch.autograd.grad(y, [x, *module.parameters()], dy)[0])

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return through(made, *inputs)

    return Cell(
        labels=labels | {"parameters": sum(v.numel() for v in made.parameters())},
        flops=times * 2 * tokens * sum(matrices) + flops,
        n_bytes=(4 if backward else 2) * dtype.itemsize * tokens * size.d,
        needs=40 * dtype.itemsize * tokens * size.d,
        n=size.t,
        check_at=min(size.t, CHECKED),
        draw=draw,
        run=run,
        truth=lambda *inputs: through(exact, *inputs),
        special=special,
    )
