r"""The selective scan in PyTorch alone, forward and backward, for CPUs first.

What a token does to h is elementwise, so batch, groups and channels are cut into tiles whose h
stays in the cache, and each tile walks through time alone, a chunk of tokens at once. Per chunk,
exp(dt A) and dt B x are made in two buffers (c b g n e): c tokens, e channels, which lie side by
side in memory, so that every operation runs along them. Then one multiply-add per token turns the
second buffer into h, in place, and y is a product with C. What is made of the inputs, softplus and
gate included, exists for one chunk of one tile only; nothing but the results is as long as x.

Each operation spreads over PyTorch's threads, which meet again at its end. Where other programs
hold the cores, that waits for them some hundred times a call: `torch.set_num_threads(1)` there.

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

from ssmlib.recurrence import Piece, softplus, working_dtype
from ssmlib.selective_scan.layout import (
    Views,
    cut,
    most_pieces,
    pieces_of,
    tiles_of,
    views_of,
)


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
    tensors = (x, dt, A, B, C, D, z, dt_bias, state)
    wide, s = working_dtype(*tensors), len(x) if cu_seqlens is None else len(cu_seqlens) - 1
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    last = torch.empty(s, *A.shape, dtype=wide, device=x.device)
    size = saved_shape(x, A, B, cu_seqlens) if needs_grad else (0,)
    saved = torch.zeros(size, dtype=wide, device=x.device)
    inputs, pieces = views_of(*tensors), pieces_of(x.shape[1], cu_seqlens)
    outputs = views_of(y, dt, A, B, C, D, z, dt_bias, last)  # y is cut like x, last like state
    room: dict[tuple[int, ...], Tensor] = {}
    with torch.autocast(x.device.type, enabled=False):
        for where in tiles_of(inputs):
            tile = Tile(cut(inputs, *where), dt_softplus, pieces, wide, room)
            kept = _kept(saved, inputs, *where) if needs_grad else None
            _forward(tile, pieces, cut(outputs, *where), kept)
    return y, last, saved


def saved_shape(x: Tensor, A: Tensor, B: Tensor, cu_seqlens: Tensor | None) -> tuple[int, ...]:
    """What the forward pass keeps: an h for each chunk, and room for the most chunks there can be.

    How many there are is written in cu_seqlens, which a compiler does not read.
    """
    s = 1 if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return most_pieces(x.shape[1], s), x.shape[0], A.shape[1], A.shape[0]


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
    saved: Tensor,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, dt, A, B, C, D, z, dt_bias and state; None for what is None.

    d_last may be None, where nobody used the last state.
    """
    tensors, wide = (x, dt, A, B, C, D, z, dt_bias, state), saved.dtype
    grads = [_room(x), _room(dt), *(_zeros(v, wide) for v in (A, B, C, D))]
    grads += [_room(z), _zeros(dt_bias, wide), _zeros(state, wide)]
    inputs, pieces = views_of(*tensors), pieces_of(x.shape[1], cu_seqlens)
    found = views_of(*grads)
    if d_last is None:
        s = len(x) if cu_seqlens is None else len(cu_seqlens) - 1
        d_last = x.new_zeros((s, *A.shape), dtype=wide)
    given = views_of(dy, dt, A, B, C, D, z, dt_bias, d_last)  # dy is cut like x, d_last like state
    room: dict[tuple[int, ...], Tensor] = {}
    with torch.autocast(x.device.type, enabled=False):
        for where in tiles_of(inputs):
            tile = Tile(cut(inputs, *where), dt_softplus, pieces, wide, room)
            kept = _kept(saved, inputs, *where)
            _backward(tile, pieces, kept, cut(given, *where), cut(found, *where))
    pairs = zip(grads, tensors, strict=True)
    return tuple(None if g is None else g.to(v.dtype) for g, v in pairs)


