r"""S4D in one pass over x: the recurrence itself, with every state in registers.

$$h_t = a h_{t-1} + x_t, \qquad y_t = \mathrm{Re} \sum_n c_n h_{n,t} + D x_t$$

A program owns some channels, and walks over one segment of their tokens. a is the same for every
token, so that a step is six multiply-adds per pole, and x is read once and y written once. Turned
around in time the same kernel makes the gradient by x, since the transpose of a convolution is the
convolution from the other end.

The parameters' gradients come from a walk forwards, with the derivative of the state beside it:

$$p_t = \partial h_t / \partial a = a p_{t-1} + h_{t-1}, \qquad
\bar c = \sum_t \bar y_t h_t, \qquad \bar a = c \sum_t \bar y_t p_t$$

so that no state is ever stored but at the segments' starts. Segments are made where batch and
channels are too few for the device: their ends from zero, a scan over those, then the walk.

A rounded decay would be off by t roundings after t steps. What the T steps of a tile lose of h,
T (a - fl a) h, is given back with the first of them, inside its multiply-adds.

Pairs of real numbers stand for complex ones: a, c (d n 2), states (d b s n 2), s segments.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmlib.kernels.s4 import decay_scan_triton, vandermonde_triton
from ssmlib.kernels.sizes import cdiv, power_of_2


@triton.jit
def _place(d: tl.constexpr, D: tl.constexpr):
    """Which D channels, which row of the batch, which segment, and of how many."""
    blocks = tl.cdiv(d, D)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    return tl.program_id(0) % blocks, row, tl.program_id(1), tl.num_programs(1)


@triton.jit
def _own(n, d: tl.constexpr, block, R: tl.constexpr, G: tl.constexpr, D: tl.constexpr):
    """What R rows of 32 threads own: channels, poles, and which of them exist, flat (R 32).

    Flat, because a one-dimensional tensor has a thread's numbers 32 apart in every version of
    Triton, as long as none promises that its neighbours can be loaded at once.
    """
    at = tl.arange(0, R * 32)
    channel = tl.max_contiguous(block * D + at % 32 % D, 1)
    k = at // 32 * G + at % 32 // D
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
    x_ptr, a_ptr, lost_ptr, c_ptr, skip_ptr, start_ptr, y_ptr, end_ptr,
    b, t, length, n, d: tl.constexpr,
    T: tl.constexpr, K: tl.constexpr, G: tl.constexpr, D: tl.constexpr,
    REVERSE: tl.constexpr, OUTPUT: tl.constexpr, STARTED: tl.constexpr,
):  # fmt: skip
    """One program: K G poles of D channels, the tokens of one segment, from either end."""
    dtype: tl.constexpr = a_ptr.dtype.element_ty
    block, row, segment, segments = _place(d, D)
    channel, k, inside = _own(n, d, block, K, G, D)
    a_re, a_im = _pair(a_ptr, channel * n + k, inside, K)
    lost_re, lost_im = _pair(lost_ptr, channel * n + k, inside, K)
    state = ((channel.to(tl.int64) * b + row) * segments + segment) * n + k
    if STARTED:
        re, im = _pair(start_ptr, state, inside, K)
    else:
        re, im = tl.zeros_like(a_re), tl.zeros_like(a_re)
    one, group, _ = _own(n, d, block, 1, G, D)
    if OUTPUT:
        c_re, c_im = _pair(c_ptr, channel * n + k, inside, K)
        skip = tl.load(skip_ptr + one, mask=(group == 0) & (one < d), other=0.0)

    first = segment * length
    count = tl.minimum(length, t - first)
    stride: tl.constexpr = -d if REVERSE else d
    at = (row * t + first + (count - 1 if REVERSE else 0)) * d
    many, _, _ = _own(n, d, block, T, G, D)
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
                x_re, x_im = _times(lost_re, lost_im, re, im, x[None, :], 0.0)
                re, im = _times(a_re, a_im, re, im, x_re, x_im)
            else:
                re, im = _times(a_re, a_im, re, im, x[None, :], 0.0)
            if OUTPUT:
                y = _read(re, im, c_re, c_im, skip, x, G, D)
                tl.store(there + j * stride, y.to(y_ptr.dtype.element_ty), mask=out < d)
        there += T * stride
    at += tl.cast(whole, tl.int64) * stride
    for _ in range(whole, count):
        x = tl.load(x_ptr + at + one, mask=one < d, other=0.0).to(dtype)
        re, im = _times(a_re, a_im, re, im, x[None, :], 0.0)
        if OUTPUT:
            y = _read(re, im, c_re, c_im, skip, x, G, D)
            tl.store(y_ptr + at + out, y.to(y_ptr.dtype.element_ty), mask=out < d)
        at += stride
    _store_pair(end_ptr, state, re, im, inside, K)


@triton.jit
def sums_kernel(
    x_ptr, dy_ptr, a_ptr, lost_ptr, start_ptr, by_c_ptr, by_a_ptr, end_ptr, by_skip_ptr,
    b, t, length, n, d: tl.constexpr,
    T: tl.constexpr, K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, STARTED: tl.constexpr,
):  # fmt: skip
    """As `walk_kernel`, forwards: sums of dy h, dy p and dy x, and the last p; p starts at zero."""
    dtype: tl.constexpr = a_ptr.dtype.element_ty
    block, row, segment, segments = _place(d, D)
    channel, k, inside = _own(n, d, block, K, G, D)
    a_re, a_im = _pair(a_ptr, channel * n + k, inside, K)
    lost_re, lost_im = _pair(lost_ptr, channel * n + k, inside, K)
    state = ((channel.to(tl.int64) * b + row) * segments + segment) * n + k
    zero = tl.zeros_like(a_re)
    if STARTED:
        re, im = _pair(start_ptr, state, inside, K)
    else:
        re, im = zero, zero
    p_re, p_im, h_sum_re, h_sum_im, p_sum_re, p_sum_im = zero, zero, zero, zero, zero, zero
    x_sum = tl.zeros((32,), dtype)

    first = segment * length
    count = tl.minimum(length, t - first)
    many, _, _ = _own(n, d, block, T, G, D)
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
                x_re, x_im = _times(lost_re, lost_im, re, im, x[None, :], 0.0)
                h_re, h_im = _times(lost_re, lost_im, p_re, p_im, re, im)
            else:
                x_re, x_im, h_re, h_im = x[None, :], 0.0, re, im
            p_re, p_im = _times(a_re, a_im, p_re, p_im, h_re, h_im)
            re, im = _times(a_re, a_im, re, im, x_re, x_im)
            h_sum_re += dy[None, :] * re
            h_sum_im += dy[None, :] * im
            p_sum_re += dy[None, :] * p_re
            p_sum_im += dy[None, :] * p_im
            x_sum += dy * x
    one, group, _ = _own(n, d, block, 1, G, D)
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
    line = (one.to(tl.int64) * b + row) * segments + segment
    tl.store(by_skip_ptr + line, x_sum, mask=(group == 0) & (one < d))


class System(NamedTuple):
    """a, what TOKENS roundings of it lose, and c, (d n 2) in the dtype to compute in; log_a."""

    a: Tensor
    lost: Tensor
    c: Tensor
    log_a: Tensor


TOKENS, POLES = 8, 8  # of a tile, and of a thread: they leave it enough registers
PROGRAMS = 1024  # warps that fill a GPU of about 130 multiprocessors
SHORTEST = 2048  # tokens of a segment


def segment_length(b: int, t: int, d: int, n: int) -> int:
    """Tokens per segment: all of them, unless there are too few programs to fill a GPU.

    Segments are walked twice, and take more launches: fewer than four cost more than they bring.
    """
    programs = b * cdiv(d, _plan(n)["D"])
    segments = min(PROGRAMS // programs, t // SHORTEST)
    return cdiv(t, segments) if segments >= 4 else t


def forward(
    x: Tensor, log_a: Tensor, c: Tensor, skip: Tensor | None, length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """y (b t d), the last h (b d n 2), and the h before each segment of `length` tokens.

    x (b t d) of any float dtype, log_a (d n 2) float64, c (d n 2) and skip (d,) of the dtype to
    compute in. The third result, (d b s n 2), is empty where there is one segment.
    """
    x, system = x.contiguous(), _system(log_a, c)
    starts = _starts(x, system, length, reverse=False)
    y, ends = _walk(x, system, skip, starts, length, reverse=False)
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
    x, dy, system = x.contiguous(), dy.contiguous(), _system(log_a, c)
    after = _starts(dy, system, length, reverse=True)
    dx, _ = _walk(dy, system, skip, after, length, reverse=True)
    if d_last is not None:
        dx = dx + vandermonde_triton(_conj(d_last), log_a, x.shape[1]).flip(2).mT.to(dx.dtype)
    by_c, by_a, ends, by_skip = _sums(x, dy, system, starts, length)
    d_a = torch.view_as_complex(system.c) * by_a.sum((1, 2))
    if after.numel() or d_last is not None:
        d_a = d_a + (_adjoints(after, d_last, system, x.shape[1], length) * ends).sum((1, 2))
    d_log_a = torch.exp(torch.view_as_complex(log_a)) * d_a
    return dx, _pairs(d_log_a), _pairs(by_c.sum((1, 2))), by_skip.sum((1, 2))


def _adjoints(
    after: Tensor, d_last: Tensor | None, system: System, t: int, length: int
) -> Tensor | float:
    """What each segment's last h is worth to everything later: dL = Re(adjoint dh), (d b s n)."""
    worth, log_a = 0.0, torch.view_as_complex(system.log_a)[:, None, None]
    if after.numel():
        step = torch.exp(log_a) * torch.view_as_complex(system.c)[:, None, None]
        worth = step * torch.view_as_complex(after)
    if d_last is not None:
        later = t - torch.arange(length, t + length, length, device=d_last.device).clamp(max=t)
        at_last = torch.view_as_complex(_conj(d_last)).transpose(0, 1)[:, :, None]  # (d b 1 n)
        worth = worth + torch.exp(log_a * later[:, None]) * at_last
    return worth


