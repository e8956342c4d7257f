"""The gradients of B and C: what a chunk of KEEP tokens writes to states and reads from them."""

import triton
import triton.language as tl

from ssmlib.kernels.ssd.backward_pairs import COUNTS
from ssmlib.kernels.ssd.forward import tokens
from ssmlib.kernels.ssd.parts import line_of, locate, row_of


@triton.jit
def side(
    v,
    v_ptr,
    v_t,
    v_h,
    m_ptr,
    m_t,
    other_ptr,
    other_t,
    rest_ptr,
    log_ptr,
    state,
    other_state,
    scores_ptr,
    through_ptr,
    sums_ptr,
    out_ptr,
    out_t,
    i,
    begin,
    length,
    t,
    pitch,
    head_0,
    heads,
    part_of_n,
    parts,
    leads,
    first_kept,
    WRITES: tl.constexpr,
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
    """Of dB, if it WRITES: v is x, m B, and state the gradient by what comes after. Or of dC: v is
    dy, m C, and state what came before. Both are sums over heads of v stateᵀ, decayed.
    """
    wide: tl.constexpr = (P + WIDTH - 1) // WIDTH
    deep: tl.constexpr = (N + N_PAD - 1) // N_PAD
    q, n = tl.arange(0, KEEP), part_of_n * N_PAD + tl.arange(0, N_PAD)
    left = length - begin
    here, is_n = q < left, n < N
    mask = here[:, None] & is_n[None, :]
    m = tl.load(m_ptr + q[:, None] * m_t + n[None, :], mask=mask, other=0.0).to(OPERAND)
    channel = tl.arange(0, WIDTH)
    same = channel[:, None] == channel[None, :]
    total_at = log_ptr + tl.minimum(left, KEEP) - 1
    sums = tl.zeros((KEEP, N_PAD), tl.float32)
    for k in tl.range(0, heads * wide, num_stages=STAGES):
        head = head_0 + k // wide
        far = head.to(tl.int64)
        offset = (k % wide) * WIDTH
        p = offset + tl.arange(0, WIDTH)
        at = v_ptr
        if not TILES:
            at += far * v_h
        token = tokens(
            v, at, begin, q, p, here, p < P, i, head, offset, v_t, TILES, KEEP, WIDTH, OPERAND
        )
        if TILES:
            of_state = [first_kept + head, part_of_n * N_PAD, offset]
            h = state.load(of_state).reshape(N_PAD, WIDTH)
        else:
            at_state = far * (N * P) + n[:, None] * P + p[None, :]
            real = is_n[:, None] & (p < P)[None, :]
            h = tl.load(state + at_state, mask=real, other=0.0).to(OPERAND)
        log = tl.load(log_ptr + far * pitch + q, mask=here, other=0.0)
        total = tl.load(total_at + far * pitch)
        lane = (far * wide + k % wide) * deep + part_of_n
        if WRITES:
            decay = tl.exp2(total - log)
            weight = tl.load(rest_ptr + far * pitch + q, mask=here, other=0.0)
            if TILES:
                other = other_state.load(of_state).reshape(N_PAD, WIDTH)
            else:
                other = tl.load(other_state + at_state, mask=real, other=0.0).to(OPERAND)
            # the sum over all of h other is the trace of hᵀ other, which is faster
            both = tl.dot(tl.trans(h), other, input_precision=PRECISION)
            through = tl.sum(tl.sum(tl.where(same, both, 0.0), 1), 0)
            tl.store(through_ptr + lane, through * tl.exp2(total))
        else:
            decay = tl.exp2(log)
            weight = decay
        token = token.to(tl.float32)
        weighted = (token * weight[:, None]).to(OPERAND)
        sums = tl.dot(weighted, tl.trans(h), sums, input_precision=PRECISION)
        found = tl.dot(m, h, input_precision=PRECISION)
        tl.store(sums_ptr + lane * t + q, tl.sum(found * token, 1) * decay, mask=here)
    # within the chunk
    other = tl.load(other_ptr + q[:, None] * other_t + n[None, :], mask=mask, other=0.0)
    if WRITES:
        at, real = q[None, :] * KEEP + q[:, None], (q[:, None] <= q[None, :]) & here[None, :]
    else:
        at, real = q[:, None] * KEEP + q[None, :], (q[:, None] >= q[None, :]) & here[:, None]
    scores = tl.zeros((KEEP, KEEP), tl.float32)
    for part in range(tl.where(leads, parts, 0)):
        scores += tl.load(scores_ptr + part * (KEEP * KEEP) + at, mask=real, other=0.0)
    sums += tl.dot(scores.to(OPERAND), other.to(OPERAND), input_precision=PRECISION)
    at = out_ptr + q[:, None] * out_t + n[None, :]
    tl.store(at, sums.to(out_ptr.dtype.element_ty), mask=mask)


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
    """One program: KEEP tokens, N_PAD states, `share` heads of a group; dB, or the next one dC."""
    wide: tl.constexpr = (P + WIDTH - 1) // WIDTH
    deep: tl.constexpr = (N + N_PAD - 1) // N_PAD
    slot, reads = tl.program_id(0) // 2, tl.program_id(0) % 2
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
    b_ptr += row * b_b + now * b_t + group * b_g
    c_ptr += row * c_b + now * c_t + group * c_g
    x_ptr, dy_ptr = x, dy
    here = slot.to(tl.int64)
    first_kept = here * H
    if TILES:
        first_kept = first_kept.to(tl.int32)
    else:
        x_ptr += row * x_b + now * x_t
        dy_ptr += (first + begin) * (H * P)
        saved += first_kept * (N * P)
        adjoint += first_kept * (N * P)
    logs = line_of(cu_ptr, i, first, H, pitch) + begin
    scores_ptr += (slot.to(tl.int64) * G + group) * parts * (KEEP * KEEP)
    sums_ptr += row_of(cu_ptr, first, H * wide * deep) + begin
    out = ((tl.cast(split, tl.int64) * rows + first + begin) * G + group) * N
    if reads == 0:
        side(
            x, x_ptr, x_t, x_h, b_ptr, b_t, c_ptr, c_t, rest_ptr + logs, log_ptr + logs, adjoint,
            saved, scores_ptr, through_ptr + here * (H * wide * deep), sums_ptr, db_ptr + out,
            G * N, i, begin, length, t, pitch, head_0, heads, part_of_n, parts, split == 0,
            first_kept, True, P, N, N_PAD, WIDTH, KEEP, STAGES, TILES,
            OPERAND, PRECISION,
        )  # fmt: skip
    else:
        side(
            dy, dy_ptr, H * P, P, c_ptr, c_t, b_ptr, b_t, rest_ptr, log_ptr + logs, saved, adjoint,
            scores_ptr, through_ptr, sums_ptr + size, dc_ptr + out, G * N, i, begin, length, t,
            pitch, head_0, heads, part_of_n, parts, split == 0, first_kept, False,
            P, N, N_PAD, WIDTH, KEEP, STAGES, TILES, OPERAND, PRECISION,
        )  # fmt: skip
