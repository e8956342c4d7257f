"""One token: every state is read and written once, and nothing else is of that size."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmlib.kernels.selective_scan.parts import LOG2E, sigmoid, softplus


@triton.jit
def step_kernel(
    x_ptr,
    dt_ptr,
    a_ptr,
    b_ptr,
    c_ptr,
    d_ptr,
    z_ptr,
    bias_ptr,
    old_ptr,
    new_ptr,
    y_ptr,
    D: tl.constexpr,
    G: tl.constexpr,
    N: tl.constexpr,
    N_PAD: tl.constexpr,
    WIDTH: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):
    """One program: WIDTH channels of one sequence. The states of a channel lie side by side."""
    i = tl.program_id(1).to(tl.int64)
    k = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    n = tl.arange(0, N_PAD)
    inside = k < D
    states = k[:, None] * N + n[None, :]
    real = inside[:, None] & (n < N)[None, :]
    h = tl.load(old_ptr + i * (D * N) + states, mask=real, other=0.0)
    A = tl.load(a_ptr + states, mask=real, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + i * D + k, mask=inside, other=0.0).to(tl.float32)
    dt = tl.load(dt_ptr + i * D + k, mask=inside, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        dt += tl.load(bias_ptr + k, mask=inside, other=0.0).to(tl.float32)
    if SOFTPLUS:
        dt = softplus(dt)
    if G == 1:
        of_group, has = i * N + n[None, :], (n < N)[None, :]
    else:
        of_group, has = (i * G + (k // (D // G))[:, None]) * N + n[None, :], real
    b = tl.load(b_ptr + of_group, mask=has, other=0.0).to(tl.float32)
    c = tl.load(c_ptr + of_group, mask=has, other=0.0).to(tl.float32)
    h = tl.exp2(dt[:, None] * (A * LOG2E)) * h + (dt * x)[:, None] * b
    tl.store(new_ptr + i * (D * N) + states, h, mask=real)
    y = tl.sum(h * c, 1)
    if d_ptr is not None:
        y += x * tl.load(d_ptr + k, mask=inside, other=0.0).to(tl.float32)
    if z_ptr is not None:
        z = tl.load(z_ptr + i * D + k, mask=inside, other=0.0).to(tl.float32)
        y *= z * sigmoid(z)
    tl.store(y_ptr + i * D + k, y.to(y_ptr.dtype.element_ty), mask=inside)


def step(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return y (b d) and the next state (b d n); x, dt, z (b d), B and C (b g n)."""
    new = torch.empty(state.shape, dtype=state.dtype, device=state.device)
    return _step(x, dt, A, B, C, D, z, dt_bias, dt_softplus, state.contiguous(), new), new


def step_(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    state: Tensor,
) -> Tensor:
    """The same with the next state written over `state`; return y."""
    if state.is_contiguous():
        return _step(x, dt, A, B, C, D, z, dt_bias, dt_softplus, state, state)
    y, new = step(x, dt, A, B, C, D, z, dt_bias, dt_softplus, state)
    state.copy_(new)
    return y


def _step(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    old: Tensor,
    new: Tensor,
) -> Tensor:
    if old.dtype != torch.float32:
        raise ValueError(
            f"state: expected dtype float32 for the kernel, got {old.dtype}; backend='torch' takes"
            " float64"
        )
    b, d, n = old.shape
    x, dt, A, B, C = (v.contiguous() for v in (x, dt, A, B, C))
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    n_pad = triton.next_power_of_2(n)
    width = max(1, 1024 // n_pad)
    step_kernel[(triton.cdiv(d, width), b)](
        x, dt, A, B, C, D, None if z is None else z.contiguous(), dt_bias, old, new, y, D=d,
        G=B.shape[1], N=n, N_PAD=n_pad, WIDTH=width, SOFTPLUS=dt_softplus, num_warps=4,
    )  # fmt: skip
    return y