def _starts(x: Tensor, system: System, length: int, reverse: bool) -> Tensor:
    """The h that enters each segment (d b s n 2); empty where there is only one."""
    nothing = system.c.new_empty(0)
    if length >= x.shape[1]:
        return nothing
    _, ends = _walk(x, system, None, nothing, length, reverse, output=False)
    through = torch.exp(length * torch.view_as_complex(system.log_a))
    through = torch.view_as_real(through).to(system.c.dtype)
    return decay_scan_triton(ends, through, torch.zeros_like(ends[:, :, 0]), reverse)[0]


def _walk(
    x: Tensor,
    system: System,
    skip: Tensor | None,
    starts: Tensor,
    length: int,
    reverse: bool,
    output: bool = True,
) -> tuple[Tensor, Tensor]:
    """y (b t d), x itself if no output is asked for, and the h that leaves each segment."""
    (b, t, d), (a, lost, c, _), n = x.shape, system, system.c.shape[1]
    plan, segments = _plan(n), cdiv(t, length)
    y, ends = torch.empty_like(x) if output else x, c.new_empty(d, b, segments, n, 2)
    skip = c.new_zeros(d) if skip is None else skip
    walk_kernel[(cdiv(d, plan["D"]) * b, segments)](
        x, a, lost, c, skip, starts, y, ends, b, t, length, n, d, **plan,
        REVERSE=reverse, OUTPUT=output, STARTED=starts.numel() > 0, num_warps=1,
    )  # fmt: skip
    return y, ends


