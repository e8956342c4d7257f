r"""S4D in one pass over x: the recurrence itself, with every state in registers.

$$h_t = a h_{t-1} + x_t, \qquad y_t = \mathrm{Re} \sum_n c_n h_{n,t} + D x_t$$

A program owns some channels, and walks over one segment of their tokens. Six multiply-adds per pole
and token, and no exponential: a is the same for every token, so this is the cheapest form there is
of a diagonal system, and it reads x once and writes y once. Turned around in time the same kernel
makes the gradient by x, since the transpose of a convolution is the convolution from the other end.

The parameters' gradients come from a walk forwards too, with the derivative of the state beside it:

$$p_t = \partial h_t / \partial a = a p_{t-1} + h_{t-1}, \qquad
\bar c = \sum_t \bar y_t h_t, \qquad \bar a = c \sum_t \bar y_t p_t$$

so that no state is ever stored but at the segments' starts. Segments are made where batch and
channels are too few for the device: their ends from zero, a scan over those, then the walk.

A rounded decay would be off by t roundings after t steps. What T steps lose, T (a - fl a) h, is
`k h`, and is given back with the first of them, inside its multiply-adds.

Pairs of real numbers stand for complex ones: a, k, c (d n 2), states (d b s n 2), s segments.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmlib.kernels.s4 import decay_scan_triton, vandermonde_triton


@triton.jit
def _own(n, d: tl.constexpr, block, poles, R: tl.constexpr, G: tl.constexpr, D: tl.constexpr):
    """What R rows of 32 threads own: channels, poles, and which of them exist, flat (R 32).

    Flat, because a one-dimensional tensor has a thread's numbers 32 apart in every version of
    Triton, as long as none promises that its neighbours can be loaded at once.
    """
    at = tl.arange(0, R * 32)
    channel = tl.max_contiguous(block * D + at % 32 % D, 1)
    k = (poles * R + at // 32) * G + at % 32 // D
    return channel, k, (k < n) & (channel < d)


@triton.jit
def _pair(ptr, at, inside, R: tl.constexpr):
    re = tl.load(ptr + 2 * at, mask=inside, other=0.0)
    im = tl.load(ptr + 2 * at + 1, mask=inside, other=0.0)
    return tl.reshape(re, (R, 32)), tl.reshape(im, (R, 32))


@triton.jit
def _store_pair(ptr, at, re, im, inside, R: tl.constexpr):
    tl.store(ptr + 2 * at, tl.reshape(re, (R * 32,)), mask=inside)
    tl.store(ptr + 2 * at + 1, tl.reshape(im, (R * 32,)), mask=inside)


@triton.jit
def _row(tile, j: tl.constexpr, T: tl.constexpr):
    """Row j, which lies in the same threads: no instruction, since x + -0.0 is x."""
    return tl.sum(tl.where(tl.arange(0, T)[:, None] == j, tile, -0.0), axis=0)


@triton.jit
def _times(a_re, a_im, h_re, h_im, x_re, x_im):
    """a h + x."""
    return a_re * h_re + (x_re - a_im * h_im), a_re * h_im + (x_im + a_im * h_re)


@triton.jit
def _read(re, im, c_re, c_im, skip, x, G: tl.constexpr, D: tl.constexpr):
    """The outputs of D channels: the poles of a thread, then those of G threads."""
    part = tl.sum(c_re * re, axis=0) - tl.sum(c_im * im, axis=0) + skip * x
    return tl.sum(tl.reshape(part, (G, D)), axis=0)


@triton.jit
def walk_kernel(
    x_ptr, a_ptr, k_ptr, c_ptr, skip_ptr, start_ptr, y_ptr, end_ptr,
    b, t, length, n, d: tl.constexpr,
    T: tl.constexpr, K: tl.constexpr, G: tl.constexpr, D: tl.constexpr,
    REVERSE: tl.constexpr, OUTPUT: tl.constexpr, STARTED: tl.constexpr,
):  # fmt: skip
    """One program: K G poles of D channels, the tokens of one segment, from either end."""
    dtype: tl.constexpr = a_ptr.dtype.element_ty
    block, row, segment = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    channel, k, inside = _own(n, d, block, 0, K, G, D)
    a_re, a_im = _pair(a_ptr, channel * n + k, inside, K)
    k_re, k_im = _pair(k_ptr, channel * n + k, inside, K)
    state = ((channel.to(tl.int64) * b + row) * tl.num_programs(2) + segment) * n + k
    if STARTED:
        re, im = _pair(start_ptr, state, inside, K)
    else:
        re, im = tl.zeros_like(a_re), tl.zeros_like(a_re)
    one, group, _ = _own(n, d, block, 0, 1, G, D)
    if OUTPUT:
        c_re, c_im = _pair(c_ptr, channel * n + k, inside, K)
        skip = tl.load(skip_ptr + one, mask=(group == 0) & (one < d), other=0.0)

    first = segment * length
    count = tl.minimum(length, t - first)
    stride: tl.constexpr = -d if REVERSE else d
    at = (row * t + first + (count - 1 if REVERSE else 0)) * d
    many, _, _ = _own(n, d, block, 0, T, G, D)
    here = x_ptr + at + many + tl.arange(0, T * 32) // 32 * stride
    out = block * D + tl.arange(0, D)
    there = y_ptr + at + out
    whole = count // T * T
    ahead = tl.load(here, mask=(many < d) & (whole > 0), other=0.0)
    for i in range(0, whole, T):
        tile = tl.reshape(ahead.to(dtype), (T, 32))
        here += T * stride
        ahead = tl.load(here, mask=(many < d) & (i + T < whole), other=0.0)
        for j in tl.static_range(T):
            x = _row(tile, j, T)
            if j == 0:
                x_re, x_im = _times(k_re, k_im, re, im, x[None, :], 0.0)
                re, im = _times(a_re, a_im, re, im, x_re, x_im)
            else:
                re, im = _times(a_re, a_im, re, im, x[None, :], 0.0)
            if OUTPUT:
                y = _read(re, im, c_re, c_im, skip, x, G, D)
                tl.store(there + j * stride, y.to(y_ptr.dtype.element_ty), mask=out < d)
        there += T * stride
    for i in range(whole, count):
        x = tl.load(x_ptr + at + one + i * stride, mask=one < d, other=0.0).to(dtype)
        re, im = _times(a_re, a_im, re, im, x[None, :], 0.0)
        if OUTPUT:
            y = _read(re, im, c_re, c_im, skip, x, G, D)
            tl.store(y_ptr + at + out + i * stride, y.to(y_ptr.dtype.element_ty), mask=out < d)
    _store_pair(end_ptr, state, re, im, inside, K)


@triton.jit
def sums_kernel(
    x_ptr, dy_ptr, a_ptr, k_ptr, start_ptr, by_c_ptr, by_a_ptr, end_ptr, by_skip_ptr,
    b, t, length, n, d: tl.constexpr,
    T: tl.constexpr, K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, STARTED: tl.constexpr,
):  # fmt: skip
    """As `walk_kernel`, forwards: sums of dy h, dy p and dy x, and the last p; p starts at zero."""
    dtype: tl.constexpr = a_ptr.dtype.element_ty
    block, poles = tl.program_id(0) // tl.cdiv(n, K * G), tl.program_id(0) % tl.cdiv(n, K * G)
    row, segment = tl.program_id(1).to(tl.int64), tl.program_id(2)
    channel, k, inside = _own(n, d, block, poles, K, G, D)
    a_re, a_im = _pair(a_ptr, channel * n + k, inside, K)
    k_re, k_im = _pair(k_ptr, channel * n + k, inside, K)
    state = ((channel.to(tl.int64) * b + row) * tl.num_programs(2) + segment) * n + k
    zero = tl.zeros_like(a_re)
    if STARTED:
        re, im = _pair(start_ptr, state, inside, K)
    else:
        re, im = zero, zero
    p_re, p_im, h_sum_re, h_sum_im, p_sum_re, p_sum_im = zero, zero, zero, zero, zero, zero
    x_sum = tl.zeros((32,), dtype)

    first = segment * length
    count = tl.minimum(length, t - first)
    many, _, _ = _own(n, d, block, 0, T, G, D)
    at = (row * t + first) * d + many + tl.arange(0, T * 32) // 32 * d
    whole = count // T * T
    x_ahead = tl.load(x_ptr + at, mask=(many < d) & (whole > 0), other=0.0)
    dy_ahead = tl.load(dy_ptr + at, mask=(many < d) & (whole > 0), other=0.0)
    for i in range(0, whole, T):
        x_tile = tl.reshape(x_ahead.to(dtype), (T, 32))
        dy_tile = tl.reshape(dy_ahead.to(dtype), (T, 32))
        at += T * d
        x_ahead = tl.load(x_ptr + at, mask=(many < d) & (i + T < whole), other=0.0)
        dy_ahead = tl.load(dy_ptr + at, mask=(many < d) & (i + T < whole), other=0.0)
        for j in tl.static_range(T):
            x, dy = _row(x_tile, j, T), _row(dy_tile, j, T)
            if j == 0:
                x_re, x_im = _times(k_re, k_im, re, im, x[None, :], 0.0)
                h_re, h_im = _times(k_re, k_im, p_re, p_im, re, im)
            else:
                x_re, x_im, h_re, h_im = x[None, :], 0.0, re, im
            p_re, p_im = _times(a_re, a_im, p_re, p_im, h_re, h_im)
            re, im = _times(a_re, a_im, re, im, x_re, x_im)
            h_sum_re += dy[None, :] * re
            h_sum_im += dy[None, :] * im
            p_sum_re += dy[None, :] * p_re
            p_sum_im += dy[None, :] * p_im
            x_sum += dy * x
    one, group, _ = _own(n, d, block, 0, 1, G, D)
    for i in range(whole, count):
        last = (row * t + first + i) * d + one
        x = tl.load(x_ptr + last, mask=one < d, other=0.0).to(dtype)
        dy = tl.load(dy_ptr + last, mask=one < d, other=0.0).to(dtype)
        p_re, p_im = _times(a_re, a_im, p_re, p_im, re, im)
        re, im = _times(a_re, a_im, re, im, x[None, :], 0.0)
        h_sum_re += dy[None, :] * re
        h_sum_im += dy[None, :] * im
        p_sum_re += dy[None, :] * p_re
        p_sum_im += dy[None, :] * p_im
        x_sum += dy * x
    _store_pair(by_c_ptr, state, h_sum_re, h_sum_im, inside, K)
    _store_pair(by_a_ptr, state, p_sum_re, p_sum_im, inside, K)
    _store_pair(end_ptr, state, p_re, p_im, inside, K)
    line = (one.to(tl.int64) * b + row) * tl.num_programs(2) + segment
    tl.store(by_skip_ptr + line, x_sum, mask=(group == 0) & (poles == 0) & (one < d))


class Plan(NamedTuple):
    """How a kernel is cut: T tokens at a time, K poles in a thread, G D threads for G K poles."""

    T: int
    K: int
    G: int
    D: int


PROGRAMS = 1024  # warps that fill a GPU of about 130 multiprocessors
SHORTEST = 256  # tokens of a segment, which is walked twice
WALK, SUMS = (8, 8), (8, 4)  # T and K: as many poles in a thread as leave it enough registers


def segment_length(b: int, t: int, d: int, n: int) -> int:
    """Tokens per segment: all of them, unless that would leave too few programs."""
    programs = b * triton.cdiv(d, _plan(n, *WALK).D)
    segments = max(1, min(PROGRAMS // programs, t // SHORTEST))
    return triton.cdiv(t, segments)


def forward(
    x: Tensor, log_a: Tensor, c: Tensor, skip: Tensor | None, length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """y (b t d), the last h (b d n 2), and the h before each segment of `length` tokens.

    x (b t d) of any float dtype, log_a (d n 2) float64, c (d n 2) and skip (d,) of the dtype to
    compute in. The third result, (d b s n 2), is empty where there is one segment.
    """
    starts = _starts(x, log_a, c, length, reverse=False)
    y, ends = _walk(x, log_a, c, skip, starts, length, reverse=False)
    return y, ends[:, :, -1].transpose(0, 1).contiguous(), starts


def backward(
    dy: Tensor,
    d_last: Tensor | None,
    x: Tensor,
    log_a: Tensor,
    c: Tensor,
    skip: Tensor | None,
    starts: Tensor,
    length: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients by x, log_a, c and skip."""
    after = _starts(dy, log_a, c, length, reverse=True)
    dx, _ = _walk(dy, log_a, c, skip, after, length, reverse=True)
    if d_last is not None:
        dx = dx + vandermonde_triton(_conj(d_last), log_a, x.shape[1]).flip(2).mT.to(dx.dtype)
    by_c, by_a, ends, by_skip = _sums(x, dy, log_a, c, starts, length)
    d_a = torch.view_as_complex(c) * by_a.sum((1, 2))
    if after.numel() or d_last is not None:
        d_a = d_a + (_adjoints(after, d_last, log_a, c, x.shape[1], length) * ends).sum((1, 2))
    d_log_a = torch.exp(torch.view_as_complex(log_a)) * d_a
    return dx, _pairs(d_log_a), _pairs(by_c.sum((1, 2))), by_skip.sum((1, 2))


