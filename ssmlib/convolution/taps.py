r"""Causal convolution with w taps: $y_t = f(b + \sum_{i<w} W_i x_{t-w+1+i})$, f silu or nothing.

- `reference`: the definition, sequence by sequence, tap by tap.
- `forward`, `backward`: all sequences one after the other in one tensor, each behind its state, so
  that a tap is a shift of the whole. It goes by tiles of rows that stay in the cache meanwhile.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 131072  # numbers: with its twin, the output, they fit a second-level cache


class Places(NamedTuple):
    """Rows of the padded tensor: where tokens are, the state before each sequence, the one after.

    With a pack, indices (t,), (s w-1) and (s w-1); without, slices, the same for each batch member.
    """

    tokens: slice | Tensor
    before: slice | Tensor
    after: slice | Tensor
    rows: int


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """x (b t d), weight (d w), bias (d,), state (b d w-1), or (s d w-1) with cu_seqlens (s+1,)."""
    wide, w = working_dtype(x, weight, bias), weight.shape[1]
    pieces = [x] if cu_seqlens is None else x.split(cu_seqlens.diff().tolist(), dim=1)
    starts = [state] * len(pieces) if state is None or cu_seqlens is None else state.split(1)
    outputs, states = [], []
    for piece, start in zip(pieces, starts, strict=True):
        before = x.new_zeros(len(x), w - 1, x.shape[2]) if start is None else start.mT
        padded = torch.cat([before, piece], dim=1)
        taps = (
            weight[:, i].to(wide) * padded[:, i:].to(wide)[:, : piece.shape[1]] for i in range(w)
        )
        y = sum(taps) if bias is None else sum(taps) + bias.to(wide)
        outputs.append(F.silu(y) if silu else y)
        states.append(padded[:, piece.shape[1] :].mT)
    return torch.cat(outputs, dim=1).to(x.dtype), torch.cat(states)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    wide, places = working_dtype(x, weight, bias), _places(x, weight, cu_seqlens)
    padded = _padded(x, state, places, wide)
    out = padded.new_empty(len(x), places.rows - weight.shape[1] + 1, x.shape[2])
    bias = None if bias is None else bias.to(wide)
    taps = weight.to(wide).t().contiguous()
    for tile in _tiles(out):
        _convolve(padded, taps, bias, out, tile)
        if silu:
            F.silu(out[:, tile], inplace=True)
    if cu_seqlens is not None:
        out = out[:, places.tokens - (weight.shape[1] - 1)]
    return out.to(x.dtype), _states(padded, places.after, weight).to(x.dtype)


def backward(
    dy: Tensor,
    dlast: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients by x, weight, bias (also without one) and the state (also without one)."""
    wide, places = working_dtype(x, weight, bias), _places(x, weight, cu_seqlens)
    w = weight.shape[1]
    padded = _padded(x, state, places, wide)
    bias_dtype = weight.dtype if bias is None else bias.dtype
    bias = None if bias is None else bias.to(wide)
    taps = weight.to(wide).t().contiguous()
    # zeros around the gradient as well, so that its transpose is a convolution too
    g = padded.new_zeros(len(x), places.rows + w - 1, x.shape[2])
    g[:, places.tokens] = dy.to(wide)
    dtaps, dbias = torch.zeros_like(taps), torch.zeros_like(taps[0])
    inner = g[:, w - 1 : places.rows]
    room = torch.empty_like(inner[:, : _height(inner)])
    for tile in _tiles(inner):
        part = inner[:, tile]
        y = room[:, : part.shape[1]]
        if silu:
            _convolve(padded[:, tile.start :], taps, bias, y, slice(0, part.shape[1]))
            part.copy_(torch.ops.aten.silu_backward(part, y))
        dbias += part.sum((0, 1))
        for i in range(w):
            torch.mul(part, padded[:, tile.start + i : tile.stop + i], out=y)
            dtaps[i] += y.sum((0, 1))
    if silu and cu_seqlens is not None:  # a NaN stays in its sequence: between two stand zeros
        g = torch.zeros_like(g).index_copy_(1, places.tokens, g[:, places.tokens])
    dpadded = padded  # its numbers are not needed any more
    for tile in _tiles(dpadded):
        _convolve(g, taps.flip(0), None, dpadded, tile)
    if dlast is not None:  # a last state that nobody used
        dpadded[:, places.after] += dlast.to(wide).mT
    dx = dpadded[:, places.tokens].to(x.dtype, memory_format=torch.contiguous_format)
    dstate = _states(dpadded, places.before, weight).to(x.dtype)
    return dx, dtaps.t().to(weight.dtype).contiguous(), dbias.to(bias_dtype), dstate


