r"""The selective scan in PyTorch alone, forward and backward, for CPUs first.

What a token does to h is elementwise, so rows and channels are cut into tiles whose h stays in the
cache, and each tile walks through time alone, a chunk of tokens at once. Per chunk, exp(dt A) and
dt B x are made in two buffers (c r n e): c tokens, r rows, n states, e channels, which lie side by
side in memory, so that every operation runs along them. Then one multiply-add per token turns the
second buffer into h, in place, and y is a product with C. The n numbers per channel and token
exist for one chunk of one tile only.

The backward pass walks the chunks from the end. It makes h again, from the h at the chunk's start
that the forward pass has kept, and runs the transposed recurrence over it. With a bar for a
gradient, and $\lambda_t$ for that of h_t:

$$\lambda_t = C_t\, \bar y_t + e^{\Delta_{t+1} A} \lambda_{t+1}, \qquad
\overline{\Delta_t B_t x_t} = \lambda_t, \qquad
\overline{\Delta_t A} = \lambda_t\, e^{\Delta_t A} h_{t-1}$$
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmlib.selective_scan.layout import (
    Piece,
    Rows,
    batch_first,
    longest,
    most_pieces,
    pieces_of,
    rows_of,
    state_of,
    state_rows,
    tiles_of,
    time_first,
)


class Tile:
    """Some rows and channels of a scan, and the buffers for one chunk of them."""

    def __init__(self, rows: Rows, fed: Tensor, r: slice, e: slice, chunk: int):
        self.at, self.A = (r, slice(None), e), rows.A[r, :, e].contiguous()
        self.dt, self.fed = rows.dt[:, r, e], fed[:, r, e]  # (t r e)
        self.B, self.C = rows.B[:, r], rows.C[:, r]  # (t r n)
        self.start = None if rows.start is None else rows.start[:, r, :, e]
        self.decay = torch.empty(chunk, *self.A.shape, dtype=fed.dtype, device=fed.device)
        self.h = self.A.new_zeros(1 + chunk, *self.A.shape)  # before the chunk, after each token
        self.decays, self.hs = self.decay.unbind(), self.h.unbind()

    def enter(self, piece: Piece) -> None:
        """Make the h before a sequence's first token hs[0]."""
        if self.start is None:
            self.hs[0].zero_()
        else:
            self.hs[0].copy_(self.start[piece.of])

    def run(self, tokens: slice) -> tuple[Tensor, Tensor]:
        """From hs[0], make exp(dt A) and h of these tokens, both (c r n e)."""
        c = tokens.stop - tokens.start
        decay, h = self.decay[:c], self.h[1 : c + 1]
        torch.mul(self.dt[tokens, :, None], self.A, out=decay).exp_()
        torch.mul(self.fed[tokens, :, None], self.B[tokens, :, :, None], out=h)
        for k in range(c):
            self.hs[k + 1].addcmul_(self.decays[k], self.hs[k])
        return decay, h


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
    needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y (b t d), the last h, and the h before each chunk (empty unless needs_grad).

    Arguments as in `selective_scan`, B and C (b t g n).
    """
    with torch.autocast(x.device.type, enabled=False):
        rows = rows_of(x, dt, A, B, C, D, z, dt_bias, dt_softplus, state)
        pieces = pieces_of(x.shape[1], cu_seqlens)
        fed, y = rows.dt * rows.x, torch.empty_like(rows.x)
        last = fed.new_zeros(1 + pieces[-1].of, *rows.A.shape)
        saved = fed.new_zeros(saved_shape(x, A, B, cu_seqlens) if needs_grad else 0)
        for r, e in tiles_of(*rows.A.shape):
            tile = Tile(rows, fed, r, e, longest(pieces))
            _forward(tile, pieces, y[:, r, e], last[:, *tile.at], saved if needs_grad else None)
        if rows.D is not None:
            y.addcmul_(rows.D, rows.x)
        if rows.z is not None:
            y.mul_(F.silu(rows.z))
        return batch_first(y, len(x), x.dtype), state_of(last, x.shape[2], last.dtype), saved


def saved_shape(x: Tensor, A: Tensor, B: Tensor, cu_seqlens: Tensor | None) -> tuple[int, ...]:
    """The h before each chunk: (chunks r n e)."""
    s = 1 if cu_seqlens is None else cu_seqlens.shape[0] - 1
    (b, t, d), n, g = x.shape, A.shape[1], B.shape[2]
    return most_pieces(t, s), b * g, n, d // g


def _forward(
    tile: Tile, pieces: Sequence[Piece], y: Tensor, last: Tensor, saved: Tensor | None
) -> None:
    end = tile.hs[0]
    for k, piece in enumerate(pieces):
        if piece.first:
            tile.enter(piece)
        else:
            tile.hs[0].copy_(end)
        if saved is not None:
            saved[k, *tile.at] = tile.hs[0]
        h = tile.run(piece.tokens)[1]
        y[piece.tokens] = _over_states(tile.C[piece.tokens], h)
        end = h[-1]
        if piece.last:
            last[piece.of] = end


def backward(
    dy: Tensor,
    d_last: Tensor,
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
    saved: Tensor,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, dt, A, B, C, D, z, dt_bias and state; None for what is None."""
    with torch.autocast(x.device.type, enabled=False):
        rows = rows_of(x, dt, A, B, C, D, z, dt_bias, dt_softplus, state)
        pieces, fed = pieces_of(x.shape[1], cu_seqlens), rows.dt * rows.x
        (b, _, d), g = x.shape, B.shape[2]
        dy = time_first(dy, g, fed.dtype)
        grads = Gradients(
            y=dy if rows.z is None else dy * F.silu(rows.z),
            last=state_rows(d_last, b, g, fed.dtype),
            read=None if rows.z is None else torch.empty_like(fed),
            fed=torch.empty_like(fed),
            dt=torch.empty_like(fed),
            A=torch.zeros_like(rows.A),
            B=torch.zeros_like(rows.B),
            C=torch.zeros_like(rows.C),
            start=fed.new_zeros(1 + pieces[-1].of, *rows.A.shape),
        )
        for r, e in tiles_of(*rows.A.shape):
            _backward(Tile(rows, fed, r, e, longest(pieces)), pieces, saved, grads)
        dz = None if rows.z is None else _through_gate(dy, rows, grads.read)
        d_dt = grads.dt.addcmul_(grads.fed, rows.x)
        if dt_softplus:
            d_dt.mul_(torch.expm1(-rows.dt).neg_())  # the slope of softplus, where it is dt
        dx = grads.fed.mul_(rows.dt)
        if rows.D is not None:
            dx.addcmul_(grads.y, rows.D)
        return (
            batch_first(dx, b, x.dtype),
            batch_first(d_dt, b, dt.dtype),
            grads.A.unflatten(0, (b, -1)).sum(0).mT.reshape(A.shape).to(A.dtype).contiguous(),
            _batch_first_groups(grads.B, B),
            _batch_first_groups(grads.C, C),
            None if D is None else _per_channel((grads.y * rows.x).sum(0), D),
            None if z is None else batch_first(dz, b, z.dtype),
            None if dt_bias is None else _per_channel(d_dt.sum(0), dt_bias),
            None if state is None else state_of(grads.start, d, state.dtype),
        )


