"""Cells that set state space duality beside itself and beside others, of one model's width.

state size   what a state of 16 to 256 costs, here and in a selective scan
quadratic    the masked matrix of all tokens against its chunks, by the length
crossover    training: attention of equal width, by the length; its heads are half as many, as
             Mamba-2's channels are twice the model's. Neither has its projections
decoding     one token: attention over a cache, by the length of it
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmlib.bench import attention
from ssmlib.bench.cell import Cell
from ssmlib.bench.scan import selective
from ssmlib.bench.ssd.scans import Shape, ssd_cell, step_cell
from ssmlib.ssd import ssd_quadratic

PASSES = ("forward", "forward+backward")
SHARED = 4  # query heads that share a key and a value in the second cache


class Sizes(NamedTuple):
    """state: shape whose n varies. states, scanned: of SSD and of the selective scan.

    quadratic, crossover, decoding: shapes; t of the first two is the tokens of a batch in all.
    lengths: of each.
    """

    state: Shape
    states: tuple[int, ...]
    scanned: tuple[int, ...]
    quadratic: Shape
    squares: tuple[int, ...]
    crossover: Shape
    lengths: tuple[int, ...]
    decoding: Shape
    caches: tuple[int, ...]


FULL = Sizes(
    state=Shape(8, 4096, 64, 64, 1, 0),
    states=(16, 32, 64, 128, 256),
    scanned=(16, 64, 256),
    quadratic=Shape(1, 2**13, 32, 64, 1, 128),
    squares=tuple(2**i for i in range(5, 12, 2)),
    crossover=Shape(1, 2**15, 64, 64, 1, 128),
    lengths=tuple(2**i for i in range(10, 16)),
    decoding=Shape(64, 1, 64, 64, 1, 128),
    caches=tuple(2**i for i in range(7, 16, 2)),
)
QUICK = Sizes(
    state=Shape(2, 33, 2, 16, 1, 0),
    states=(4, 16),
    scanned=(4,),
    quadratic=Shape(1, 64, 2, 16, 1, 4),
    squares=(16, 64),
    crossover=Shape(1, 64, 4, 16, 1, 4),
    lengths=(32,),
    decoding=Shape(2, 1, 8, 16, 1, 4),
    caches=(32,),
)


def state_cells(sizes: Sizes, device: torch.device) -> Iterator[Cell]:
    """work_flops: of the chunks as `cost` counts them; of the recurrence, 6 and 18 a state."""
    b, t, h, p, g, _ = sizes.state
    for which in PASSES:
        for n in sizes.states:
            cell = ssd_cell(Shape(b, t, h, p, g, n), which, device)
            yield _named(cell, "state size", "ssd", work_flops=cell.flops)
        for n in sizes.scanned:
            shape = selective.Shape(b, h * p, t, n)
            cell = selective.selective_cell(shape, "ssmlib", which, device)
            work = (6 if which == "forward" else 18) * b * t * h * p * n
            yield _named(cell, "state size", "selective scan", h=h, g=g, work_flops=work)


def quadratic_cells(sizes: Sizes, device: torch.device) -> Iterator[Cell]:
    """The masked matrix as tensor cores would have it, and as `ssd_quadratic` has it, in float32.

    Floors are those of the chunks.
    """
    _, tokens, h, p, g, n = sizes.quadratic
    for t in sizes.squares:
        for which in PASSES:
            shape = Shape(tokens // t, t, h, p, g, n)
            cell = ssd_cell(shape, which, device)
            needs = cell.needs + 24 * tokens * h * t
            yield _named(cell, "quadratic", "chunks")
            for form in (masked, in_float32):
                square = ssd_cell(shape, which, device, form)
                yield _named(replace(square, needs=needs), "quadratic", form.__name__)


def crossover_cells(sizes: Sizes, backends: list[str], device: torch.device) -> Iterator[Cell]:
    """At as many tokens, cut into sequences of length n."""
    _, tokens, h, p, g, n = sizes.crossover
    for t in sizes.lengths:
        for which in PASSES:
            shape = Shape(tokens // t, t, h, p, g, n)
            yield _named(ssd_cell(shape, which, device), "crossover", "ssd", width=h * p // 2)
            for backend in backends:
                heads = attention.Shape(tokens // t, h // 2, h // 2, p)
                cell = attention.causal_cell(heads, t, backend, which, device)
                yield _attended(cell, "crossover", backend, p)


def decoding_cells(sizes: Sizes, backends: list[str], device: torch.device) -> Iterator[Cell]:
    """n is the tokens in the cache; of SSD, whose step does not know it, there is one row."""
    b, _, h, p, _, _ = sizes.decoding
    cell = step_cell(sizes.decoding, "ssmlib", device)
    yield _named(cell, "crossover decode", "ssd", width=h * p // 2)
    for t in sizes.caches:
        for g in (h // 2, h // 2 // SHARED):
            heads = attention.Shape(b, h // 2, g, p)
            for backend in backends:
                cell = attention.decode_cell(heads, t, backend, "grouped", device)
                yield _attended(cell, "crossover decode", backend, p)


def masked(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor
) -> Tensor:
    """y = (L ∘ C Bᵀ) dt x + D x; products of the dtype of x, the mask in float32. One group."""
    t, wide = x.shape[1], torch.promote_types(x.dtype, torch.float32)
    dt = F.softplus(dt.to(wide) + bias)
    s = (dt * A).cumsum(1).transpose(1, 2)  # (b h t)
    past = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
    L = (s[..., :, None] - s[..., None, :]).masked_fill(~past, -math.inf).exp()
    G = C[:, :, 0] @ B[:, :, 0].mT  # (b t t)
    u = (x * dt[..., None]).to(x.dtype).transpose(1, 2)
    y = (L * G[:, None]).to(x.dtype) @ u
    return y.transpose(1, 2) + (D[:, None] * x).to(x.dtype)


def in_float32(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor
) -> Tensor:
    return ssd_quadratic(x, dt, A, B, C, D, dt_bias=bias, dt_softplus=True)[0]


def _named(cell: Cell, experiment: str, form: str, **labels: int | float) -> Cell:
    """The cell as a row of a comparison, which is judged by no goal."""
    names = {"experiment": experiment, "provider": None, "form": form}
    return replace(cell, labels=cell.labels | names | labels)


def _attended(cell: Cell, experiment: str, backend: str, p: int) -> Cell:
    """The cell of the suite `attention`, in this suite's columns."""
    old = cell.labels
    names = {"experiment": experiment, "provider": None, "form": backend, "pass": old["pass"]}
    sizes = {"b": old["b"], "d": old["h"] * p, "n": old["n"], "h": old["h"], "g": old["g"]}
    labels = names | sizes | {"state_size": None, "dtype": old["dtype"], "width": old["h"] * p}
    return replace(cell, labels=labels)
