"""One query for each head against a cache, which is read once: attention's step of decoding.

`attend` is the attention alone. `step_` first turns the query and key to their position and writes
key and value to their slot, in one launch, and counts the token at the end of the last one.

The keys of a head are shared out to many programs, as one could not draw on a GPU's whole bandwidth
(Flash-Decoding, Dao et al. 2023). Each holds the online softmax of its share; a second kernel joins
them. How many slots are filled is read on the device, so a CUDA graph can hold a growing cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmlib.kernels.rotate import turn, turned
from ssmlib.kernels.sizes import cdiv, power_of_2

LOG2E = tl.constexpr(1.4426950408889634)
TILE = 64  # keys at a time
PROGRAMS = 264  # two for each of an H100's multiprocessors
MOST_SHARES = 128


@triton.jit
def enter_kernel(
    q_ptr, k_ptr, v_ptr, rates_ptr, asked_ptr, keys_ptr, values_ptr, position_ptr, m,
    k_row, k_slot, k_head, v_row, v_slot, v_head,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, N: tl.constexpr,
    K_PAD: tl.constexpr, V_PAD: tl.constexpr,
):  # fmt: skip
    """One program: a query head, or a key head and its value. 2 N of K features turn."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    f, o = tl.arange(0, K_PAD), tl.arange(0, V_PAD)
    position = tl.load(position_ptr + row)
    cos, sin = 1.0, 0.0
    if N > 0:
        cos, sin = turn(position, rates_ptr + row * N, f, N)
    if head < H:
        at = (row * H + head) * K
        x = turned(q_ptr + at, f, f < K, cos, sin, N)
        tl.store(asked_ptr + at + f, x.to(asked_ptr.dtype.element_ty), mask=f < K)
    else:
        slot, group = position % m, head - H
        to_key = row * k_row + slot * k_slot + group * k_head
        x = turned(k_ptr + (row * G + group) * K, f, f < K, cos, sin, N)
        tl.store(keys_ptr + to_key + f, x.to(keys_ptr.dtype.element_ty), mask=f < K)
        v = tl.load(v_ptr + (row * G + group) * V + o, mask=o < V, other=0.0)
        to_value = row * v_row + slot * v_slot + group * v_head
        tl.store(values_ptr + to_value + o, v, mask=o < V)