class Gradients(NamedTuple):
    """What the tiles' backward passes read, the gradients of y and last, and what they fill.

    y, read, fed, dt (t r e), A (r n e), B, C (t r n), last, start (s r n e). y is the output before
    its gate, fed is dt x. read is no gradient but C h, which that of the gate needs, or None.
    """

    y: Tensor
    last: Tensor
    read: Tensor | None
    fed: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    start: Tensor


def _backward(tile: Tile, pieces: Sequence[Piece], saved: Tensor, grads: Gradients) -> None:
    r, _, e = tile.at
    dy, last, start = grads.y[:, r, e], grads.last[:, *tile.at], grads.start[:, *tile.at]
    buffer, carry = torch.empty_like(tile.decay), torch.empty_like(tile.A)
    slabs, dA = buffer.unbind(), torch.zeros_like(tile.A)
    for k in reversed(range(len(pieces))):
        piece, tokens = pieces[k], pieces[k].tokens
        tile.hs[0].copy_(saved[k, *tile.at])
        decay, h = tile.run(tokens)
        c = len(decay)
        grad = torch.mul(tile.C[tokens, :, :, None], dy[tokens, :, None], out=buffer[:c])
        slabs[c - 1].add_(last[piece.of] if piece.last else carry)
        for i in range(c - 2, -1, -1):
            slabs[i].addcmul_(tile.decays[i + 1], slabs[i + 1])
        torch.mul(tile.decays[0], slabs[0], out=carry)
        if piece.first:
            start[piece.of] = carry
        if grads.read is not None:
            grads.read[tokens, r, e] = _over_states(tile.C[tokens], h)
        grads.fed[tokens, r, e] = _over_states(tile.B[tokens], grad)
        grads.B[tokens, r] += _over_channels(grad, tile.fed[tokens])
        grads.C[tokens, r] += _over_channels(h, dy[tokens])
        through = decay.mul_(tile.h[:c]).mul_(grad)  # the gradient of dt A
        grads.dt[tokens, r, e] = torch.mul(through, tile.A, out=grad).sum(2)
        dA += torch.mul(through, tile.dt[tokens, :, None], out=grad).sum(0)
    grads.A[tile.at] = dA


def _over_states(weights: Tensor, h: Tensor) -> Tensor:
    """(c r n) and (c r n e) to (c r e)."""
    return (weights.unsqueeze(-2) @ h).squeeze(-2)


def _over_channels(h: Tensor, weights: Tensor) -> Tensor:
    """(c r n e) and (c r e) to (c r n)."""
    return (h @ weights.unsqueeze(-1)).squeeze(-1)


def _through_gate(dy: Tensor, rows: Rows, read: Tensor) -> Tensor:
    """The gradient of z from that of y = (C h + D x) silu(z); all (t r e)."""
    ungated = read if rows.D is None else read.addcmul_(rows.D, rows.x)
    sigmoid = torch.sigmoid(rows.z)
    return sigmoid.mul_(1 + rows.z * (1 - sigmoid)).mul_(ungated).mul_(dy)


def _batch_first_groups(grad: Tensor, like: Tensor) -> Tensor:
    """(t r n) to (b t g n)."""
    grad = grad.unflatten(1, (like.shape[0], -1)).transpose(0, 1)
    return grad.to(like.dtype).contiguous()


def _per_channel(grad: Tensor, like: Tensor) -> Tensor:
    """(r e) to (d,), summed over the batch."""
    return grad.reshape(-1, len(like)).sum(0).to(like.dtype)
