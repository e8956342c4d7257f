"""What the kernels of the selective scan share: functions, and where a sequence lies."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def row(tile, at):
    """The one row of a tile (T, ...) at which `at` (T, 1) holds, as (1, ...).

    The rows of a tile lie in the registers of one thread and `at` is known to the compiler, so this
    is no instruction: an integer plus zeros is folded, where a float plus zeros would not be.
    """
    bits = tl.where(at, tile.to(tl.int32, bitcast=True), 0)
    return tl.sum(bits, 0, keep_dims=True).to(tl.float32, bitcast=True)


@triton.jit
def softplus(u):
    """log(1 + e^u), with a small relative error also where e^u is far below 1.

    1 + e^u is 2^i m with m near 1, and log m is a polynomial in m - 1. Where i = 0, m - 1 is e^u
    itself, not what is left of it after 1 was added.
    """
    e = tl.exp2(u * LOG2E)
    bits = (1.0 + e).to(tl.int32, bitcast=True)
    i = (bits - 0x3F3504F3) >> 23  # of sqrt(1/2)
    f = tl.where(i == 0, e, (bits - (i << 23)).to(tl.float32, bitcast=True) - 1.0)
    p = -0.14307497 + f * 0.0873475952
    p = -0.165705125 + f * (0.149179918 + f * p)
    p = -0.250017551 + f * (0.199620709 + f * p)
    p = -0.499999916 + f * (0.333339502 + f * p)
    return tl.where(u <= 20.0, i.to(tl.float32) * LN2 + (f + f * f * p), u)  # u also if it is NaN


@triton.jit
def sigmoid(u):
    root = tl.rsqrt(1.0 + tl.exp2(-u * LOG2E))  # a quotient would first be scaled
    return root * root


@triton.jit
def rows_of(ptr, left, G: tl.constexpr, N_PAD: tl.constexpr, T: tl.constexpr):
    """T rows of B and C side by side, (2 n,) each, zero from row `left` on.

    A row is one register of each lane, and so can be asked for a turn ahead. Where it is used, it
    is handed to all lanes through shared memory.
    """
    both, rows = tl.arange(0, 2 * N_PAD), ()
    for r in tl.static_range(T):
        rows = rows + (tl.load(ptr + r * (G * 2 * N_PAD) + both, mask=r < left, other=0.0),)
    return rows


@triton.jit
def apart(both, N_PAD: tl.constexpr):
    """B and C, (n, 1) each, of such a row."""
    b, c = tl.split(tl.permute(tl.reshape(both, (2, N_PAD)), (1, 0)))
    return b[:, None], c[:, None]


@triton.jit
def sequence(cu_ptr, i, t):
    """Row and length of sequence i: t rows of a batch of them, or what cu_seqlens says."""
    if cu_ptr is None:
        first, length = i.to(tl.int64) * t, t
    else:
        first = tl.load(cu_ptr + i).to(tl.int64)
        length = (tl.load(cu_ptr + i + 1) - first).to(tl.int32)
    return first, length


@triton.jit
def slot(cu_ptr, first, i, t, CHUNK: tl.constexpr):
    """Where the states kept for sequence i begin: one for each CHUNK tokens or part of them.

    first // CHUNK + i leaves every sequence of a pack enough room, whatever the lengths.
    """
    if cu_ptr is None:
        return i.to(tl.int64) * tl.cdiv(t, CHUNK)
    else:
        return first // CHUNK + i