def _adjoints(
    after: Tensor, d_last: Tensor | None, log_a: Tensor, c: Tensor, t: int, length: int
) -> Tensor | float:
    """What each segment's last h is worth to everything later: dL = Re(adjoint dh), (d b s n)."""
    out, log_a = 0.0, torch.view_as_complex(log_a)[:, None, None]
    if after.numel():
        out = (
            torch.exp(log_a)
            * torch.view_as_complex(c)[:, None, None]
            * torch.view_as_complex(after)
        )
    if d_last is not None:
        later = t - torch.arange(length, t + length, length, device=c.device).clamp(max=t)
        worth = torch.view_as_complex(_conj(d_last)).transpose(0, 1)  # (d b n)
        out = out + torch.exp(log_a * later[:, None]) * worth[:, :, None]
    return out


def _starts(x: Tensor, log_a: Tensor, c: Tensor, length: int, reverse: bool) -> Tensor:
    """The h that enters each segment (d b s n 2); empty where there is only one."""
    if length >= x.shape[1]:
        return c.new_empty(0)
    _, ends = _walk(x, log_a, c, None, c.new_empty(0), length, reverse, output=False)
    through = torch.exp(length * torch.view_as_complex(log_a))
    through = torch.view_as_real(through).to(c.dtype)
    return decay_scan_triton(ends, through, torch.zeros_like(ends[:, :, 0]), reverse)[0]


