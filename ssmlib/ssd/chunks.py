r"""State space duality in PyTorch alone, forward and backward, one chunk of tokens at a time.

A chunk of c tokens costs per head two products with a (c c) matrix, and per group, whose heads lie
side by side, products with all of its states at once. Only one chunk's matrices ever exist; what is
kept for the backward pass is the state at each chunk's start.

The log decay from token j to token i is a difference of cumulative sums, taken in float64, where it
has digits to spare for float32 (see `ssmlib.ssd.segsum` for what goes wrong otherwise).

The backward pass walks the chunks from the end, with $\lambda$ for the gradient of the state at a
chunk's end. In a chunk, $s_i$ is the log decay from its start to token i, $u = \Delta x$, M = L ∘ G
with $L_{ij} = e^{s_i - s_j}$, $G = C B^\top$, and $h$ the state at its start:

$$\bar u = M^\top \bar y + e^{s_c - s} \lambda B, \qquad
\bar G = L \circ \bar y u^\top, \qquad
\bar h = e^{s_c} \lambda + (e^{s} \bar y)^\top C$$

The gradient of one log decay is the sum over all pairs (i, j) that it stands between. It is made of
row sums minus column sums, in float64, where the pairs that it does not stand between cancel.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmlib.recurrence import Piece, most_pieces, pieces_of, working_dtype
from ssmlib.ssd.parts import Chunk, Found, Part, mixing, outer, read_heads, read_state

CHUNK = 64
SLAB = 2**18  # numbers of x, or of the (c c) matrices, that a part of the batch has in a chunk


def forward(
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
    cu_seqlens: Tensor | None,
    chunk_size: int | None,
    needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y (b t h p), the last h, and the h before each chunk (empty unless needs_grad)."""
    tensors = (x, dt, A, B, C, D, z, dt_bias)
    wide, like = working_dtype(*tensors, state), {"device": x.device}
    pieces = pieces_of(x.shape[1], cu_seqlens, chunk_size or CHUNK)
    size = saved_shape(x, B, cu_seqlens, chunk_size)
    y = torch.empty(x.shape, dtype=x.dtype, **like)
    rows = len(x) if cu_seqlens is None else len(cu_seqlens) - 1
    last = torch.empty(rows, *size[2:], dtype=wide, **like)
    saved = torch.zeros(size if needs_grad else (0,), dtype=wide, **like)
    with torch.autocast(x.device.type, enabled=False):
        for members, rows in _parts_of(x, cu_seqlens, pieces):
            part = Part(members, *tensors, dt_softplus, wide)
            start = None if state is None else state[rows]
            kept = saved[:, members] if needs_grad else None
            _forward(part, pieces, start, y[members], last[rows], kept)
    return y, last, saved


def saved_shape(
    x: Tensor, B: Tensor, cu_seqlens: Tensor | None, chunk_size: int | None
) -> tuple[int, ...]:
    """What the forward pass keeps: an h for each chunk, and room for the most chunks there can be.

    How many there are is written in cu_seqlens, which a compiler does not read.
    """
    s = 1 if cu_seqlens is None else cu_seqlens.shape[0] - 1
    b, t, h, p = x.shape
    return most_pieces(t, s, chunk_size or CHUNK), b, h, p, B.shape[3]


def saved_dtype(x: Tensor, B: Tensor, C: Tensor, wide: torch.dtype) -> torch.dtype:
    return wide