def _zeros(v: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if v is None else torch.zeros(v.shape, dtype=dtype, device=v.device)


def _room(v: Tensor | None) -> Tensor | None:
    return None if v is None else torch.empty_like(v, memory_format=torch.contiguous_format)


class Chunk(NamedTuple):
    """A tile's inputs at c tokens: x, dt, z (c b g e), B, C (c b g n 1) or (c b 1 n d).

    raw is dt with its bias, dt as it counts, fed is dt x.
    """

    x: Tensor
    raw: Tensor
    dt: Tensor
    fed: Tensor
    B: Tensor
    C: Tensor
    z: Tensor | None


class Tile:
    """A part of a scan, and the buffers for one chunk of it.

    room: where tiles of one shape leave them for each other; new memory costs more to touch than
    all that is computed in it.
    """

    def __init__(
        self,
        inputs: Views,
        dt_softplus: bool,
        pieces: Sequence[Piece],
        wide: torch.dtype,
        room: dict[tuple[int, ...], Tensor],
    ):
        v, self.wide, self.softplus = inputs, wide, dt_softplus
        self.inputs, self.A = inputs, v.A.to(wide).contiguous()
        self.D, self.bias = (None if w is None else w.to(wide) for w in (v.D, v.bias))
        longest = max(p.tokens.stop - p.tokens.start for p in pieces)
        shape = (1 + 2 * longest, v.x.shape[1], *self.A.shape)
        if shape not in room:
            room[shape] = torch.empty(shape, dtype=wide, device=v.x.device)
        self.decay = room[shape][:longest]
        self.h = room[shape][longest:]  # before the chunk, after each token
        self.decays, self.hs = self.decay.unbind(), self.h.unbind()

    def load(self, tokens: slice) -> Chunk:
        v = self.inputs
        x, raw, B, C = (self.widen(w[tokens]) for w in (v.x, v.dt, v.B, v.C))
        raw = raw if self.bias is None else raw + self.bias
        dt = softplus(raw) if self.softplus else raw
        z = None if v.z is None else self.widen(v.z[tokens])
        return Chunk(x, raw, dt, dt * x, B, C, z)

    def widen(self, part: Tensor) -> Tensor:
        """A part of an input in the working dtype; it may share its memory, so it is only read."""
        return part.to(self.wide).contiguous()

    def run(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """From hs[0], make exp(dt A) and h of these tokens, both (c b g n e)."""
        c = len(chunk.x)
        decay, h = self.decay[:c], self.h[1 : c + 1]
        torch.mul(chunk.dt.unsqueeze(-2), self.A, out=decay).exp_()
        torch.mul(chunk.fed.unsqueeze(-2), chunk.B, out=h)
        for k in range(c):
            self.hs[k + 1].addcmul_(self.decays[k], self.hs[k])
        return decay, h

    def read(self, chunk: Chunk, h: Tensor) -> Tensor:
        """y before its gate, (c b g e)."""
        y = _over_states(chunk.C, h)
        return y if self.D is None else y.addcmul_(self.D, chunk.x)


def _kept(saved: Tensor, inputs: Views, b: slice, g: slice, e: slice) -> Tensor:
    """A tile's part of what is kept, (chunks b g n e)."""
    return saved.view(*saved.shape[:2], *inputs.A.shape)[:, b, g, :, e]


def _forward(tile: Tile, pieces: Sequence[Piece], out: Views, kept: Tensor | None) -> None:
    """Fill out.x with y, out.state with the last h, and kept."""
    start, end = tile.inputs.state, tile.hs[0]
    for k, piece in enumerate(pieces):
        if not piece.first:
            tile.hs[0].copy_(end)
        elif start is None:
            tile.hs[0].zero_()
        else:
            tile.hs[0].copy_(start[piece.rows])
        if kept is not None:
            kept[k] = tile.hs[0]
        chunk = tile.load(piece.tokens)
        h = tile.run(chunk)[1]
        y, end = tile.read(chunk, h), h[-1]
        out.x[piece.tokens] = y if chunk.z is None else y.mul_(F.silu(chunk.z))
        if piece.last:
            out.state[piece.rows] = end


def _backward(
    tile: Tile, pieces: Sequence[Piece], kept: Tensor, given: Views, found: Views
) -> None:
    """From the gradients of y and the last h, given.x and given.state, all others into found."""
    buffer, carry = torch.empty_like(tile.decay), torch.empty_like(tile.hs[0])
    slabs = buffer.unbind()
    for k in reversed(range(len(pieces))):
        piece, tokens = pieces[k], pieces[k].tokens
        tile.hs[0].copy_(kept[k])
        chunk = tile.load(tokens)
        decay, h = tile.run(chunk)
        dy, c = tile.widen(given.x[tokens]), len(h)
        if chunk.z is not None:
            sigmoid = torch.sigmoid(chunk.z)
            slope = (1 - sigmoid).mul_(chunk.z).add_(1).mul_(sigmoid)  # of silu
            found.z[tokens] = tile.read(chunk, h).mul_(slope).mul_(dy)
            dy = sigmoid.mul_(chunk.z).mul_(dy)
        grad = torch.mul(chunk.C, dy.unsqueeze(-2), out=buffer[:c])  # of h, once the loop is done
        slabs[c - 1].add_(given.state[piece.rows] if piece.last else carry)
        for i in range(c - 2, -1, -1):
            slabs[i].addcmul_(tile.decays[i + 1], slabs[i + 1])
        torch.mul(tile.decays[0], slabs[0], out=carry)
        if piece.first and found.state is not None:
            found.state[piece.rows] = carry
        _to_inputs(tile, tokens, chunk, decay, grad, dy, found)


def _to_inputs(
    tile: Tile, tokens: slice, chunk: Chunk, decay: Tensor, grad: Tensor, dy: Tensor, found: Views
) -> None:
    """From the gradients of h and of y before its gate, those of a chunk's inputs.

    Writes over decay and grad.
    """
    c, h = len(grad), tile.h
    found.B[tokens] += _over_channels(grad, chunk.fed, found.B)
    found.C[tokens] += _over_channels(h[1 : c + 1], dy, found.C)
    d_fed = _over_states(chunk.B, grad)
    through = decay.mul_(h[:c]).mul_(grad)  # the gradient of dt A
    d_dt = torch.mul(through, tile.A, out=grad).sum(-2).addcmul_(d_fed, chunk.x)
    found.A.add_(torch.mul(through, chunk.dt.unsqueeze(-2), out=grad).sum((0, 1)))
    if tile.softplus:
        d_dt.mul_(torch.sigmoid(chunk.raw))
    found.dt[tokens] = d_dt
    if found.bias is not None:
        found.bias.add_(d_dt.sum((0, 1)))
    dx = d_fed.mul_(chunk.dt)
    if tile.D is not None:
        dx.addcmul_(dy, tile.D)
        found.D.add_((dy * chunk.x).sum((0, 1)))
    found.x[tokens] = dx


def _over_states(M: Tensor, h: Tensor) -> Tensor:
    """Sum over n of M h: (c b g n 1) or (c b 1 n d), and (c b g n e), to (c b g e)."""
    if M.shape[-1] < h.shape[-1]:
        return (M.squeeze(-1).unsqueeze(-2) @ h).squeeze(-2)
    return (M * h).sum(-2)


def _over_channels(h: Tensor, w: Tensor, like: Tensor) -> Tensor:
    """h w of (c b g n e) and (c b g e), summed over channels that share a B or C: as `like` is."""
    if like.shape[-1] < h.shape[-1]:
        return h @ w.unsqueeze(-2).mT  # not unsqueeze(-1): for its strides bmm takes a slow path
    return h * w.unsqueeze(-2)
