"""The gradients of B and C: what a chunk of KEEP tokens writes to states and reads from them."""

import triton
import triton.language as tl

from ssmlib.kernels.ssd.backward_pairs import COUNTS
from ssmlib.kernels.ssd.forward import tokens
from ssmlib.kernels.ssd.parts import line_of, locate, row_of


@triton.jit(do_not_specialize=[*COUNTS, "parts", "rows"])
def states_kernel(
    dy,
    x,
    b_ptr,
    c_ptr,
    rest_ptr,
    log_ptr,
    saved,
    adjoint,
    cu_ptr,
    scores_ptr,
    through_ptr,
    sums_ptr,
    db_ptr,
    dc_ptr,
    sequences,
    t,
    pitch,
    slots,
    H,
    G,
    per_group,
    splits,
    share,
    parts,
    size,
    rows,
    x_b,
    x_t,
    x_h,
    b_b,
    b_t,
    b_g,
    c_b,
    c_t,
    c_g,
    P: tl.constexpr,
    N: tl.constexpr,
    N_PAD: tl.constexpr,
    WIDTH: tl.constexpr,
    KEEP: tl.constexpr,
    STAGES: tl.constexpr,
    TILES: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: KEEP tokens, N_PAD states, `share` heads of a group.

    dB is a sum over heads of x λᵀ, where λ is the gradient by the state after the chunk; dC is one
    of dy hᵀ, where h is the state before it; both decayed. What has been multiplied is added up
    before the next products are made: there are registers for one of them.
    """
    wide: tl.constexpr = (P + WIDTH - 1) // WIDTH
    deep: tl.constexpr = (N + N_PAD - 1) // N_PAD
    slot = tl.program_id(0)
    group, split = tl.program_id(1) // (splits * deep), tl.program_id(1) % splits
    part_of_n = tl.program_id(1) // splits % deep
    i, first, length, begin = locate(cu_ptr, slot, sequences, t, slots, KEEP)
    if begin >= length:
        return
    head_0 = group * per_group + split * share
    heads = tl.minimum(share, per_group - split * share)
    group = group.to(tl.int64)
    row = i.to(tl.int64) if cu_ptr is None else first * 0
    now = begin.to(tl.int64) if cu_ptr is None else first + begin
    first_kept = slot.to(tl.int64) * H
    x_ptr, dy_ptr, through_ptr = x, dy, through_ptr + first_kept * (wide * deep)
    if TILES:
        first_kept = first_kept.to(tl.int32)
    else:
        x_ptr += row * x_b + now * x_t
        dy_ptr += (first + begin) * (H * P)
        saved += first_kept * (N * P)
        adjoint += first_kept * (N * P)
    log_ptr += line_of(cu_ptr, i, first, H, pitch) + begin
    rest_ptr += line_of(cu_ptr, i, first, H, pitch) + begin
    left_ptr = sums_ptr + row_of(cu_ptr, first, H * wide * deep) + begin
    past_ptr = left_ptr + size

    q, n = tl.arange(0, KEEP), part_of_n * N_PAD + tl.arange(0, N_PAD)
    here, is_n = q < length - begin, n < N
    mask = here[:, None] & is_n[None, :]
    b_ptr += row * b_b + now * b_t + group * b_g
    c_ptr += row * c_b + now * c_t + group * c_g
    B = tl.load(b_ptr + q[:, None] * b_t + n[None, :], mask=mask, other=0.0).to(OPERAND)
    C = tl.load(c_ptr + q[:, None] * c_t + n[None, :], mask=mask, other=0.0).to(OPERAND)
    channel = tl.arange(0, WIDTH)
    same = channel[:, None] == channel[None, :]
    total_at = log_ptr + tl.minimum(length - begin, KEEP) - 1
    dB, dC = tl.zeros((KEEP, N_PAD), tl.float32), tl.zeros((KEEP, N_PAD), tl.float32)
    for k in tl.range(0, heads * wide, num_stages=STAGES):
        head = head_0 + k // wide
        far = head.to(tl.int64)
        offset = (k % wide) * WIDTH
        p = offset + channel
        x_at, dy_at = x_ptr, dy_ptr
        if not TILES:
            x_at, dy_at = x_ptr + far * x_h, dy_ptr + far * P
        v = tokens(
            x, x_at, begin, q, p, here, p < P, i, head, offset, x_t, TILES, KEEP, WIDTH, OPERAND
        )
        g = tokens(
            dy, dy_at, begin, q, p, here, p < P, i, head, offset, H * P,
            TILES, KEEP, WIDTH, OPERAND,
        )  # fmt: skip
        if TILES:
            of_state = [first_kept + head, part_of_n * N_PAD, offset]
            after = adjoint.load(of_state).reshape(N_PAD, WIDTH)
            before = saved.load(of_state).reshape(N_PAD, WIDTH)
        else:
            of_state = far * (N * P) + n[:, None] * P + p[None, :]
            real = is_n[:, None] & (p < P)[None, :]
            after = tl.load(adjoint + of_state, mask=real, other=0.0).to(OPERAND)
            before = tl.load(saved + of_state, mask=real, other=0.0).to(OPERAND)
        log = tl.load(log_ptr + far * pitch + q, mask=here, other=0.0)
        rest = tl.load(rest_ptr + far * pitch + q, mask=here, other=0.0)
        total = tl.load(total_at + far * pitch)
        lane = (far * wide + k % wide) * deep + part_of_n

        v, left = v.to(tl.float32), tl.dot(B, after, input_precision=PRECISION)
        left = tl.sum(left * v, 1) * tl.exp2(total - log)
        tl.store(left_ptr + lane * t + q, left, mask=here)
        v = (v * rest[:, None]).to(OPERAND)
        dB = tl.dot(v, tl.trans(after), dB, input_precision=PRECISION)
        decay = tl.exp2(log)
        g, past = g.to(tl.float32), tl.dot(C, before, input_precision=PRECISION)
        past = tl.sum(past * g, 1) * decay
        tl.store(past_ptr + lane * t + q, past, mask=here)
        g = (g * decay[:, None]).to(OPERAND)
        dC = tl.dot(g, tl.trans(before), dC, input_precision=PRECISION)
        # the sum over all of before after is the trace of a product, which is faster
        both = tl.dot(tl.trans(after), before, input_precision=PRECISION)
        through = tl.sum(tl.sum(tl.where(same, both, 0.0), 1), 0) * tl.exp2(total)
        tl.store(through_ptr + lane, through)
    # within the chunk
    real = (q[:, None] >= q[None, :]) & here[:, None]
    scores_ptr += (slot.to(tl.int64) * G + group) * parts * (KEEP * KEEP)
    scores_ptr += q[:, None] * KEEP + q[None, :]
    scores = tl.zeros((KEEP, KEEP), tl.float32)
    for part in range(split, parts, splits):
        scores += tl.load(scores_ptr + part * (KEEP * KEEP), mask=real, other=0.0)
    scores = scores.to(OPERAND)
    dC += tl.dot(scores, B, input_precision=PRECISION)
    dB += tl.dot(tl.trans(scores), C, input_precision=PRECISION)
    out = ((tl.cast(split, tl.int64) * rows + first + begin) * G + group) * N
    out += q[:, None] * (G * N) + n[None, :]
    tl.store(db_ptr + out, dB.to(db_ptr.dtype.element_ty), mask=mask)
    tl.store(dc_ptr + out, dC.to(dc_ptr.dtype.element_ty), mask=mask)
