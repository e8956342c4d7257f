"""How `ssmlib.selective_scan.tiles` looks at its tensors, and how it cuts them up."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from ssmlib import recurrence
from ssmlib.recurrence import Piece

SLAB = 16384  # numbers of h in a tile
CHUNK = 32  # tokens at once


class Views(NamedTuple):
    """The arguments of a scan, or their gradients, with time first and channels last; no copies.

    x, dt, z (t b g e), e channels in each of g groups. A (g n e). B, C (t b g n 1). D, bias (g e).
    state (b g n e), or (s g n e) of a pack. Where every channel has a B and C of its own, g = d,
    these are (t b 1 n d), and g is 1 and e is d for all.
    """

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    bias: Tensor | None
    state: Tensor | None


def views_of(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor | None,
) -> Views:
    """Look at the arguments of `selective_scan`, B and C (b t g n), as `Views` do."""
    own = 1 < B.shape[2] == x.shape[2]
    groups = (1 if own else B.shape[2], -1)
    x, dt, z = (None if v is None else v.transpose(0, 1).unflatten(2, groups) for v in (x, dt, z))
    D, bias = (None if v is None else v.unflatten(0, groups) for v in (D, dt_bias))
    B, C = (M.transpose(0, 1) for M in (B, C))
    B, C = (M.mT.unsqueeze(2) if own else M.unsqueeze(4) for M in (B, C))
    state = None if state is None else state.unflatten(1, groups).mT
    return Views(x, dt, A.unflatten(0, groups).mT, B, C, D, z, bias, state)


def cut(v: Views, b: slice, g: slice, e: slice) -> Views:
    """The part of some batch members, groups and channels; of a pack, every sequence's state."""
    x, dt, z = (None if w is None else w[:, b, g, e] for w in (v.x, v.dt, v.z))
    shared = v.B.shape[4] == 1
    B, C = (M[:, b, g] if shared else M[:, b, g, :, e] for M in (v.B, v.C))
    D, bias = (None if w is None else w[g, e] for w in (v.D, v.bias))
    state = v.state
    if state is not None:
        packed = state.shape[0] != v.x.shape[1]
        state = state[slice(None) if packed else b, g, :, e]
    return Views(x, dt, v.A[g, :, e], B, C, D, z, bias, state)


def tiles_of(v: Views) -> Iterator[tuple[slice, slice, slice]]:
    """Cut (b g e) into tiles of about SLAB numbers of h: some members or groups, or a part of one.

    Where channels are cut, the parts are of one size.
    """
    (_, b, g, e), n = v.x.shape, v.A.shape[1]
    width = -(-e // max(1, round(n * e / SLAB)))
    groups = min(g, max(1, SLAB // (n * width)))
    members = max(1, SLAB // (n * width * groups)) if groups == g else 1
    yield from itertools.product(_slices(b, members), _slices(g, groups), _slices(e, width))


def pieces_of(t: int, cu_seqlens: Tensor | None) -> list[Piece]:
    """Every chunk of every sequence, in order. Raises ValueError where cu_seqlens does not fit."""
    return recurrence.pieces_of(t, cu_seqlens, CHUNK)


def most_pieces(t: int, s: int) -> int:
    """The most chunks that any way to cut t tokens into s sequences gives."""
    return recurrence.most_pieces(t, s, CHUNK)


def _slices(size: int, step: int) -> list[slice]:
    return [slice(i, min(i + step, size)) for i in range(0, size, step)]