@triton.jit
def shares_kernel(
    q_ptr, k_ptr, v_ptr, count_ptr, mixed_ptr, top_ptr, total_ptr, scale, m,
    k_row, k_slot, k_head, v_row, v_slot, v_head,
    G: tl.constexpr, R: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    R_PAD: tl.constexpr, K_PAD: tl.constexpr, V_PAD: tl.constexpr,
    SHARES: tl.constexpr, TILE: tl.constexpr, EXACT: tl.constexpr, NEW: tl.constexpr,
):  # fmt: skip
    """One program: the R queries that read one key head, and one share of its keys."""
    i, share = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, head = i // G, i % G
    r, f, o = tl.arange(0, R_PAD), tl.arange(0, K_PAD), tl.arange(0, V_PAD)
    asked = (r < R)[:, None] & (f < K)[None, :]
    q = tl.load(q_ptr + (i * R + r)[:, None] * K + f[None, :], mask=asked, other=0.0)
    q = q.to(tl.float32) if EXACT else q
    count = tl.minimum(tl.load(count_ptr + row) + NEW, m).to(tl.int32)
    each = tl.cdiv(tl.cdiv(count, TILE), SHARES) * TILE
    first = share * each
    last = tl.minimum(first + each, count)
    k_ptr += row * k_row + head * k_head
    v_ptr += row * v_row + head * v_head
    top = tl.full((R_PAD,), float("-inf"), tl.float32)
    total = tl.zeros((R_PAD,), tl.float32)
    mixed = tl.zeros((R_PAD, V_PAD), tl.float32)
    for start in range(first, last, TILE):
        slot = start + tl.arange(0, TILE)
        filled, at = slot < last, slot.to(tl.int64)
        k = tl.load(
            k_ptr + at[:, None] * k_slot + f[None, :],
            mask=filled[:, None] & (f < K)[None, :],
            other=0.0,
        )
        v = tl.load(
            v_ptr + at[:, None] * v_slot + o[None, :],
            mask=filled[:, None] & (o < V)[None, :],
            other=0.0,
        )
        if EXACT:
            k, v = k.to(tl.float32), v.to(tl.float32)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2E)
        scores = tl.where(filled[None, :], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        shrink, weights = tl.exp2(top - higher), tl.exp2(scores - higher[:, None])
        total = shrink * total + tl.sum(weights, 1)
        mixed = shrink[:, None] * mixed + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        top = higher
    at = (i * SHARES + share) * R_PAD + r
    tl.store(top_ptr + at, top)
    tl.store(total_ptr + at, total)
    tl.store(mixed_ptr + at[:, None] * V_PAD + o[None, :], mixed)


@triton.jit
def join_kernel(
    mixed_ptr, top_ptr, total_ptr, y_ptr, count_ptr,
    G: tl.constexpr, R: tl.constexpr, V: tl.constexpr, R_PAD: tl.constexpr, V_PAD: tl.constexpr,
    SHARES: tl.constexpr, NEW: tl.constexpr,
):  # fmt: skip
    """One program: one query, all shares of its keys. A row's first one counts the new token."""
    i, r = tl.program_id(0).to(tl.int64), tl.program_id(1)
    s, o = tl.arange(0, SHARES), tl.arange(0, V_PAD)
    at = (i * SHARES + s) * R_PAD + r
    top = tl.load(top_ptr + at)
    weight = tl.exp2(top - tl.max(top, 0))
    total = tl.sum(weight * tl.load(total_ptr + at), 0)
    mixed = tl.load(mixed_ptr + at[:, None] * V_PAD + o[None, :])
    y = tl.sum(weight[:, None] * mixed, 0) / total
    tl.store(y_ptr + (i * R + r) * V + o, y.to(y_ptr.dtype.element_ty), mask=o < V)
    counts = (i % G == 0) & (r == 0) & (NEW > 0)
    tl.store(count_ptr + i // G, tl.load(count_ptr + i // G) + NEW, mask=counts)


def attend(
    q: Tensor, k: Tensor, v: Tensor, count: Tensor, scale: float, exact: bool, new: int = 0
) -> Tensor:
    """y (b h v) of q (b h k), k (b m g k), v (b m g v), of which the first count (b,) slots count.

    exact: widen what is loaded to float32, which the interpreter needs of bfloat16. new: slots that
    count beside, and are counted in the end.
    """
    (b, h, size), (m, g), width = q.shape, k.shape[1:3], v.shape[3]
    k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (k, v))
    r_pad = max(16, power_of_2(h // g))
    k_pad, v_pad = (max(16, power_of_2(x)) for x in (size, width))
    wanted = min(cdiv(m, 4 * TILE), cdiv(PROGRAMS, b * g), MOST_SHARES)
    shares = power_of_2(max(1, wanted))
    wide = {"dtype": torch.float32, "device": q.device}
    mixed = torch.empty(b * g, shares, r_pad, v_pad, **wide)
    top, total = torch.empty(2, b * g, shares, r_pad, **wide)
    y = q.new_empty(b, h, width)
    shares_kernel[(b * g, shares)](
        q.contiguous(), k, v, count, mixed, top, total, scale, m,
        *k.stride()[:3], *v.stride()[:3], G=g, R=h // g, K=size, V=width,
        R_PAD=r_pad, K_PAD=k_pad, V_PAD=v_pad, SHARES=shares, TILE=TILE, EXACT=exact, NEW=new,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    join_kernel[(b * g, h // g)](
        mixed, top, total, y, count, G=g, R=h // g, V=width, R_PAD=r_pad, V_PAD=v_pad,
        SHARES=shares, NEW=new, num_warps=4,
    )  # fmt: skip
    return y


def step_(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    rates: Tensor | None,
    scale: float,
    exact: bool,
) -> Tensor:
    """y (b h v) of a token's q (b h k), k (b g k), v (b g v); keys, values, position move on.

    rates (b n): in float64, how far the pairs of q and k turn from one position to the next.
    """
    (b, h, size), (m, g), width = q.shape, keys.shape[1:3], values.shape[3]
    q, k, v = (x.contiguous() for x in (q, k, v))
    asked = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    enter_kernel[(b, h + g)](
        q, k, v, rates, asked, keys, values, position, m,
        *keys.stride()[:3], *values.stride()[:3], H=h, G=g, K=size, V=width,
        N=0 if rates is None else rates.shape[1],
        K_PAD=power_of_2(size), V_PAD=power_of_2(width), num_warps=1,
    )  # fmt: skip
    return attend(asked, keys, values, position, scale, exact, new=1)
