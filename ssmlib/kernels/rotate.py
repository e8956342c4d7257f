"""Rotary embedding on a GPU: a token's heads are read and written once, in their own dtype.

The angle is taken modulo a whole turn in float64, as float32 has no digits left for it at positions
that are far, and its sine and cosine once for all heads. The gradient is the same turn, back.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmlib.kernels.sizes import power_of_2


@triton.jit
def turn(position, rates_ptr, f, N: tl.constexpr):
    """Cosine and sine for features f, of which the first 2 N turn."""
    rate = tl.load(rates_ptr + f % N, mask=f < 2 * N, other=0.0).to(tl.float64)
    turns = position.to(tl.float64) * (rate * 0.15915494309189535)
    angle = (turns - tl.floor(turns)).to(tl.float32) * 6.283185307179586
    return tl.cos(angle), tl.sin(angle)


@triton.jit
def turned(x_ptr, f, inside, cos, sin, N: tl.constexpr):
    """Features f, each with its partner n pairs on or back; from 2 n on as they are."""
    x = tl.load(x_ptr + f, mask=inside, other=0.0).to(tl.float32)
    other = tl.where(f < N, f + N, f - N)
    partner = tl.load(x_ptr + other, mask=inside & (f < 2 * N), other=0.0).to(tl.float32)
    return tl.where(f < 2 * N, x * cos + tl.where(f < N, -partner, partner) * sin, x)


@triton.jit
def rotate_kernel(
    x_ptr, position_ptr, rates_ptr, y_ptr, t, h, x_row, x_token, x_head, position_row, sign,
    K: tl.constexpr, N: tl.constexpr, H_PAD: tl.constexpr, K_PAD: tl.constexpr,
):  # fmt: skip
    """One program: all heads of one token."""
    i = tl.program_id(0).to(tl.int64)
    row, token = i // t, i % t
    f, heads = tl.arange(0, K_PAD)[None, :], tl.arange(0, H_PAD)[:, None]
    cos, sin = turn(tl.load(position_ptr + row * position_row + token), rates_ptr, f, N)
    inside = (heads < h) & (f < K)
    at = x_ptr + row * x_row + token * x_token + heads * x_head
    y = turned(at, f, inside, cos, sin * sign, N)
    tl.store(y_ptr + (i * h + heads) * K + f, y.to(y_ptr.dtype.element_ty), mask=inside)


def rotate(x: Tensor, positions: Tensor, rates: Tensor, back: bool) -> Tensor:
    """x (b t h k) turned to positions (t,) or (b t), 2 n of k features, by rates (n,)."""
    b, t, h, k = x.shape
    x = x if x.stride(3) == 1 else x.contiguous()
    positions = positions if positions.stride(-1) == 1 else positions.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    pads = {"H_PAD": power_of_2(h), "K_PAD": power_of_2(k)}
    rotate_kernel[(b * t,)](
        x, positions, rates, y, t, h, *x.stride()[:3],
        positions.stride(0) if positions.ndim == 2 else 0, -1.0 if back else 1.0,
        K=k, N=len(rates), **pads, num_warps=min(max(pads["H_PAD"] * pads["K_PAD"] // 512, 1), 8),
    )  # fmt: skip
    return y