def _walk(
    x: Tensor,
    log_a: Tensor,
    c: Tensor,
    skip: Tensor | None,
    starts: Tensor,
    length: int,
    reverse: bool,
    output: bool = True,
) -> tuple[Tensor, Tensor]:
    """y (b t d), if asked for, and the h that leaves each segment (d b s n 2)."""
    (b, t, d), n, x = x.shape, c.shape[1], x.contiguous()
    plan, segments = _plan(n, *WALK), triton.cdiv(t, length)
    a, k = _rounded(log_a, c, plan.T)
    y = torch.empty_like(x) if output else x
    ends = c.new_empty(d, b, segments, n, 2)
    skip = c.new_zeros(d) if skip is None else skip
    walk_kernel[(triton.cdiv(d, plan.D), b, segments)](
        x, a, k, c.contiguous(), skip, starts, y, ends, b, t, length, n, d, **plan._asdict(),
        REVERSE=reverse, OUTPUT=output, STARTED=starts.numel() > 0, num_warps=1,
    )  # fmt: skip
    return y, ends


def _sums(
    x: Tensor, dy: Tensor, log_a: Tensor, c: Tensor, starts: Tensor, length: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per row and segment: sums of dy h and dy p, the last p (d b s n), and of dy x (d b s)."""
    (b, t, d), n, x, dy = x.shape, c.shape[1], x.contiguous(), dy.contiguous()
    plan, segments = _plan(n, *SUMS), triton.cdiv(t, length)
    a, k = _rounded(log_a, c, plan.T)
    by_c, by_a, ends = (c.new_empty(d, b, segments, n, 2) for _ in range(3))
    by_skip = c.new_empty(d, b, segments)
    blocks = triton.cdiv(d, plan.D) * triton.cdiv(n, plan.K * plan.G)
    sums_kernel[(blocks, b, segments)](
        x, dy, a, k, starts, by_c, by_a, ends, by_skip, b, t, length, n, d, **plan._asdict(),
        STARTED=starts.numel() > 0, num_warps=1,
    )  # fmt: skip
    return *(torch.view_as_complex(z) for z in (by_c, by_a, ends)), by_skip


def _plan(n: int, T: int, K: int) -> Plan:
    """One warp: K poles a thread, as many threads as that takes, other channels in the rest."""
    N = triton.next_power_of_2(n)
    G = min(32, max(1, N // K))
    return Plan(T, max(1, N // G), G, 32 // G)


def _rounded(log_a: Tensor, c: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """a in the dtype to compute in, and what that rounding loses in so many steps."""
    a = torch.view_as_real(torch.exp(torch.view_as_complex(log_a)))
    near = a.to(c.dtype)
    return near, (steps * (a - near)).to(c.dtype)


def _conj(pair: Tensor) -> Tensor:
    return torch.stack([pair[..., 0], -pair[..., 1]], dim=-1)


def _pairs(z: Tensor) -> Tensor:
    """The conjugate of z, in pairs: dL = Re(z dh) as PyTorch writes it."""
    return torch.stack([z.real, -z.imag], dim=-1)
