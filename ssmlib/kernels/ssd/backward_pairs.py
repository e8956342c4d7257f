"""All that happens within a chunk, and between it and the states at its ends, for many heads."""

import triton
import triton.language as tl

from ssmlib.kernels.selective_scan.parts import sigmoid
from ssmlib.kernels.ssd.parts import locate, row_of


@triton.jit
def alike(v, total, SAME: tl.constexpr):
    """v, spread over threads as a sum of products is, if the two are of the SAME shape.

    Left alone, the compiler spreads v as it was loaded, moves what comes of it, and does part of
    the work twice. A product in place of a running sum would itself be spread differently, for what
    is made of it.
    """
    if SAME:
        v = tl.fma(total, 0.0, v)
    return v


@triton.jit
def load(ptr, at, mask):
    """The numbers at ptr + at, offsets of 32 bits, zero where there are none."""
    if mask is None:
        return tl.load(ptr + at)
    else:
        return tl.load(ptr + at, mask=mask, other=0.0)


@triton.jit(do_not_specialize=["t"])
def pairs_kernel(
    dy_ptr,
    x_ptr,
    b_ptr,
    c_ptr,
    d_ptr,
    z_ptr,
    step_ptr,
    log_ptr,
    kept_ptr,
    adjoint_ptr,
    cu_ptr,
    scores_ptr,
    dx_ptr,
    dz_ptr,
    db_ptr,
    dc_ptr,
    dskip_ptr,
    through_ptr,
    later_ptr,
    earlier_ptr,
    direct_ptr,
    dx_sum_ptr,
    y_sum_ptr,
    first_slot,
    sequences,
    t,
    slots,
    H,
    G,
    per_group,
    splits,
    share,
    rows,
    x_b,
    x_t,
    x_h,
    z_b,
    z_t,
    z_h,
    b_b,
    b_t,
    b_g,
    c_b,
    c_t,
    c_g,
    d_h,
    d_p,
    n_from,
    P: tl.constexpr,
    N: tl.constexpr,
    N_PAD: tl.constexpr,
    WIDTH: tl.constexpr,
    Q: tl.constexpr,
    BY_CHANNEL: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    STAGES: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: Q tokens, half of what lies between two kept states; `share` heads of a group.

    The state at the beginning of these tokens and the gradient by the state at their end: one of
    the two is kept, `near`; the other one, `mid`, lies in the middle of the 2 Q tokens, and is made
    from `far`, kept too, and the other Q tokens. For the first half that is the gradient, for the
    second the state, and what is done with the two is the same up to the names.

    Products are written down with key tokens j as rows and query tokens i as columns.
    """
    wide: tl.constexpr = (P + WIDTH - 1) // WIDTH
    here = tl.program_id(0) + 2 * first_slot
    second = here % 2 == 1
    i, first, length, begin = locate(cu_ptr, here // 2, sequences, t, slots, 2 * Q)
    own = begin + (here % 2) * Q
    if own >= length:
        return
    group, split = tl.program_id(1) // splits, tl.program_id(1) % splits
    other = begin + Q - (here % 2) * Q
    q, n = tl.arange(0, Q), n_from + tl.arange(0, N_PAD)
    left, left_other = length - own, length - other
    is_q, is_other, is_n = q < left, q < left_other, n < N
    row = i.to(tl.int64) if cu_ptr is None else first * 0
    now = own.to(tl.int64) if cu_ptr is None else first + own
    then = other.to(tl.int64) if cu_ptr is None else first + other
    b_ptr += row * b_b + tl.cast(group, tl.int64) * b_g
    c_ptr += row * c_b + tl.cast(group, tl.int64) * c_g
    at_b, at_c = q[:, None] * b_t + n[None, :], q[:, None] * c_t + n[None, :]
    has_q, has_other = is_q[:, None] & is_n[None, :], is_other[:, None] & is_n[None, :]
    B = tl.load(b_ptr + now * b_t + at_b, mask=has_q, other=0.0).to(OPERAND)
    C = tl.load(c_ptr + now * c_t + at_c, mask=has_q, other=0.0).to(OPERAND)
    # through memory, so that the compiler does not lay them out for what they are read by
    scores_ptr += (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * (Q * Q)
    at_scores = q[:, None] * Q + q[None, :]
    tl.store(scores_ptr + at_scores, tl.dot(B, tl.trans(C), input_precision=PRECISION))
    tl.debug_barrier()
    scores = tl.load(scores_ptr + at_scores)
    own_scores = tl.load(scores_ptr + q * (Q + 1))
    x_ptr += row * x_b
    if second:
        of_near_ptr, of_far_ptr, of_other_ptr = (
            b_ptr + now * b_t,
            c_ptr + now * c_t,
            b_ptr + then * b_t,
        )
        near_ptr, far_ptr, o_ptr = adjoint_ptr, kept_ptr, x_ptr + then * x_t
        near_slot, far_slot = tl.program_id(0) // 2, here // 2
    else:
        of_near_ptr, of_far_ptr, of_other_ptr = (
            c_ptr + now * c_t,
            b_ptr + now * b_t,
            c_ptr + then * c_t,
        )
        near_ptr, far_ptr, o_ptr = kept_ptr, adjoint_ptr, dy_ptr + (first + other) * (H * P)
        near_slot, far_slot = here // 2, tl.program_id(0) // 2
    o_t, o_h = tl.where(second, x_t, H * P), tl.where(second, x_h, P)
    at_near, at_far = tl.where(second, at_b, at_c), tl.where(second, at_c, at_b)
    of_near = tl.load(of_near_ptr + at_near, mask=has_q, other=0.0).to(OPERAND)
    of_far = tl.load(of_far_ptr + at_far, mask=has_q, other=0.0).to(OPERAND)
    of_other = tl.load(of_other_ptr + at_near, mask=has_other, other=0.0).to(OPERAND)
    near_ptr += near_slot.to(tl.int64) * (H * N * P)
    far_ptr += far_slot.to(tl.int64) * (H * N * P)
    x_ptr += now * x_t
    at_out = (first + own) * (H * P)
    d_rows, x_rows, o_rows = q[:, None] * (H * P), q[:, None] * x_t, q[:, None] * o_t
    if z_ptr is not None:
        z_ptr += row * z_b
    logs = row_of(cu_ptr, first, H)
    found = row_of(cu_ptr, first, H * wide) + own
    causal = (q[:, None] <= q[None, :]) & is_q[None, :]
    # no decay stands between a token and itself: its pair would have to cancel in the sums
    apart = q[:, None] != q[None, :]

    of_pairs = tl.zeros((Q, Q), tl.float32)
    sum_near, sum_far = tl.zeros((Q, N_PAD), tl.float32), tl.zeros((Q, N_PAD), tl.float32)
    heads = tl.minimum(share, per_group - split * share)
    for k in tl.range(0, heads * wide, num_stages=STAGES):
        head = group * per_group + split * share + k // wide
        p = (k % wide) * WIDTH + tl.arange(0, WIDTH)
        is_p, head_far = (p < P)[None, :], tl.cast(head, tl.int64)
        log_here = log_ptr + logs + head_far * t
        step_here = step_ptr + logs + head_far * t
        log = tl.load(log_here + own + q, mask=is_q, other=0.0)
        step = tl.load(step_here + own + q, mask=is_q, other=0.0)
        total = tl.load(log_here + own + tl.minimum(left, Q) - 1)
        log_other = tl.load(log_here + other + q, mask=is_other, other=0.0)
        step_other = tl.load(step_here + other + q, mask=is_other, other=0.0)
        total_other = tl.load(
            log_here + other + tl.minimum(left_other, Q) - 1, mask=left_other > 0, other=0.0
        )
        mask, mask_other, real = is_q[:, None], is_other[:, None], None
        if P % WIDTH != 0:
            mask, mask_other = mask & is_p, mask_other & is_p
        if N % N_PAD != 0 or P % WIDTH != 0:
            real = is_n[:, None] & is_p
        at = at_out + head_far * P
        x = load(x_ptr + head_far * x_h, x_rows + p[None, :], mask)
        dy = load(dy_ptr + at, d_rows + p[None, :], mask)
        o = load(o_ptr + head_far * o_h, o_rows + p[None, :], mask_other)
        at_state = head_far * (N * P)
        near = load(near_ptr + at_state, n[:, None] * P + p[None, :], real).to(OPERAND)
        far = load(far_ptr + at_state, n[:, None] * P + p[None, :], real).to(tl.float32)
        x = x.to(OPERAND)
        x_wide = alike(x.to(tl.float32), of_pairs, WIDTH == Q)
        o = alike(o.to(tl.float32), of_pairs, WIDTH == Q)
        g_wide = alike(dy.to(tl.float32), of_pairs, WIDTH == Q)
        if z_ptr is not None:
            of_z = q[:, None] * z_t + p[None, :]
            z = load(z_ptr + now * z_t + head_far * z_h, of_z, mask)
            z = alike(z.to(tl.float32), of_pairs, WIDTH == Q)
            open = sigmoid(z)
            by_gate = g_wide * (open * (1.0 + z * (1.0 - open)))
            g = (g_wide * z * open).to(OPERAND)
            g_wide = g.to(tl.float32)
            mask_other = mask_other & (second == 0)
            z_o = load(z_ptr + then * z_t + head_far * z_h, of_z, mask_other)
            z_o = alike(z_o.to(tl.float32), of_pairs, WIDTH == Q)
            o *= tl.where(second, 1.0, z_o * sigmoid(z_o))
        else:
            g = dy.to(OPERAND)

        past = tl.exp2(log)
        past_other = tl.exp2(log_other)
        rest = tl.exp2(total - log)
        rest_other = tl.exp2(total_other - log_other) * step_other
        fed = (o * tl.where(second, rest_other, past_other)[:, None]).to(OPERAND)
        mid = tl.dot(tl.trans(of_other), fed, far * tl.exp2(total_other), input_precision=PRECISION)
        through = tl.exp2(total) * tl.sum(mid * near.to(tl.float32))
        mid = mid.to(OPERAND)

        products = tl.dot(x, tl.trans(g), input_precision=PRECISION)
        decay = tl.exp2(tl.where(causal, log[None, :] - log[:, None], -float("inf")))
        mixing = decay * alike(scores, of_pairs, True)
        pairs = tl.where(apart, mixing * products, 0.0)
        of_step = tl.sum(pairs, 1)
        of_read = tl.sum(pairs * step[:, None], 0)
        of_pairs += decay * products * step[:, None]
        mixing = mixing.to(OPERAND)
        dx = tl.dot(mixing, g, input_precision=PRECISION) * step[:, None]

        by_near = tl.dot(of_near, near, input_precision=PRECISION)
        by_far = tl.dot(of_far, mid, input_precision=PRECISION)
        written, read = x_wide * (rest * step)[:, None], g_wide * past[:, None]
        sum_near = tl.dot(
            tl.where(second, written, read).to(OPERAND),
            tl.trans(near),
            sum_near,
            input_precision=PRECISION,
        )
        sum_far = tl.dot(
            tl.where(second, read, written).to(OPERAND),
            tl.trans(mid),
            sum_far,
            input_precision=PRECISION,
        )
        to_end, from_start = tl.where(second, by_near, by_far), tl.where(second, by_far, by_near)
        dx += (rest * step)[:, None] * to_end
        of_end = rest * tl.sum(x_wide * to_end, 1)
        of_read += past * tl.sum(g_wide * from_start, 1)
        of_itself = tl.sum(x_wide * g_wide, 1)
        later = of_read - step * of_step
        direct = of_step + of_end + of_itself * own_scores

        tile = d_rows + p[None, :]
        lane = tl.cast(head * wide + k % wide, tl.int64) * t
        at_through = through_ptr + here.to(tl.int64) * (H * wide) + head * wide + k % wide
        if not FIRST:
            through += tl.load(at_through)
            later += tl.load(later_ptr + found + lane + q, mask=is_q, other=0.0)
            of_end += tl.load(earlier_ptr + found + lane + q, mask=is_q, other=0.0)
            direct += tl.load(direct_ptr + found + lane + q, mask=is_q, other=0.0)
            dx += tl.load(dx_sum_ptr + at + tile, mask=mask, other=0.0)
        tl.store(at_through, through)
        tl.store(later_ptr + found + lane + q, later, mask=is_q)
        tl.store(earlier_ptr + found + lane + q, of_end, mask=is_q)
        tl.store(direct_ptr + found + lane + q, direct, mask=is_q)
        if z_ptr is not None:
            y = past[:, None] * from_start
            written = (x_wide * step[:, None]).to(OPERAND)
            y += tl.trans(tl.dot(tl.trans(written), mixing, input_precision=PRECISION))
            if not FIRST:
                y += tl.load(y_sum_ptr + at + tile, mask=mask, other=0.0)
        if LAST:
            if d_ptr is not None:
                if BY_CHANNEL:
                    skip = tl.load(d_ptr + head * d_h + p * d_p, mask=p < P, other=0.0)
                    skip = skip.to(tl.float32)[None, :]
                    dskip = tl.sum(x_wide * g_wide, 0)
                    at_skip = dskip_ptr + (here.to(tl.int64) * H + head) * P + p
                    tl.store(at_skip, dskip, mask=p < P)
                else:
                    skip = tl.load(d_ptr + head * d_h).to(tl.float32)
                    at_skip = dskip_ptr + here.to(tl.int64) * (H * wide) + head * wide + k % wide
                    tl.store(at_skip, tl.sum(of_itself, 0))
                dx += skip * g_wide
            if z_ptr is not None:
                if d_ptr is not None:
                    y += skip * x_wide
                dz = by_gate * y
                tl.store(dz_ptr + at + tile, dz.to(dz_ptr.dtype.element_ty), mask=mask)
            tl.store(dx_ptr + at + tile, dx.to(dx_ptr.dtype.element_ty), mask=mask)
        else:
            tl.store(dx_sum_ptr + at + tile, dx, mask=mask)
            if z_ptr is not None:
                tl.store(y_sum_ptr + at + tile, y, mask=mask)

    of_pairs = of_pairs.to(OPERAND)
    B = tl.load(b_ptr + now * b_t + at_b, mask=has_q, other=0.0).to(OPERAND)
    C = tl.load(c_ptr + now * c_t + at_c, mask=has_q, other=0.0).to(OPERAND)
    dB = tl.where(second, sum_near, sum_far)
    dC = tl.where(second, sum_far, sum_near)
    dB += tl.dot(of_pairs, C, input_precision=PRECISION)
    dC += tl.trans(tl.dot(tl.trans(B), of_pairs, input_precision=PRECISION))
    at = (tl.cast(split, tl.int64) * rows + first + own) * (G * N) + group * N
    at += q[:, None] * (G * N) + n[None, :]
    tl.store(db_ptr + at, dB.to(db_ptr.dtype.element_ty), mask=has_q)
    tl.store(dc_ptr + at, dC.to(dc_ptr.dtype.element_ty), mask=has_q)
