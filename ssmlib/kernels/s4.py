r"""Sums of powers, Cauchy sums and decaying scans: the twins of `ssmlib.s4` on a GPU.

None of them writes an (n, t) matrix. Of $\sum_n c_n z_n^i$ a program makes a tile of steps
$i = i_0 + a q + j$: the product of a matrix of coarse powers $c z^{i_0 + a q}$ with one of fine
powers $z^j$, so that 64 times 64 steps take 128 powers of each pole. The transpose multiplies a
tile of x with the fine powers, and every row of that with its coarse power. A Cauchy sum has no
such factors: it is fractions, made and added in registers. A scan is a loop over its steps.

Where float32 would lose the answer, one float64 operation keeps it: a phase is reduced to one turn
before its sine is taken, and the distance of a node from a pole is taken before it is rounded.
Everything else is in the dtype of the data, accumulators included.

Pairs of real numbers stand for complex ones: c, s (b d n 2), x, y (b d t), v (c d n 2), sums and
their gradients (c d f 2), log_z and a (d n 2), the last two in float64. float32 or float64 data.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmlib.kernels.sizes import cdiv, power_of_2


@triton.jit
def _cos_sin(turn, dtype: tl.constexpr):
    """Cosine and sine of 2 pi turn: the turn, in float64, to the nearest quarter, then Taylor.

    In float32, where tl.sin would carry a branch for large arguments that never come.
    """
    quarter = tl.floor(4.0 * turn + 0.5)
    x = ((4.0 * turn - quarter) * 1.5707963267948966).to(dtype)
    if dtype == tl.float64:
        cos, sin = tl.cos(x), tl.sin(x)
    else:
        u = x * x
        sin = x * (1.0 + u * (-1 / 6 + u * (1 / 120 + u * (-1 / 5040 + u / 362880))))
        cos = 1.0 + u * (-1 / 2 + u * (1 / 24 + u * (-1 / 720 + u * (1 / 40320 - u / 3628800))))
    which = quarter.to(tl.int64) & 3
    odd = (which & 1) == 1
    turned_cos, turned_sin = tl.where(odd, sin, cos), tl.where(odd, cos, sin)
    turned_cos = tl.where(((which + 1) & 2) == 2, -turned_cos, turned_cos)
    return turned_cos, tl.where((which & 2) == 2, -turned_sin, turned_sin)


@triton.jit
def _power(decay, turns, steps, dtype: tl.constexpr):
    """e^(decay steps) times the cosine and the sine of `turns steps` whole turns."""
    steps = steps.to(tl.float64)
    cos, sin = _cos_sin(turns * steps, dtype)
    size = tl.exp((decay * steps).to(dtype))
    return size * cos, size * sin


@triton.jit
def vandermonde_kernel(
    c_ptr,
    decay_ptr,
    turns_ptr,
    y_ptr,
    d,
    n,
    t,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    N: tl.constexpr,
):
    """One program: ROWS * COLS steps of one line of y, b * d + channel."""
    line = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * (ROWS * COLS)
    dtype: tl.constexpr = c_ptr.dtype.element_ty
    coarse, fine = first + tl.arange(0, ROWS) * COLS, tl.arange(0, COLS)
    y = tl.zeros((ROWS, COLS), dtype)
    for start in range(0, n, N):
        k = start + tl.arange(0, N)
        pole = (line % d) * n + k
        decay = tl.load(decay_ptr + pole, mask=k < n, other=0.0)
        turns = tl.load(turns_ptr + pole, mask=k < n, other=0.0)
        value = c_ptr + 2 * (line * n + k)
        c_re = tl.load(value, mask=k < n, other=0.0)[None, :]
        c_im = tl.load(value + 1, mask=k < n, other=0.0)[None, :]
        z_re, z_im = _power(decay[None, :], turns[None, :], coarse[:, None], dtype)
        u_re, u_im = c_re * z_re - c_im * z_im, c_re * z_im + c_im * z_re
        z_re, z_im = _power(decay[:, None], turns[:, None], fine[None, :], dtype)
        y = tl.dot(u_re, z_re, acc=y, input_precision="ieee", out_dtype=dtype)
        y = tl.dot(-u_im, z_im, acc=y, input_precision="ieee", out_dtype=dtype)
    steps = coarse[:, None] + fine[None, :]
    tl.store(y_ptr + line * t + steps, y, mask=steps < t)


@triton.jit
def project_kernel(
    x_ptr,
    decay_ptr,
    turns_ptr,
    s_ptr,
    d,
    n,
    t,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    N: tl.constexpr,
):
    """One program: all steps of one line of x, N poles. Zeros stand before x, up to whole tiles."""
    line = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * N + tl.arange(0, N)
    pole = (line % d) * n + k
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    decay = tl.load(decay_ptr + pole, mask=k < n, other=0.0)[None, :]
    turns = tl.load(turns_ptr + pole, mask=k < n, other=0.0)[None, :]
    i, j = tl.arange(0, ROWS), tl.arange(0, COLS)
    fine_re, fine_im = _power(decay, turns, (COLS - 1 - j)[:, None], dtype)
    s_re, s_im = tl.zeros((ROWS, N), dtype), tl.zeros((ROWS, N), dtype)
    whole = tl.cdiv(t, ROWS * COLS) * (ROWS * COLS)
    for first in range(0, whole, ROWS * COLS):
        at = first + i[:, None] * COLS + j[None, :] - (whole - t)
        x = tl.load(x_ptr + line * t + at, mask=at >= 0, other=0.0)
        re = tl.dot(x, fine_re, input_precision="ieee", out_dtype=dtype)
        im = tl.dot(x, fine_im, input_precision="ieee", out_dtype=dtype)
        left = whole - first - (i + 1) * COLS  # steps from the end of this row of the tile
        z_re, z_im = _power(decay, turns, left[:, None], dtype)
        s_re += re * z_re - im * z_im
        s_im += re * z_im + im * z_re
    out = s_ptr + 2 * (line * n + k)
    tl.store(out, tl.sum(s_re, axis=0), mask=k < n)
    tl.store(out + 1, tl.sum(s_im, axis=0), mask=k < n)


@triton.jit
def _fractions(s, w, a_re, a_im, dtype: tl.constexpr):
    """1/(is - wa) = x1 - i y1 and 1/(is - w conj a) = x2 - i y2."""
    x = (-w * a_re).to(dtype)
    y1, y2 = (s - w * a_im).to(dtype), (s + w * a_im).to(dtype)
    inv1, inv2 = 1.0 / (x * x + y1 * y1), 1.0 / (x * x + y2 * y2)
    return x * inv1, y1 * inv1, x * inv2, y2 * inv2


@triton.jit
def cauchy_kernel(
    v_ptr, a_ptr, s_ptr, w_ptr, out_ptr, c, d, n, f, C: tl.constexpr, F: tl.constexpr
):
    """One program: C numerators and F nodes of one channel."""
    channel = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * F + tl.arange(0, F)
    line = tl.program_id(2) * C + tl.arange(0, C)
    dtype = v_ptr.dtype.element_ty
    s = tl.load(s_ptr + k, mask=k < f, other=1.0)
    w = tl.load(w_ptr + k, mask=k < f, other=1.0)
    row = line.to(tl.int64) * d + channel
    re, im = tl.zeros((C, F), dtype), tl.zeros((C, F), dtype)
    for m in range(n):
        pole, value = a_ptr + 2 * (channel * n + m), v_ptr + 2 * (row * n + m)
        v_re = tl.load(value, mask=line < c, other=0.0)[:, None]
        v_im = tl.load(value + 1, mask=line < c, other=0.0)[:, None]
        x1, y1, x2, y2 = _fractions(s, w, tl.load(pole), tl.load(pole + 1), dtype)
        re += v_re * (x1 + x2)[None, :] + v_im * (y1 - y2)[None, :]
        im += v_im * (x1 - x2)[None, :] - v_re * (y1 + y2)[None, :]
    out = out_ptr + 2 * (row[:, None] * f + k[None, :])
    mask = (line < c)[:, None] & (k < f)[None, :]
    tl.store(out, re, mask=mask)
    tl.store(out + 1, im, mask=mask)


@triton.jit
def cauchy_backward_kernel(
    a_ptr, s_ptr, w_ptr, grad_ptr, by_v_ptr, by_pole_ptr, d, n, f, N: tl.constexpr, F: tl.constexpr
):
    """One program: all nodes of one numerator of one channel, N poles."""
    row = tl.program_id(0).to(tl.int64)
    m = tl.program_id(1) * N + tl.arange(0, N)
    pole = a_ptr + 2 * ((row % d) * n + m)
    dtype = grad_ptr.dtype.element_ty
    a_re = tl.load(pole, mask=m < n, other=-1.0)[:, None]
    a_im = tl.load(pole + 1, mask=m < n, other=0.0)[:, None]
    v_re, v_im = tl.zeros((N, F), dtype), tl.zeros((N, F), dtype)
    p_re, p_im = tl.zeros((N, F), dtype), tl.zeros((N, F), dtype)
    for first in range(0, f, F):
        k = first + tl.arange(0, F)
        s = tl.load(s_ptr + k, mask=k < f, other=1.0)[None, :]
        w = tl.load(w_ptr + k, mask=k < f, other=1.0)[None, :]
        at = grad_ptr + 2 * (row * f + k)
        g_re = tl.load(at, mask=k < f, other=0.0)[None, :]
        g_im = tl.load(at + 1, mask=k < f, other=0.0)[None, :]
        x1, y1, x2, y2 = _fractions(s, w, a_re, a_im, dtype)
        v_re += g_re * (x1 + x2) - g_im * (y1 + y2)
        v_im += g_re * (y1 - y2) + g_im * (x1 - x2)
        g_re, g_im = g_re * w.to(dtype), g_im * w.to(dtype)
        one, two = x1 * x1 - y1 * y1, x2 * x2 - y2 * y2
        y1, y2 = 2.0 * x1 * y1, 2.0 * x2 * y2
        p_re += g_re * (one + two) - g_im * (y1 + y2)
        p_im += g_re * (y1 - y2) + g_im * (one - two)
    out = 2 * (row * n + m)
    tl.store(by_v_ptr + out, tl.sum(v_re, axis=1), mask=m < n)
    tl.store(by_v_ptr + out + 1, tl.sum(v_im, axis=1), mask=m < n)
    tl.store(by_pole_ptr + out, tl.sum(p_re, axis=1), mask=m < n)
    tl.store(by_pole_ptr + out + 1, tl.sum(p_im, axis=1), mask=m < n)


@triton.jit
def decay_scan_kernel(
    x_ptr, z_ptr, start_ptr, states_ptr, last_ptr, b, c, n, N: tl.constexpr, REVERSE: tl.constexpr
):
    """One program: N of the n entries of one line (channel, batch), all c steps of h <- z h + x."""
    line = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * N + tl.arange(0, N)
    inside = k < n
    z_re = tl.load(z_ptr + 2 * ((line // b) * n + k), mask=inside, other=0.0)
    z_im = tl.load(z_ptr + 2 * ((line // b) * n + k) + 1, mask=inside, other=0.0)
    re = tl.load(start_ptr + 2 * (line * n + k), mask=inside, other=0.0)
    im = tl.load(start_ptr + 2 * (line * n + k) + 1, mask=inside, other=0.0)
    for step in range(c):
        at = 2 * ((line * c + (c - 1 - step if REVERSE else step)) * n + k)
        tl.store(states_ptr + at, re, mask=inside)
        tl.store(states_ptr + at + 1, im, mask=inside)
        x_re = tl.load(x_ptr + at, mask=inside, other=0.0)
        x_im = tl.load(x_ptr + at + 1, mask=inside, other=0.0)
        re, im = x_re + z_re * re - z_im * im, x_im + z_re * im + z_im * re
    tl.store(last_ptr + 2 * (line * n + k), re, mask=inside)
    tl.store(last_ptr + 2 * (line * n + k) + 1, im, mask=inside)


def vandermonde_triton(c: Tensor, log_z: Tensor, length: int) -> Tensor:
    b, d, n, _ = c.shape
    y = c.new_empty(b, d, length)
    rows = cols = _side(length, 64 if c.dtype == torch.float32 else 32)
    grid = (b * d, cdiv(length, rows * cols))
    vandermonde_kernel[grid](
        c.contiguous(), *_polar(log_z), y, d, n, length, ROWS=rows, COLS=cols, N=16, num_warps=4
    )
    return y


def project_triton(x: Tensor, log_z: Tensor) -> Tensor:
    (b, d, t), n = x.shape, log_z.shape[1]
    s = x.new_empty(b, d, n, 2)
    rows, cols = _side(t, 32), _side(t, 64 if x.dtype == torch.float32 else 32)
    N = 16 if n <= 16 or x.dtype != torch.float32 else 32
    grid = (b * d, cdiv(n, N))
    project_kernel[grid](
        x.contiguous(), *_polar(log_z), s, d, n, t, ROWS=rows, COLS=cols, N=N, num_warps=4
    )
    return s


def decay_scan_triton(x: Tensor, z: Tensor, start: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """x (d b c n 2), z (d n 2), start (d b n 2); the h before each step, and the last one."""
    d, b, c, n, _ = x.shape
    x, start = x.contiguous(), start.contiguous()
    states, last = torch.empty_like(x), torch.empty_like(start)
    N = min(64, power_of_2(n))
    decay_scan_kernel[(d * b, cdiv(n, N))](
        x, z.contiguous(), start, states, last, b, c, n, N=N, REVERSE=reverse, num_warps=1
    )
    return states, last


def cauchy_triton(v: Tensor, a: Tensor, length: int) -> Tensor:
    (c, d, n, _), (s, w) = v.shape, _nodes(length, v.device)
    out = v.new_empty(c, d, len(s), 2)
    C, F = min(4, power_of_2(c)), min(256, power_of_2(len(s)))
    grid = (d, cdiv(len(s), F), cdiv(c, C))
    cauchy_kernel[grid](
        v.contiguous(), a.contiguous(), s, w, out, c, d, n, len(s), C=C, F=F, num_warps=4
    )
    return out


def cauchy_backward_triton(a: Tensor, grad: Tensor, length: int) -> tuple[Tensor, Tensor]:
    (c, d, f, _), n, (s, w) = grad.shape, a.shape[1], _nodes(length, grad.device)
    by_v, by_pole = (grad.new_empty(c, d, n, 2) for _ in range(2))
    N, F = 8, min(128, power_of_2(f))
    grid = (c * d, cdiv(n, N))
    cauchy_backward_kernel[grid](
        a.contiguous(), s, w, grad.contiguous(), by_v, by_pole, d, n, f, N=N, F=F, num_warps=4
    )
    return by_v, by_pole


def _polar(log_z: Tensor) -> tuple[Tensor, Tensor]:
    """Decay per step, and turns per step within one turn, float64 (d n)."""
    turns = log_z[..., 1] / (2 * math.pi)
    return log_z[..., 0].contiguous(), (turns - turns.round()).contiguous()


def _side(length: int, largest: int) -> int:
    """The side of a tile of steps: what a square of them fills, between 16 and `largest`."""
    return max(16, min(largest, power_of_2(math.isqrt(length - 1) + 1)))


def _nodes(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`ssmlib.s4.nodes`, which a kernel may not import."""
    k = torch.arange(length // 2 + 1, dtype=torch.float64, device=device)
    return 2 * torch.sin(math.pi * k / length), torch.sin(math.pi * (length - 2 * k) / (2 * length))
