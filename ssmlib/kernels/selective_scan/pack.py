"""B and C in float32 and in the order in which the kernels walk through them."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmlib.kernels.selective_scan.layout import Plan
from ssmlib.kernels.sizes import cdiv

TOKENS = 64


@triton.jit(do_not_specialize=["t"])
def pack_kernel(
    b_ptr,
    c_ptr,
    by_token_ptr,
    by_state_ptr,
    t,
    pitch,
    B_B,
    B_T,
    B_G,
    B_N,
    C_B,
    C_T,
    C_G,
    C_N,
    N: tl.constexpr,
    N_PAD: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """One program: TOKENS tokens of one group of one sequence. Zero beyond t and N.

    by_token (b pitch g 2 N_PAD), B before C; by_state (2 b g N pitch), or None. B_T: the stride of
    a token of B.
    """
    group, i = tl.program_id(1), tl.program_id(2).to(tl.int64)
    now = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    n = tl.arange(0, N_PAD)
    real = (now < t)[:, None] & (n < N)[None, :]
    b = tl.load(b_ptr + i * B_B + now[:, None] * B_T + group * B_G + n[None, :] * B_N, mask=real)
    c = tl.load(c_ptr + i * C_B + now[:, None] * C_T + group * C_G + n[None, :] * C_N, mask=real)
    b, c = tl.where(real, b.to(tl.float32), 0.0), tl.where(real, c.to(tl.float32), 0.0)
    room = (now < pitch)[:, None]
    row = (i * pitch + now) * tl.num_programs(1) + group
    at = by_token_ptr + row[:, None] * (2 * N_PAD) + n[None, :]
    tl.store(at, b, mask=room)
    tl.store(at + N_PAD, c, mask=room)
    if by_state_ptr is not None:
        room &= (n < N)[None, :]
        lines = tl.num_programs(2) * tl.num_programs(1) * N
        row = (i * tl.num_programs(1) + group) * N + n
        at = by_state_ptr + row[None, :] * pitch + now[:, None]
        tl.store(at, b, mask=room)
        tl.store(at + tl.cast(lines, tl.int64) * pitch, c, mask=room)


def pack(
    plan: Plan, B: Tensor, C: Tensor, by_state: bool = False
) -> tuple[Tensor, Tensor | tuple[None, None]]:
    """B and C side by side, (b pitch g 2 n_pad), and, by state, as (2 b g n pitch)."""
    b, t, g, n = B.shape
    room = {"dtype": torch.float32, "device": B.device}
    tokens = torch.empty(b, plan.pitch, g, 2, plan.n_pad, **room)
    states = torch.empty(2, b, g, n, plan.pitch, **room) if by_state else None
    grid = (cdiv(plan.pitch, TOKENS), g, b)
    strides = (*B.stride(), *C.stride())
    pack_kernel[grid](
        B, C, tokens, states, t, plan.pitch, *strides, N=n, N_PAD=plan.n_pad, TOKENS=TOKENS,
        num_warps=4,
    )  # fmt: skip
    return tokens, (None, None) if states is None else states
