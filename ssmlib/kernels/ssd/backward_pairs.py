"""All that happens within a chunk, and between it and the states at its ends, for many heads."""

import triton
import triton.language as tl

from ssmlib.kernels.selective_scan.parts import sigmoid
from ssmlib.kernels.ssd.parts import locate, row_of


@triton.jit
def alike(v, sums):
    """v, and so what is made of it, spread over threads as row sums of products are.

    Left alone, the compiler spreads a tile as it was loaded, moves what comes of it, and does part
    of the work twice. Sums of this turn's products would in turn change how those are spread.
    """
    return tl.fma(sums, 0.0, v)


@triton.jit
def load(ptr, at, mask):
    """The numbers at ptr + at, offsets of 32 bits, zero where there are none."""
    if mask is None:
        return tl.load(ptr + at)
    else:
        return tl.load(ptr + at, mask=mask, other=0.0)


@triton.jit
def scores_of(
    b_ptr,
    c_ptr,
    scores_ptr,
    at_b,
    at_c,
    has,
    Q: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """B Cᵀ of a chunk, keys j as rows, queries i as columns, and its diagonal; 0 for i < j.

    They go through memory: what they are made of shall not decide how they are spread.
    """
    q = tl.arange(0, Q)
    B, C = load(b_ptr, at_b, has).to(OPERAND), load(c_ptr, at_c, has).to(OPERAND)
    at = q[:, None] * Q + q[None, :]
    tl.store(scores_ptr + at, tl.dot(B, tl.trans(C), input_precision=PRECISION))
    tl.debug_barrier()
    scores = tl.load(scores_ptr + at)
    return tl.where(q[:, None] < q[None, :], scores, 0.0), tl.load(scores_ptr + q * (Q + 1))


@triton.jit
def pairs_of_half(
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
    scores_ptr,
    dx_ptr,
    dz_ptr,
    db_ptr,
    dc_ptr,
    dskip_ptr,
    itself_ptr,
    through_ptr,
    read_ptr,
    sums_ptr,
    dx_sum_ptr,
    y_sum_ptr,
    row,
    kept_row,
    adjoint_row,
    own,
    other,
    length,
    head_0,
    heads,
    leads,
    t,
    H,
    x_t,
    x_h,
    z_t,
    z_h,
    b_t,
    c_t,
    d_h,
    d_p,
    out_t,
    n_from,
    SECOND: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    N_PAD: tl.constexpr,
    WIDTH: tl.constexpr,
    Q: tl.constexpr,
    TILES: tl.constexpr,
    BY_CHANNEL: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    STAGES: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Tokens own to own + Q, the second half of 2 Q or the first: all of `heads` heads.

    row is the row of dy of token own, counted over the batch. x_ptr, z_ptr, b_ptr and c_ptr stand
    at the sequence's first token, at its first head or at the group of these heads; what is found
    goes to where token own is, but for dx and dz, which are whole like dy.
    """
    wide: tl.constexpr = (P + WIDTH - 1) // WIDTH
    q, n = tl.arange(0, Q), n_from + tl.arange(0, N_PAD)
    left, left_other = length - own, length - other
    is_q, is_other, is_n = q < left, q < left_other, n < N
    if TILES:  # only of whole chunks
        is_q, is_other = q >= 0, q >= 0
    now, then = own.to(tl.int64), other.to(tl.int64)
    at_b, at_c = q[:, None] * b_t + n[None, :], q[:, None] * c_t + n[None, :]
    has, has_other = is_q[:, None] & is_n[None, :], is_other[:, None] & is_n[None, :]
    scores, itself = scores_of(
        b_ptr + now * b_t, c_ptr + now * c_t, scores_ptr, at_b, at_c, has, Q, OPERAND, PRECISION
    )
    so_far = tl.zeros_like(itself) if FIRST else tl.load(itself_ptr + q, mask=is_q, other=0.0)
    tl.store(itself_ptr + q, so_far + itself, mask=is_q & leads)
    B, C = load(b_ptr + now * b_t, at_b, has), load(c_ptr + now * c_t, at_c, has)
    B, C = B.to(OPERAND), C.to(OPERAND)
    if SECOND:
        of_other = load(b_ptr + then * b_t, at_b, has_other).to(OPERAND)
    else:
        of_other = load(c_ptr + then * c_t, at_c, has_other).to(OPERAND)
    at_dy, at_x = q[:, None] * (H * P), q[:, None] * x_t

    of_pairs, of_step = tl.zeros((Q, Q), tl.float32), tl.zeros((Q,), tl.float32)
    dB, dC = tl.zeros((Q, N_PAD), tl.float32), tl.zeros((Q, N_PAD), tl.float32)
    for k in tl.range(0, heads * wide, num_stages=STAGES):
        head = (head_0 + k // wide).to(tl.int64)
        part = k % wide
        p = part * WIDTH + tl.arange(0, WIDTH)
        log_here, step_here = log_ptr + head * t + own, step_ptr + head * t + own
        log = alike(tl.load(log_here + q, mask=is_q, other=0.0), of_step)
        step = tl.load(step_here + q, mask=is_q, other=0.0)
        total = tl.load(log_here + tl.minimum(left, Q) - 1)
        mask, mask_other, real = is_q[:, None], is_other[:, None], None
        if P % WIDTH != 0:
            is_p = (p < P)[None, :]
            mask, mask_other = mask & is_p, mask_other & is_p
        if N % N_PAD != 0 or P % WIDTH != 0:
            real = is_n[:, None] & (p < P)[None, :]
        at = row * (H * P) + head * P
        at_state = head * (N * P)
        if TILES:
            at_h = (head_0 + k // wide) * P + part * WIDTH
            at_n = (head_0 + k // wide) * N + n_from
            x, dy = x_ptr.load([row, at_h]), dy_ptr.load([row, at_h])
            S = kept_ptr.load([kept_row + at_n, part * WIDTH])
            E = adjoint_ptr.load([adjoint_row + at_n, part * WIDTH])
        else:
            x = load(x_ptr + now * x_t + head * x_h, at_x + p[None, :], mask)
            dy = load(dy_ptr + at, at_dy + p[None, :], mask)
            S = load(kept_ptr + at_state, n[:, None] * P + p[None, :], real)
            E = load(adjoint_ptr + at_state, n[:, None] * P + p[None, :], real)
        x = x.to(OPERAND)
        log_here += other - own
        log_other = tl.load(log_here + q, mask=is_other, other=0.0)
        total_other = tl.load(
            log_here + tl.minimum(left_other, Q) - 1, mask=left_other > 0, other=0.0
        )
        if SECOND:
            step_other = tl.load(step_here + (other - own) + q, mask=is_other, other=0.0)
            if TILES:
                o = x_ptr.load([row - Q, at_h])
            else:
                o = load(x_ptr + then * x_t + head * x_h, at_x + p[None, :], mask_other)
            fed = o.to(tl.float32) * (tl.exp2(total_other - log_other) * step_other)[:, None]
            S = S.to(tl.float32) * tl.exp2(total_other)
            S = tl.dot(tl.trans(of_other), fed.to(OPERAND), S, input_precision=PRECISION)
        else:
            if TILES:
                o = dy_ptr.load([row + Q, at_h])
            else:
                o = load(dy_ptr + at + (then - now) * (H * P), at_dy + p[None, :], mask_other)
            o = o.to(tl.float32)
            if z_ptr is not None:
                if TILES:
                    z_other = z_ptr.load([row + Q, at_h])
                else:
                    at_z = q[:, None] * z_t + p[None, :]
                    z_other = load(z_ptr + then * z_t + head * z_h, at_z, mask_other)
                z_other = z_other.to(tl.float32)
                o *= z_other * sigmoid(z_other)
            fed = o * tl.exp2(log_other)[:, None]
            E = E.to(tl.float32) * tl.exp2(total_other)
            E = tl.dot(tl.trans(of_other), fed.to(OPERAND), E, input_precision=PRECISION)
        through = tl.exp2(total) * tl.sum(S.to(tl.float32) * E.to(tl.float32))
        S, E = S.to(OPERAND), E.to(OPERAND)

        x_wide, g_wide = x.to(tl.float32), dy.to(tl.float32)
        if z_ptr is not None:
            if TILES:
                z = z_ptr.load([row, at_h])
            else:
                at_z = q[:, None] * z_t + p[None, :]
                z = load(z_ptr + now * z_t + head * z_h, at_z, mask)
            z = alike(z.to(tl.float32), of_step[:, None])
            open = sigmoid(z)
            by_gate = g_wide * (open * (1.0 + z * (1.0 - open)))
            g = (g_wide * z * open).to(OPERAND)
            g_wide = g.to(tl.float32)
        else:
            g = dy.to(OPERAND)

        rest, read = tl.exp2(total - log) * step, g_wide * tl.exp2(log)[:, None]
        to_end = tl.dot(B, E, input_precision=PRECISION)
        from_start = tl.dot(C, S, input_precision=PRECISION)
        written = (x_wide * rest[:, None]).to(OPERAND)
        dB = tl.dot(written, tl.trans(E), dB, input_precision=PRECISION)
        dC = tl.dot(read.to(OPERAND), tl.trans(S), dC, input_precision=PRECISION)
        both = tl.join(x_wide * to_end, read * from_start)
        of_itself = tl.join(tl.zeros_like(x_wide), x_wide * g_wide)
        sums = tl.sum(tl.join(both, of_itself), 1)  # over rows, all at once

        # decays of i < j, where scores are 0, are held below what is no number
        decay = tl.exp2(tl.minimum(log[None, :] - log[:, None], 64.0))
        mixing = decay * scores
        products = tl.dot(x, tl.trans(g), input_precision=PRECISION)
        pairs = mixing * products
        of_read = tl.sum(pairs * step[:, None], 0)
        of_pairs += decay * products * step[:, None]
        mixing = mixing.to(OPERAND)
        dx = tl.dot(mixing, g, input_precision=PRECISION)
        of_step = tl.sum(pairs, 1)
        none = tl.zeros_like(of_step)
        sums += tl.join(tl.join(none, none), tl.join(of_step, none))
        sums = tl.reshape(sums, (Q, 4))
        of_same = (itself * step)[:, None]  # of the same token
        if LAST and d_ptr is not None:
            if BY_CHANNEL:
                skip = tl.load(d_ptr + head * d_h + p * d_p, mask=p < P, other=0.0)
                of_same += skip.to(tl.float32)[None, :]
                dskip = tl.sum(x_wide * g_wide, 0)
                tl.store(dskip_ptr + head * P + p, dskip, mask=p < P)
            else:
                of_same += tl.load(d_ptr + head * d_h).to(tl.float32)
        dx = dx * step[:, None] + to_end * rest[:, None] + of_same * g_wide

        lane = head * wide + part
        at_sums = sums_ptr + lane * (4 * t) + q[:, None] * 4 + tl.arange(0, 4)[None, :]
        at_read = read_ptr + lane * t + q
        at_through = through_ptr + lane
        at_tile = at_dy + p[None, :]
        if not FIRST:
            through += tl.load(at_through)
            of_read += tl.load(at_read, mask=is_q, other=0.0)
            once = tl.where(tl.arange(0, 4) < 3, 1.0, 0.0)[None, :]
            sums = sums * once + tl.load(at_sums, mask=is_q[:, None], other=0.0)
            dx += load(dx_sum_ptr + at, at_tile, mask)
        tl.store(at_through, through)
        tl.store(at_read, of_read, mask=is_q)
        tl.store(at_sums, sums, mask=is_q[:, None])
        if z_ptr is not None:
            y = from_start * tl.exp2(log)[:, None] + of_same * x_wide
            x_step = (x_wide * step[:, None]).to(OPERAND)
            y += tl.trans(tl.dot(tl.trans(x_step), mixing, input_precision=PRECISION))
            if not FIRST:
                y += load(y_sum_ptr + at, at_tile, mask)
        if LAST:
            if z_ptr is not None:
                dz = by_gate * y
                if TILES:
                    dz_ptr.store([row, at_h], dz.to(OPERAND))
                else:
                    tl.store(dz_ptr + at + at_tile, dz.to(dz_ptr.dtype.element_ty), mask=mask)
            if TILES:
                dx_ptr.store([row, at_h], dx.to(OPERAND))
            else:
                tl.store(dx_ptr + at + at_tile, dx.to(dx_ptr.dtype.element_ty), mask=mask)
        else:
            tl.store(dx_sum_ptr + at + at_tile, dx, mask=mask)
            if z_ptr is not None:
                tl.store(y_sum_ptr + at + at_tile, y, mask=mask)

    of_pairs = tl.where(q[:, None] <= q[None, :], of_pairs, 0.0).to(OPERAND)
    B, C = load(b_ptr + now * b_t, at_b, has), load(c_ptr + now * c_t, at_c, has)
    dB += tl.dot(of_pairs, C.to(OPERAND), input_precision=PRECISION)
    dC += tl.trans(tl.dot(tl.trans(B.to(OPERAND)), of_pairs, input_precision=PRECISION))
    at = q[:, None] * out_t + n[None, :]
    tl.store(db_ptr + at, dB.to(db_ptr.dtype.element_ty), mask=has)
    tl.store(dc_ptr + at, dC.to(dc_ptr.dtype.element_ty), mask=has)


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
    itself_ptr,
    through_ptr,
    read_ptr,
    sums_ptr,
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
    TILES: tl.constexpr,
    BY_CHANNEL: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    STAGES: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: Q tokens, half of what lies between two kept states; `share` heads of a group.

    The state at the beginning of these tokens and the gradient by the state at their end: one of
    the two is kept; the other one lies in the middle of the 2 Q tokens, and is made from what is
    kept and the other Q tokens. For the first half that is the gradient, for the second the state.
    """
    wide: tl.constexpr = (P + WIDTH - 1) // WIDTH
    slot, half = tl.program_id(0) // 2, tl.program_id(0) % 2
    group, split = tl.program_id(1) // splits, tl.program_id(1) % splits
    i, first, length, begin = locate(cu_ptr, slot + first_slot, sequences, t, slots, 2 * Q)
    own, other = begin + half * Q, begin + Q - half * Q
    if own >= length:
        return
    head_0 = group * per_group + split * share
    heads = tl.minimum(share, per_group - split * share)
    group = group.to(tl.int64)
    if not TILES:
        x_ptr += i.to(tl.int64) * x_b if cu_ptr is None else first * x_t
    b_ptr += group * b_g + (i.to(tl.int64) * b_b if cu_ptr is None else first * b_t)
    c_ptr += group * c_g + (i.to(tl.int64) * c_b if cu_ptr is None else first * c_t)
    if z_ptr is not None and not TILES:
        z_ptr += i.to(tl.int64) * z_b if cu_ptr is None else first * z_t
    logs, lanes = row_of(cu_ptr, first, H), row_of(cu_ptr, first, H * wide) + own
    here = slot.to(tl.int64) + first_slot
    row = first + own
    kept_row, adjoint_row = here * (H * N), slot.to(tl.int64) * (H * N)
    if TILES:  # rows of 32 bits
        row, kept_row, adjoint_row = (
            row.to(tl.int32),
            kept_row.to(tl.int32),
            adjoint_row.to(tl.int32),
        )
    else:
        kept_ptr += kept_row * P
        adjoint_ptr += adjoint_row * P
    here = 2 * here + half
    scores_ptr += (tl.program_id(0).to(tl.int64) * G * splits + tl.program_id(1)) * (Q * Q)
    itself_ptr += row_of(cu_ptr, first, G) + group * t + own
    if dskip_ptr is not None:
        dskip_ptr += here * (H * P)
    out = (tl.cast(split, tl.int64) * rows + first + own) * (G * N) + group * N
    if half == 1:
        pairs_of_half(
            dy_ptr, x_ptr, b_ptr, c_ptr, d_ptr, z_ptr, step_ptr + logs, log_ptr + logs, kept_ptr,
            adjoint_ptr, scores_ptr, dx_ptr, dz_ptr, db_ptr + out, dc_ptr + out, dskip_ptr,
            itself_ptr, through_ptr + here * (H * wide), read_ptr + lanes, sums_ptr + 4 * lanes,
            dx_sum_ptr, y_sum_ptr, row, kept_row, adjoint_row, own, other, length, head_0, heads,
            split == 0, t, H, x_t, x_h, z_t, z_h, b_t, c_t, d_h, d_p, G * N, n_from, True, P, N,
            N_PAD, WIDTH, Q, TILES, BY_CHANNEL, FIRST, LAST, STAGES, OPERAND, PRECISION,
        )  # fmt: skip
    else:
        pairs_of_half(
            dy_ptr, x_ptr, b_ptr, c_ptr, d_ptr, z_ptr, step_ptr + logs, log_ptr + logs, kept_ptr,
            adjoint_ptr, scores_ptr, dx_ptr, dz_ptr, db_ptr + out, dc_ptr + out, dskip_ptr,
            itself_ptr, through_ptr + here * (H * wide), read_ptr + lanes, sums_ptr + 4 * lanes,
            dx_sum_ptr, y_sum_ptr, row, kept_row, adjoint_row, own, other, length, head_0, heads,
            split == 0, t, H, x_t, x_h, z_t, z_h, b_t, c_t, d_h, d_p, G * N, n_from, False, P, N,
            N_PAD, WIDTH, Q, TILES, BY_CHANNEL, FIRST, LAST, STAGES, OPERAND, PRECISION,
        )  # fmt: skip
