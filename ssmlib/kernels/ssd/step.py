"""One token: every state is read and written once, and nothing else is of that size."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda

from ssmlib.kernels.rows import starts_early
from ssmlib.kernels.selective_scan.parts import LOG2E, sigmoid, softplus
from ssmlib.kernels.sizes import cdiv, power_of_2
from ssmlib.kernels.ssd.layout import skip_strides

SIZE = 2048  # states of a program; half as many where there are fewer channels than MANY
MANY = 4096


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
    H,
    per_group,
    x_b,
    x_h,
    x_p,
    dt_b,
    dt_h,
    b_b,
    b_g,
    b_n,
    c_b,
    c_g,
    c_n,
    d_h,
    d_p,
    z_b,
    z_h,
    z_p,
    old_b,
    old_h,
    old_p,
    old_n,
    new_b,
    new_h,
    new_p,
    new_n,
    P: tl.constexpr,
    N: tl.constexpr,
    N_PAD: tl.constexpr,
    WIDTH: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One program: WIDTH channels of one head of one sequence. EARLY: as in `kernels.rows`."""
    if EARLY:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    blocks: tl.constexpr = (P + WIDTH - 1) // WIDTH
    i = tl.program_id(1).to(tl.int64)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    k = (tl.program_id(0) % blocks) * WIDTH + tl.arange(0, WIDTH)
    n = tl.arange(0, N_PAD)
    is_p, is_n = k < P, n < N
    real = is_p[:, None] & is_n[None, :]
    old_ptr += i * old_b + head * old_h
    h = tl.load(old_ptr + k[:, None] * old_p + n[None, :] * old_n, mask=real, other=0.0)
    group = head // per_group
    b = tl.load(b_ptr + i * b_b + group * b_g + n * b_n, mask=is_n, other=0.0).to(tl.float32)
    c = tl.load(c_ptr + i * c_b + group * c_g + n * c_n, mask=is_n, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + i * x_b + head * x_h + k * x_p, mask=is_p, other=0.0).to(tl.float32)
    dt = tl.load(dt_ptr + i * dt_b + head * dt_h).to(tl.float32)
    if bias_ptr is not None:
        dt += tl.load(bias_ptr + head).to(tl.float32)
    if SOFTPLUS:
        dt = softplus(dt)
    decay = tl.exp2(dt * (tl.load(a_ptr + head).to(tl.float32) * LOG2E))
    h = decay * h + (dt * x)[:, None] * b[None, :]
    new_ptr += i * new_b + head * new_h
    tl.store(new_ptr + k[:, None] * new_p + n[None, :] * new_n, h, mask=real)
    y = tl.sum(h * c[None, :], 1)
    if d_ptr is not None:
        y += x * tl.load(d_ptr + head * d_h + k * d_p, mask=is_p, other=0.0).to(tl.float32)
    if z_ptr is not None:
        z = tl.load(z_ptr + i * z_b + head * z_h + k * z_p, mask=is_p, other=0.0).to(tl.float32)
        y *= z * sigmoid(z)
    tl.store(y_ptr + (i * H + head) * P + k, y.to(y_ptr.dtype.element_ty), mask=is_p)


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
    """Return y (b h p) and the next state (b h p n); x, z (b h p), dt (b h), B and C (b g n)."""
    new = torch.empty(state.shape, dtype=torch.float32, device=state.device)
    return _step(x, dt, A, B, C, D, z, dt_bias, dt_softplus, state, new), new


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
    return _step(x, dt, A, B, C, D, z, dt_bias, dt_softplus, state, state)


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
    """Strides are arguments: nothing is copied first, whatever it is a view of."""
    b, h, p, n = old.shape
    y = torch.empty((b, h, p), dtype=x.dtype, device=x.device)
    bias = None if dt_bias is None else dt_bias.contiguous()
    n_pad = power_of_2(n)
    size, early = SIZE if b * h * p >= MANY else SIZE // 2, starts_early(x.device)
    width = min(power_of_2(p), max(1, size // n_pad))
    step_kernel[(h * cdiv(p, width), b)](
        x, dt, A.contiguous(), B, C, D, z, bias, old, new, y, h, h // B.shape[1],
        *x.stride(), *dt.stride(), *B.stride(), *C.stride(), *skip_strides(D),
        *((0, 0, 0) if z is None else z.stride()), *old.stride(), *new.stride(),
        P=p, N=n, N_PAD=n_pad, WIDTH=width, SOFTPLUS=dt_softplus, EARLY=early, num_warps=8,
        **({"launch_pdl": True} if early else {}),
    )  # fmt: skip
    return y
