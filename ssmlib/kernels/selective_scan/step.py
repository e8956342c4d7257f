"""One token: every state is read and written once, and nothing else is of that size."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda

from ssmlib.kernels.rows import starts_early
from ssmlib.kernels.selective_scan.parts import LOG2E, sigmoid, softplus
from ssmlib.kernels.sizes import cdiv, power_of_2


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
    x_row,
    dt_row,
    z_row,
    b_row,
    b_group,
    c_row,
    c_group,
    D: tl.constexpr,
    G: tl.constexpr,
    N: tl.constexpr,
    N_PAD: tl.constexpr,
    WIDTH: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One program: WIDTH channels of one sequence. The states of a channel lie side by side.

    EARLY: as in `kernels.rows`.
    """
    if EARLY:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    i = tl.program_id(1).to(tl.int64)
    k = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    n = tl.arange(0, N_PAD)
    inside = k < D
    states = k[:, None] * N + n[None, :]
    real = inside[:, None] & (n < N)[None, :]
    h = tl.load(old_ptr + i * (D * N) + states, mask=real, other=0.0)
    A = tl.load(a_ptr + states, mask=real, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + i * x_row + k, mask=inside, other=0.0).to(tl.float32)
    dt = tl.load(dt_ptr + i * dt_row + k, mask=inside, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        dt += tl.load(bias_ptr + k, mask=inside, other=0.0).to(tl.float32)
    if SOFTPLUS:
        dt = softplus(dt)
    if G == 1:
        group, has = tl.zeros([1, 1], tl.int64), (n < N)[None, :]
    else:
        group, has = (k // (D // G))[:, None].to(tl.int64), real
    b_ptr += i * b_row + group * b_group + n[None, :]
    c_ptr += i * c_row + group * c_group + n[None, :]
    b = tl.load(b_ptr, mask=has, other=0.0).to(tl.float32)
    c = tl.load(c_ptr, mask=has, other=0.0).to(tl.float32)
    h = tl.exp2(dt[:, None] * (A * LOG2E)) * h + (dt * x)[:, None] * b
    tl.store(new_ptr + i * (D * N) + states, h, mask=real)
    y = tl.sum(h * c, 1)
    if d_ptr is not None:
        y += x * tl.load(d_ptr + k, mask=inside, other=0.0).to(tl.float32)
    if z_ptr is not None:
        z = tl.load(z_ptr + i * z_row + k, mask=inside, other=0.0).to(tl.float32)
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
    x, dt, B, C = (v if v.stride(-1) == 1 else v.contiguous() for v in (x, dt, B, C))
    z = z if z is None or z.stride(-1) == 1 else z.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    n_pad, early = power_of_2(n), starts_early(x.device)
    width = max(1, 1024 // n_pad)
    step_kernel[(cdiv(d, width), b)](
        x, dt, A.contiguous(), B, C, D, z, dt_bias, old, new, y,
        x.stride(0), dt.stride(0), 0 if z is None else z.stride(0),
        *B.stride()[:2], *C.stride()[:2],
        D=d, G=B.shape[1], N=n, N_PAD=n_pad, WIDTH=width, SOFTPLUS=dt_softplus, EARLY=early,
        num_warps=4, **({"launch_pdl": True} if early else {}),
    )  # fmt: skip
    return y