def backward(
    dy: Tensor,
    d_last: Tensor | None,
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
    cu_seqlens: Tensor | None,
    chunk_size: int | None,
    saved: Tensor,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, dt, A, B, C, D, z, dt_bias and state; None for what is None.

    d_last may be None, where nobody used the last state.
    """
    tensors, wide = (x, dt, A, B, C, D, z, dt_bias), saved.dtype
    pieces = pieces_of(x.shape[1], cu_seqlens, chunk_size or CHUNK)
    by_token = [_room(v) for v in (x, dt, B, C, z)]
    summed = [
        None if v is None else torch.zeros(v.shape, dtype=wide, device=v.device)
        for v in (A, D, dt_bias)
    ]
    d_state = _room(state)
    if d_last is None:
        s = len(x) if cu_seqlens is None else len(cu_seqlens) - 1
        d_last = x.new_zeros((s, *x.shape[2:], B.shape[3]), dtype=wide)
    with torch.autocast(x.device.type, enabled=False):
        for members, rows in _parts_of(x, cu_seqlens, pieces):
            part = Part(members, *tensors, dt_softplus, wide)
            found = Found(*(None if v is None else v[members] for v in by_token), *summed)
            start = None if d_state is None else d_state[rows]
            _backward(part, pieces, saved[:, members], dy[members], d_last[rows], found, start)
    dx, ddt, dB, dC, dz = by_token
    dA, dD, d_bias = (
        None if v is None else v.to(like.dtype)
        for v, like in zip(summed, (A, D, dt_bias), strict=True)
    )
    return dx, ddt, dA, dB, dC, dD, dz, d_bias, d_state


def _forward(
    part: Part,
    pieces: Sequence[Piece],
    start: Tensor | None,
    y: Tensor,
    last: Tensor,
    kept: Tensor | None,
) -> None:
    """Fill y, last and kept."""
    for k, piece in enumerate(pieces):
        if piece.first and start is None:
            h = torch.zeros(part.state, dtype=part.wide, device=y.device)
        elif piece.first:
            h = start[piece.rows].to(part.wide)
        if kept is not None:
            kept[k] = h
        chunk = part.load(piece.tokens)
        out = part.read(chunk, h)
        y[:, piece.tokens] = out if chunk.z is None else out.mul_(F.silu(chunk.z))
        h = torch.addcmul(outer(chunk.u * chunk.rest, chunk.B), chunk.total, h)
        if piece.last:
            last[piece.rows] = h


def _backward(
    part: Part,
    pieces: Sequence[Piece],
    kept: Tensor,
    dy: Tensor,
    d_last: Tensor,
    found: Found,
    d_state: Tensor | None,
) -> None:
    """From the gradients of y and the last h, fill and add to what is to be found."""
    for k in reversed(range(len(pieces))):
        piece, tokens, h = pieces[k], pieces[k].tokens, kept[k]
        if piece.last:
            d_end = d_last[piece.rows].to(part.wide)
        chunk, d_out = part.load(tokens), dy[:, tokens].to(part.wide)
        if chunk.z is not None:
            sigmoid = torch.sigmoid(chunk.z)
            slope = (1 - sigmoid).mul_(chunk.z).add_(1).mul_(sigmoid)  # of silu
            found.z[:, tokens] = slope.mul_(part.read(chunk, h)).mul_(d_out)
            d_out = sigmoid.mul_(chunk.z).mul_(d_out)
        d_end = _backward_chunk(part, chunk, tokens, h, d_out, d_end, found)
        if piece.first and d_state is not None:
            d_state[piece.rows] = d_end


def _backward_chunk(
    part: Part, chunk: Chunk, tokens: slice, h: Tensor, dy: Tensor, d_end: Tensor, found: Found
) -> Tensor:
    """Put down the gradients of a chunk's inputs; return that of the state at its start.

    dy is the gradient of y before its gate, d_end that of the state at the chunk's end.
    """
    u, B, C, g = chunk.u, chunk.B, chunk.C, chunk.B.shape[1]
    by_head, d_past = dy.transpose(1, 2), dy * chunk.past
    du = (mixing(chunk).mT @ by_head).transpose(1, 2)
    du_end = read_state(B, d_end).mul_(chunk.rest)
    du += du_end
    pairs = (by_head @ u.transpose(1, 2).mT).mul_(chunk.L).unflatten(1, (g, -1))  # (m g e c c)
    dG = pairs.sum(2)
    found.B[:, tokens] = (read_heads(u * chunk.rest, d_end, g) + dG.mT @ C).transpose(1, 2)
    found.C[:, tokens] = (read_heads(d_past, h, g) + dG @ B).transpose(1, 2)
    pairs = pairs.mul_(chunk.G.unsqueeze(2)).flatten(1, 2)  # (m h c c)
    ends = pairs.sum(3, dtype=torch.float64) - pairs.sum(2, dtype=torch.float64)
    ends = ends.transpose(1, 2) + (d_past * read_state(C, h)).sum(3)  # (m c h)
    left = (du_end * u).sum(3).double()
    through = ((d_end * h).sum((2, 3)) * chunk.total.flatten(1)).unsqueeze(1)
    d_log = ends.sum(1, True) - ends.cumsum(1) + ends + left.cumsum(1) - left + through
    found.A.add_((d_log * chunk.dt).sum((0, 1)))
    d_dt = (d_log * part.A).to(part.wide) + (du * chunk.x).sum(3)
    if part.softplus:
        d_dt *= torch.sigmoid(chunk.raw)
    found.dt[:, tokens] = d_dt
    if found.bias is not None:
        found.bias.add_(d_dt.sum((0, 1)))
    dx = du.mul_(chunk.dt.unsqueeze(3))
    if part.D is not None:
        dx.addcmul_(dy, part.D)
        found.D.add_((dy * chunk.x).sum((0, 1)).sum_to_size(part.D.shape).view_as(found.D))
    found.x[:, tokens] = dx
    return torch.addcmul(outer(d_past, C), chunk.total, d_end)


def _parts_of(
    x: Tensor, cu_seqlens: Tensor | None, pieces: Sequence[Piece]
) -> list[tuple[slice, slice]]:
    """Cut the batch into parts of about SLAB numbers a chunk: their members, their states' rows."""
    if cu_seqlens is not None:
        return [(slice(None), slice(None))]
    b, _, h, p = x.shape
    longest = pieces[0].tokens.stop
    step = max(1, SLAB // (h * longest * max(longest, p)))
    parts = [slice(i, min(i + step, b)) for i in range(0, b, step)]
    return list(zip(parts, parts, strict=True))


def _room(v: Tensor | None) -> Tensor | None:
    return None if v is None else torch.empty_like(v, memory_format=torch.contiguous_format)
