r"""The rungs of chapter 06: the selective scan as a ladder of kernels, one idea a step.

They are for reading. What a model runs is `ssmlib.kernels.selective_scan`, the last rung.

1. `tile_scan`: one tile holds a whole sequence, and a tree of `compose` scans it.
2. `chunked_scan`: tile after tile, with a carry in registers; any length.
3. `states_scan`: n states a channel live in registers, and only y leaves the chip.
4. `fused_scan`: decay and input of a state are made where they are used, never in memory.
5. `fused_backward`: the states come back by recomputation, a chunk at a time.
6. `step`: one token.

a, x, h (b t d); in rung 3 a and x (b t d n); x, dt, y (b t d), A (d n), B, C (b t n); states
(b d n). All contiguous, of any float dtype, A and the states float32; computed in float32. They
start from zero and know no softplus, no D, no gate.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def compose(a1, x1, a2, x2):
    """The step h -> a1 h + x1, and then the step h -> a2 h + x2, as one step."""
    return a2 * a1, a2 * x1 + x2


@triton.jit
def tile_scan_kernel(a_ptr, x_ptr, h_ptr, t, d, T: tl.constexpr, D: tl.constexpr):
    row = tl.arange(0, T)[:, None]
    channel = tl.program_id(1) * D + tl.arange(0, D)[None, :]
    at = (tl.program_id(0).to(tl.int64) * t + row) * d + channel
    inside = (row < t) & (channel < d)
    a = tl.load(a_ptr + at, mask=inside, other=1.0).to(tl.float32)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    _, h = tl.associative_scan((a, x), 0, compose)
    tl.store(h_ptr + at, h, mask=inside)


@triton.jit
def chunked_scan_kernel(a_ptr, x_ptr, h_ptr, t, d, T: tl.constexpr, D: tl.constexpr):
    row = tl.arange(0, T)[:, None]
    channel = tl.program_id(1) * D + tl.arange(0, D)[None, :]
    carry = tl.zeros((1, D), tl.float32)
    for start in range(0, t, T):
        at = (tl.program_id(0).to(tl.int64) * t + start + row) * d + channel
        inside = (start + row < t) & (channel < d)
        a = tl.load(a_ptr + at, mask=inside, other=1.0).to(tl.float32)
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        through, h = tl.associative_scan((a, x), 0, compose)
        h += through * carry
        tl.store(h_ptr + at, h, mask=inside)
        carry = tl.sum(tl.where(row == T - 1, h, 0.0), axis=0)[None, :]


@triton.jit
def states_scan_kernel(a_ptr, x_ptr, C_ptr, y_ptr, t, d, n, N: tl.constexpr, D: tl.constexpr):
    k = tl.arange(0, N)[:, None]
    channel = tl.program_id(1) * D + tl.arange(0, D)
    inside = (k < n) & (channel < d)[None, :]
    h = tl.zeros((N, D), tl.float32)
    for step in range(t):
        token = tl.program_id(0).to(tl.int64) * t + step
        at = (token * d + channel[None, :]) * n + k
        a = tl.load(a_ptr + at, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        h = a * h + x
        C = tl.load(C_ptr + token * n + k, mask=k < n, other=0.0).to(tl.float32)
        tl.store(y_ptr + token * d + channel, tl.sum(C * h, axis=0), mask=channel < d)


@triton.jit
def fused_scan_kernel(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, y_ptr, saved_ptr, t, d, n,
    S: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """On the way it saves the state before every S-th token, (b c d n), for the way back."""
    k = tl.arange(0, N)[:, None]
    channel = tl.program_id(1) * D + tl.arange(0, D)
    own, inside = channel < d, (k < n) & (channel < d)[None, :]
    A = tl.load(A_ptr + channel[None, :] * n + k, mask=inside, other=0.0)
    h = tl.zeros((N, D), tl.float32)
    for c in range(tl.cdiv(t, S)):
        chunk = tl.program_id(0).to(tl.int64) * tl.cdiv(t, S) + c
        tl.store(saved_ptr + (chunk * d + channel[None, :]) * n + k, h, mask=inside)
        for s in range(tl.minimum(S, t - c * S)):
            token = tl.program_id(0).to(tl.int64) * t + c * S + s
            x = tl.load(x_ptr + token * d + channel, mask=own, other=0.0).to(tl.float32)
            dt = tl.load(dt_ptr + token * d + channel, mask=own, other=0.0).to(tl.float32)
            B = tl.load(B_ptr + token * n + k, mask=k < n, other=0.0).to(tl.float32)
            C = tl.load(C_ptr + token * n + k, mask=k < n, other=0.0).to(tl.float32)
            h = tl.exp(dt[None, :] * A) * h + (dt * x)[None, :] * B
            tl.store(y_ptr + token * d + channel, tl.sum(C * h, axis=0), mask=own)


@triton.jit
def fused_backward_kernel(
    dy_ptr, x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, saved_ptr, chunk_ptr,
    dx_ptr, ddt_ptr, dA_ptr, dB_ptr, dC_ptr, t, d, n,
    S: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """dA (b d n); dB, dC (blocks b t n): one part for each block of D channels, added outside."""
    k = tl.arange(0, N)[:, None]
    batch, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = block * D + tl.arange(0, D)
    own, inside = channel < d, (k < n) & (channel < d)[None, :]
    A = tl.load(A_ptr + channel[None, :] * n + k, mask=inside, other=0.0)
    slot = chunk_ptr + (batch * S * d + channel[None, :]) * n + k
    dA, dh = tl.zeros((N, D), tl.float32), tl.zeros((N, D), tl.float32)
    chunks = tl.cdiv(t, S)
    for back in range(chunks):
        c = chunks - 1 - back
        h = tl.load(saved_ptr + ((batch * chunks + c) * d + channel[None, :]) * n + k, mask=inside)
        length = tl.minimum(S, t - c * S)
        for s in range(length):  # the chunk once more, each state kept as it was before its token
            token = batch * t + c * S + s
            tl.store(slot + s * d * n, h, mask=inside)
            x = tl.load(x_ptr + token * d + channel, mask=own, other=0.0).to(tl.float32)
            dt = tl.load(dt_ptr + token * d + channel, mask=own, other=0.0).to(tl.float32)
            B = tl.load(B_ptr + token * n + k, mask=k < n, other=0.0).to(tl.float32)
            h = tl.exp(dt[None, :] * A) * h + (dt * x)[None, :] * B
        tl.debug_barrier()  # what one thread has stored another may read
        for back_s in range(length):
            s = length - 1 - back_s
            token = batch * t + c * S + s
            x = tl.load(x_ptr + token * d + channel, mask=own, other=0.0).to(tl.float32)
            dt = tl.load(dt_ptr + token * d + channel, mask=own, other=0.0).to(tl.float32)
            dy = tl.load(dy_ptr + token * d + channel, mask=own, other=0.0).to(tl.float32)
            B = tl.load(B_ptr + token * n + k, mask=k < n, other=0.0).to(tl.float32)
            C = tl.load(C_ptr + token * n + k, mask=k < n, other=0.0).to(tl.float32)
            decayed = tl.exp(dt[None, :] * A) * tl.load(slot + s * d * n, mask=inside, other=0.0)
            dh += C * dy[None, :]
            h = decayed + (dt * x)[None, :] * B
            part = (block.to(tl.int64) * tl.num_programs(0) * t + token) * n + k
            tl.store(dC_ptr + part, tl.sum(h * dy[None, :], axis=1)[:, None], mask=k < n)
            tl.store(dB_ptr + part, tl.sum(dh * (dt * x)[None, :], axis=1)[:, None], mask=k < n)
            input_side, decay_side = tl.sum(dh * B, axis=0), dh * decayed
            ddt = input_side * x + tl.sum(decay_side * A, axis=0)
            tl.store(dx_ptr + token * d + channel, input_side * dt, mask=own)
            tl.store(ddt_ptr + token * d + channel, ddt, mask=own)
            dA += decay_side * dt[None, :]
            dh = tl.exp(dt[None, :] * A) * dh
        tl.debug_barrier()
    tl.store(dA_ptr + (batch * d + channel[None, :]) * n + k, dA, mask=inside)


@triton.jit
def step_kernel(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, h_ptr, y_ptr, d, n, N: tl.constexpr, D: tl.constexpr
):
    """One token; the state is read once and written once, in place."""
    k = tl.arange(0, N)[None, :]
    batch = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * D + tl.arange(0, D)
    own, inside = channel < d, (channel < d)[:, None] & (k < n)
    at = h_ptr + (batch * d + channel[:, None]) * n + k
    h = tl.load(at, mask=inside, other=0.0)
    A = tl.load(A_ptr + channel[:, None] * n + k, mask=inside, other=0.0)
    x = tl.load(x_ptr + batch * d + channel, mask=own, other=0.0).to(tl.float32)
    dt = tl.load(dt_ptr + batch * d + channel, mask=own, other=0.0).to(tl.float32)
    B = tl.load(B_ptr + batch * n + k, mask=k < n, other=0.0).to(tl.float32)
    C = tl.load(C_ptr + batch * n + k, mask=k < n, other=0.0).to(tl.float32)
    h = tl.exp(dt[:, None] * A) * h + (dt * x)[:, None] * B
    tl.store(at, h, mask=inside)
    tl.store(y_ptr + batch * d + channel, tl.sum(C * h, axis=1), mask=own)


def tile_scan(a: Tensor, x: Tensor, D: int = 32) -> Tensor:
    """Every h (b t d) of h_t = a_t h_{t-1} + x_t, t no longer than a tile."""
    (b, t, d), h = x.shape, torch.empty_like(x)
    grid = (b, triton.cdiv(d, D))
    tile_scan_kernel[grid](a, x, h, t, d, T=triton.next_power_of_2(t), D=D)
    return h


def chunked_scan(a: Tensor, x: Tensor, T: int = 64, D: int = 32) -> Tensor:
    """The same for any t, T steps at a time."""
    (b, t, d), h = x.shape, torch.empty_like(x)
    T = min(T, triton.next_power_of_2(t))
    chunked_scan_kernel[(b, triton.cdiv(d, D))](a, x, h, t, d, T=T, D=D)
    return h


def states_scan(a: Tensor, x: Tensor, C: Tensor, D: int = 64) -> Tensor:
    """y (b t d): a and x (b t d n) come from memory, the states stay in registers."""
    (b, t, d, n), N = a.shape, triton.next_power_of_2(a.shape[3])
    y = C.new_empty(b, t, d)
    grid = (b, triton.cdiv(d, D))
    states_scan_kernel[grid](a, x, C, y, t, d, n, N=N, D=D, num_warps=1)
    return y


def fused_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, S: int = 1 << 30, D: int = 64
) -> tuple[Tensor, Tensor]:
    """y (b t d), and the state before every S-th token, (b c d n); by default the first alone."""
    (b, t, d), n, y = x.shape, A.shape[1], torch.empty_like(x)
    saved = A.new_empty(b, triton.cdiv(t, S), d, n)
    fused_scan_kernel[(b, triton.cdiv(d, D))](
        x, dt, A, B, C, y, saved, t, d, n, S=S, N=triton.next_power_of_2(n), D=D, num_warps=1
    )
    return y, saved


def fused_backward(
    dy: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, saved: Tensor,
    S: int, D: int = 64,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dx, ddt, dA, dB, dC, from what `fused_scan` saved with the same S."""
    (b, t, d), n, blocks = x.shape, A.shape[1], triton.cdiv(x.shape[2], D)
    dx, ddt, dA = torch.empty_like(x), torch.empty_like(dt), A.new_empty(b, d, n)
    dB, dC = (A.new_empty(blocks, b, t, n) for _ in range(2))
    chunk = A.new_empty(b, S, d, n)
    fused_backward_kernel[(b, blocks)](
        dy, x, dt, A, B, C, saved, chunk, dx, ddt, dA, dB, dC, t, d, n,
        S=S, N=triton.next_power_of_2(n), D=D, num_warps=1,
    )  # fmt: skip
    return dx, ddt, dA.sum(0), dB.sum(0).to(B.dtype), dC.sum(0).to(C.dtype)


def step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, D: int = 32) -> Tensor:
    """y (b d) of one token, x, dt (b d), B, C (b n); the state h (b d n) is updated in place."""
    (b, d), n, y = x.shape, A.shape[1], torch.empty_like(x)
    step_kernel[(b, triton.cdiv(d, D))](
        x, dt, A, B, C, h, y, d, n, N=triton.next_power_of_2(n), D=D, num_warps=1
    )
    return y