def _sums(
    x: Tensor, dy: Tensor, system: System, starts: Tensor, length: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per row and segment: sums of dy h and dy p, the last p (d b s n), and of dy x (d b s)."""
    (b, t, d), (a, lost, c, _), n = x.shape, system, system.c.shape[1]
    plan, segments = _plan(n), cdiv(t, length)
    by_c, by_a, ends = c.new_empty(3, d, b, segments, n, 2).unbind()
    by_skip = c.new_empty(d, b, segments)
    sums_kernel[(cdiv(d, plan["D"]) * b, segments)](
        x, dy, a, lost, starts, by_c, by_a, ends, by_skip, b, t, length, n, d, **plan,
        STARTED=starts.numel() > 0, num_warps=1,
    )  # fmt: skip
    return *(torch.view_as_complex(z) for z in (by_c, by_a, ends)), by_skip


def _plan(n: int) -> dict[str, int]:
    """A program is a warp: K poles in a thread, G threads for all of them, D channels abreast."""
    N = power_of_2(n)
    G = min(32, max(1, N // POLES))
    return {"T": TOKENS, "K": N // G, "G": G, "D": 32 // G}


def _system(log_a: Tensor, c: Tensor) -> System:
    exact = torch.view_as_real(torch.exp(torch.view_as_complex(log_a)))
    a = exact.to(c.dtype)
    return System(a, (TOKENS * (exact - a)).to(c.dtype), c.contiguous(), log_a)


def _conj(pair: Tensor) -> Tensor:
    return torch.stack([pair[..., 0], -pair[..., 1]], dim=-1)


def _pairs(z: Tensor) -> Tensor:
    """The conjugate of z, in pairs: dL = Re(z dh) as PyTorch writes it."""
    return torch.stack([z.real, -z.imag], dim=-1)