def step_(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, state: Tensor) -> Tensor:
    """One token x (b d): y (b d), and `state` (b d w-1) moves on by one place."""
    wide = working_dtype(x, weight, bias)
    window = torch.cat([state, x[..., None]], dim=2)
    y = (window.to(wide) * weight.to(wide)).sum(2)
    y = y if bias is None else y + bias.to(wide)
    state.copy_(window[..., 1:])
    return (F.silu(y) if silu else y).to(x.dtype)


def working_dtype(x: Tensor, weight: Tensor, bias: Tensor | None) -> torch.dtype:
    wide = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    return wide if bias is None else torch.promote_types(wide, bias.dtype)


def _places(x: Tensor, weight: Tensor, cu_seqlens: Tensor | None) -> Places:
    t, before = x.shape[1], weight.shape[1] - 1
    if cu_seqlens is None:
        return Places(slice(before, before + t), slice(0, before), slice(t, None), t + before)
    s = len(cu_seqlens) - 1
    shift = torch.arange(s, device=x.device) * before  # rows for states before those of sequence k
    edge = torch.arange(before, device=x.device)
    begin, end = cu_seqlens[:-1].long() + shift, cu_seqlens[1:].long() + shift
    moved = torch.repeat_interleave(shift, cu_seqlens.diff(), output_size=t)
    tokens = torch.arange(before, t + before, device=x.device) + moved
    return Places(tokens, begin[:, None] + edge, end[:, None] + edge, t + s * before)


def _padded(x: Tensor, state: Tensor | None, places: Places, wide: torch.dtype) -> Tensor:
    padded = x.new_zeros(len(x), places.rows, x.shape[2], dtype=wide)
    padded[:, places.tokens] = x.to(wide)
    if state is not None:
        padded[:, places.before] = state.to(wide).mT
    return padded


def _states(padded: Tensor, rows: slice | Tensor, weight: Tensor) -> Tensor:
    """Those rows, w - 1 for each sequence, as a (b d w-1) or (s d w-1) of its own."""
    d, w = weight.shape
    return padded[:, rows].reshape(-1, w - 1, d).mT.clone(memory_format=torch.contiguous_format)


def _convolve(x: Tensor, taps: Tensor, bias: Tensor | None, y: Tensor, rows: slice) -> None:
    """Write y_j = bias + sum_i taps_i x_{j+i} for these rows; taps (w d)."""
    y = y[:, rows]
    start, stop = rows.start, rows.start + y.shape[1]
    if bias is None:
        torch.mul(x[:, start:stop], taps[0], out=y)
    else:
        torch.addcmul(bias, x[:, start:stop], taps[0], out=y)
    for i in range(1, len(taps)):
        y.addcmul_(x[:, start + i : stop + i], taps[i])


def _height(y: Tensor) -> int:
    """Rows of a tile; a GPU has no use for tiles that are launched one by one."""
    b, t, d = y.shape
    return t if y.is_cuda else min(t, max(8, TILE // (b * d)))


def _tiles(y: Tensor) -> list[slice]:
    t, height = y.shape[1], _height(y)
    return [slice(i, min(i + height, t)) for i in range(0, t, height)]
