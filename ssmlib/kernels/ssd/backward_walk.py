"""The gradient of the state: one program walks from the last token of a head to the first."""

import triton
import triton.language as tl

from ssmlib.kernels.selective_scan.parts import sequence, sigmoid, slot
from ssmlib.kernels.ssd.parts import row_of


@triton.jit(do_not_specialize=["t"])
def adjoint_kernel(
    dy_ptr,
    c_ptr,
    z_ptr,
    log_ptr,
    d_last_ptr,
    cu_ptr,
    kept_ptr,
    d_state_ptr,
    first_row,
    t,
    H,
    per_group,
    c_b,
    c_t,
    c_g,
    z_b,
    z_t,
    z_h,
    P: tl.constexpr,
    N: tl.constexpr,
    N_PAD: tl.constexpr,
    WIDTH: tl.constexpr,
    Q: tl.constexpr,
    KEEP: tl.constexpr,
    STAGES: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: N_PAD states of WIDTH channels of a head of one sequence, Q tokens a turn.

    Leaves the gradient by the state after each KEEP tokens in kept_ptr, (slots h n p), where the
    forward pass has left the state before them. It starts at the slots of sequence `first_row`.
    """
    wide: tl.constexpr = (P + WIDTH - 1) // WIDTH
    deep: tl.constexpr = (N + N_PAD - 1) // N_PAD
    head, i = tl.program_id(0) // (wide * deep), first_row + tl.program_id(1)
    p = (tl.program_id(0) % wide) * WIDTH + tl.arange(0, WIDTH)
    n = (tl.program_id(0) // wide % deep) * N_PAD + tl.arange(0, N_PAD)
    q = tl.arange(0, Q)
    is_p, is_n = (p < P)[None, :], (n < N)[:, None]
    first, length = sequence(cu_ptr, i, t)
    row = i.to(tl.int64) if cu_ptr is None else first * 0
    begin = first * 0 if cu_ptr is None else first
    dy_ptr += (first * H + head) * P + p[None, :]
    c_ptr += row * c_b + begin * c_t + tl.cast(head // per_group, tl.int64) * c_g + n[None, :]
    log_ptr += row_of(cu_ptr, first, H) + tl.cast(head, tl.int64) * t
    if z_ptr is not None:
        z_ptr += row * z_b + begin * z_t + tl.cast(head, tl.int64) * z_h + p[None, :]
    kept_ptr += slot(cu_ptr, first, tl.program_id(1), t, KEEP) * (H * N * P)
    kept_ptr += tl.cast(head, tl.int64) * (N * P) + n[:, None] * P + p[None, :]
    at_state = (i.to(tl.int64) * H + head) * (P * N) + p[None, :] * N + n[:, None]  # of (p n)
    e = tl.load(d_last_ptr + at_state, mask=is_p & is_n, other=0.0).to(tl.float32)
    tiles = tl.cdiv(length, Q)
    for k in tl.range(0, tiles, num_stages=STAGES):
        tile = tiles - 1 - k
        done = tl.cast(tile, tl.int64) * Q
        if k == 0 or (tile + 1) % (KEEP // Q) == 0:
            at = tl.cast(tile // (KEEP // Q), tl.int64) * (H * N * P)
            tl.store(kept_ptr + at, e.to(kept_ptr.dtype.element_ty), mask=is_p & is_n)
        here = tile * Q + q < length
        log = tl.load(log_ptr + done + q, mask=here, other=0.0)
        total = tl.load(log_ptr + tl.minimum(done + Q, length) - 1)
        mask = here[:, None] & is_p
        g = tl.load(dy_ptr + (done + q[:, None]) * (H * P), mask=mask, other=0.0).to(tl.float32)
        C = tl.load(
            c_ptr + done * c_t + q[:, None] * c_t, mask=here[:, None] & (n < N)[None, :], other=0.0
        ).to(OPERAND)
        if z_ptr is not None:
            z = tl.load(z_ptr + done * z_t + q[:, None] * z_t, mask=mask, other=0.0).to(tl.float32)
            g *= z * sigmoid(z)
        read = (g * tl.exp2(log)[:, None]).to(OPERAND)
        e = tl.dot(tl.trans(C), read, e * tl.exp2(total), input_precision=PRECISION)
    if d_state_ptr is not None:
        tl.store(d_state_ptr + at_state, e, mask=is_p & is_n)
