"""How `ssmlib.selective_scan.tiles` lays out its numbers, and how it cuts them up.

Time first; then rows, one for each group of each batch member, which share B and C; channels last.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ssmlib.selective_scan.checks import check_boundaries, working_dtype
from ssmlib.selective_scan.reference import step_sizes

SLAB = 16384  # numbers of h in a tile
CHUNK = 32  # tokens at once


class Rows(NamedTuple):
    """The inputs in the working dtype; e channels in each of r rows.

    x, dt (as it counts), z (t r e); A (r n e); B, C (t r n); D (r e); start (s r n e), the h before
    each sequence. D, z and start may be None.
    """

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    start: Tensor | None


class Piece(NamedTuple):
    """A chunk: `tokens` of sequence `of`, and whether it is that sequence's first or last one."""

    tokens: slice
    of: int
    first: bool
    last: bool


def rows_of(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    state: Tensor | None,
) -> Rows:
    """The arguments of `selective_scan`, B and C (b t g n), in rows."""
    wide, b, g = working_dtype(x, dt, A, B, C, D, z, dt_bias, state), x.shape[0], B.shape[2]
    each = A.to(wide).unflatten(0, (g, -1)).mT  # (g n e)
    return Rows(
        x=time_first(x, g, wide),
        dt=step_sizes(time_first(dt, g, wide), _per_row(dt_bias, b, g, wide), dt_softplus),
        A=each.expand(b, *each.shape).flatten(0, 1),
        B=B.to(wide).transpose(0, 1).flatten(1, 2),
        C=C.to(wide).transpose(0, 1).flatten(1, 2),
        D=_per_row(D, b, g, wide),
        z=None if z is None else time_first(z, g, wide),
        start=None if state is None else state_rows(state, b, g, wide),
    )


def time_first(v: Tensor, g: int, dtype: torch.dtype) -> Tensor:
    """(b t d) to (t r e)."""
    return v.to(dtype).transpose(0, 1).unflatten(2, (g, -1)).flatten(1, 2)


def batch_first(v: Tensor, b: int, dtype: torch.dtype) -> Tensor:
    """(t r e) to a contiguous (b t d) of its own."""
    return v.unflatten(1, (b, -1)).flatten(2).transpose(0, 1).to(dtype).contiguous()


def state_rows(state: Tensor, b: int, g: int, dtype: torch.dtype) -> Tensor:
    """(b d n), or (s d n) of a pack, to (s r n e), s = 1 without a pack."""
    return state.to(dtype).reshape(-1, b * g, state.shape[1] // g, state.shape[2]).mT


def state_of(rows: Tensor, d: int, dtype: torch.dtype) -> Tensor:
    """(s r n e) to a contiguous (b d n) or (s d n) of its own."""
    return rows.mT.reshape(-1, d, rows.shape[2]).to(dtype).contiguous()


def pieces_of(t: int, cu_seqlens: Tensor | None) -> list[Piece]:
    """Every chunk of every sequence, in order. Raises ValueError where cu_seqlens does not fit."""
    bounds = [0, t] if cu_seqlens is None else cu_seqlens.tolist()
    check_boundaries(bounds, t)
    return [
        Piece(slice(i, min(i + CHUNK, stop)), k, i == start, i + CHUNK >= stop)
        for k, (start, stop) in enumerate(itertools.pairwise(bounds))
        for i in range(start, stop, CHUNK)
    ]


def most_pieces(t: int, s: int) -> int:
    """What no way to cut t tokens into s sequences exceeds: the size of what is kept per chunk."""
    return t // CHUNK + s


def longest(pieces: Sequence[Piece]) -> int:
    return max(p.tokens.stop - p.tokens.start for p in pieces)


def tiles_of(r: int, n: int, e: int) -> Iterator[tuple[slice, slice]]:
    """Cut rows and channels into tiles of about SLAB numbers of h: some rows, or a part of one."""
    parts = max(1, round(n * e / SLAB))
    width, height = -(-e // parts), max(1, SLAB // (n * e))
    for i in range(0, r, height):
        for j in range(0, e, width):
            yield slice(i, min(i + height, r)), slice(j, min(j + width, e))


def _per_row(v: Tensor | None, b: int, g: int, dtype: torch.dtype) -> Tensor | None:
    """(d,) to (r e)."""
    return None if v is None else v.to(dtype).view(g, -1).repeat(b, 1)
