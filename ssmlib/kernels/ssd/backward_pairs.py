"""The gradient of C Bᵀ within a chunk of KEEP tokens, and what pairs of tokens mean to decays."""

import triton
import triton.language as tl

from ssmlib.kernels.ssd.forward import tokens
from ssmlib.kernels.ssd.parts import line_of, locate, row_of

# none of which says how something is aligned
COUNTS = [
    "sequences", "t", "slots", "H", "G", "per_group", "splits", "share", "size",
]  # fmt: skip


@triton.jit
def through_heads(
    dy,
    x,
    dy_ptr,
    x_ptr,
    step_ptr,
    log_ptr,
    rest_ptr,
    read_ptr,
    write_ptr,
    both_ptr,
    dskip_ptr,
    weights,
    i,
    begin,
    of_keys,
    of_queries,
    length,
    head_0,
    heads,
    t,
    pitch,
    H,
    x_t,
    x_h,
    cu_ptr,
    ACROSS: tl.constexpr,
    P: tl.constexpr,
    WIDTH: tl.constexpr,
    Q: tl.constexpr,
    STAGES: tl.constexpr,
    TILES: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradient of this block of C B^T, (j i), and what its pairs mean to each head's decays.

    ACROSS from the first half to the second, a decay is a product of two, up to their boundary and
    from it on, neither of which is above 1. Within a half only their sum is sure to be.
    """
    wide: tl.constexpr = (P + WIDTH - 1) // WIDTH
    q = tl.arange(0, Q)
    is_key, is_query = of_keys + q < length, of_queries + q < length
    same = q[:, None] == q[None, :]
    gradient = tl.zeros((Q, Q), tl.float32)
    for k in tl.range(0, heads * wide, num_stages=STAGES):
        head = head_0 + k // wide
        far = head.to(tl.int64)
        offset = (k % wide) * WIDTH
        p = offset + tl.arange(0, WIDTH)
        if TILES:
            x_at, dy_at = x_ptr, dy_ptr
        else:
            x_at, dy_at = x_ptr + far * x_h, dy_ptr + far * P
        v = tokens(
            x, x_at, of_keys, q, p, is_key, p < P, i, head, offset, x_t, TILES, Q, WIDTH, OPERAND
        )
        g = tokens(
            dy, dy_at, of_queries, q, p, is_query, p < P, i, head, offset, H * P,
            TILES, Q, WIDTH, OPERAND,
        )  # fmt: skip
        log_here = log_ptr + far * pitch
        if cu_ptr is None:  # whose rows are padded
            log_i, log_j = tl.load(log_here + of_queries + q), tl.load(log_here + of_keys + q)
            step = tl.load(step_ptr + far * pitch + q)
        else:
            log_i = tl.load(log_here + of_queries + q, mask=is_query, other=0.0)
            log_j = tl.load(log_here + of_keys + q, mask=is_key, other=0.0)
            step = tl.load(step_ptr + far * pitch + q, mask=is_key, other=0.0)
        products = tl.dot(v, tl.trans(g), input_precision=PRECISION)
        lane = (far * wide + k % wide) * t + q
        if ACROSS:
            boundary = tl.load(log_here + tl.minimum(begin + Q, length) - 1)
            decayed = tl.exp2(log_i - boundary)[None, :] * products
            until = tl.exp2(boundary - log_j)
            step *= until
        else:
            # decays of i < j, where weights are 0, are held below what is no number
            decayed = tl.exp2(tl.minimum(log_i[None, :] - log_j[:, None], 64.0)) * products
        gradient += decayed * step[:, None]
        decayed *= weights
        read = tl.sum(decayed * step[:, None], 0)
        write = tl.sum(decayed, 1)
        if ACROSS:
            write *= until
        tl.store(read_ptr + lane, read, mask=is_query)
        tl.store(write_ptr + lane, write, mask=is_key)
        if not ACROSS:
            both = tl.sum(tl.where(same, products, 0.0), 1)
            tl.store(both_ptr + lane, both, mask=is_key)
            total = tl.load(log_here + tl.minimum(begin + 2 * Q, length) - 1)
            at_rest = rest_ptr + far * pitch + q
            tl.store(at_rest, step * tl.exp2(total - log_j), mask=is_key & (k % wide == 0))
            if dskip_ptr is not None:
                by_channel = tl.sum(v.to(tl.float32) * g.to(tl.float32), 0)
                tl.store(dskip_ptr + far * P + p, by_channel, mask=p < P)
    return gradient


@triton.jit(do_not_specialize=COUNTS)
def pairs_kernel(
    dy,
    x,
    b_ptr,
    c_ptr,
    step_ptr,
    log_ptr,
    cu_ptr,
    scores_ptr,
    itself_ptr,
    rest_ptr,
    sums_ptr,
    dskip_ptr,
    sequences,
    t,
    pitch,
    slots,
    H,
    G,
    per_group,
    splits,
    share,
    size,
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
    Q: tl.constexpr,
    STAGES: tl.constexpr,
    TILES: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: Q queries i and Q keys j of a chunk of 2 Q tokens; `share` heads of a group.

    A chunk has three such blocks: each half with itself, and the second half with the first. sums
    are four times (b lanes t), `size` numbers each, a lane being WIDTH channels of a head: what a
    token reads from others of its half; what others of its half read from it, but for its step; x
    times dy; and what goes from the first half to the second, for the second as it reads it, for
    the first as it is read, but for its step. rest (b h t) is what is left of a token after
    the chunk. dskip (2 slots h p), if D is (h p), is its gradient, of each half.
    """
    wide: tl.constexpr = (P + WIDTH - 1) // WIDTH
    slot, block = tl.program_id(0) // 3, tl.program_id(0) % 3
    group, split = tl.program_id(1) // splits, tl.program_id(1) % splits
    i, first, length, begin = locate(cu_ptr, slot, sequences, t, slots, 2 * Q)
    of_keys = begin + tl.where(block == 1, Q, 0)
    of_queries = begin + tl.where(block == 0, 0, Q)
    if of_keys >= length:
        return
    q, n = tl.arange(0, Q), tl.arange(0, N_PAD)
    is_key, is_query, is_n = of_keys + q < length, of_queries + q < length, n < N
    row = i.to(tl.int64) if cu_ptr is None else first * 0
    key = of_keys.to(tl.int64) if cu_ptr is None else first + of_keys
    query = of_queries.to(tl.int64) if cu_ptr is None else first + of_queries
    b_ptr += row * b_b + key * b_t + tl.cast(group, tl.int64) * b_g
    c_ptr += row * c_b + query * c_t + tl.cast(group, tl.int64) * c_g
    B = tl.load(
        b_ptr + q[:, None] * b_t + n[None, :], mask=is_key[:, None] & is_n[None, :], other=0.0
    ).to(OPERAND)
    C = tl.load(
        c_ptr + q[:, None] * c_t + n[None, :], mask=is_query[:, None] & is_n[None, :], other=0.0
    ).to(OPERAND)
    weights = tl.dot(B, tl.trans(C), input_precision=PRECISION)  # (j i)
    same, apart = q[:, None] == q[None, :], (q[:, None] < q[None, :]) | (block == 2)
    at = row_of(cu_ptr, first, G) + tl.cast(group, tl.int64) * t
    itself = tl.sum(tl.where(same, weights, 0.0), 1)
    tl.store(itself_ptr + at + of_keys + q, itself, mask=is_key & (block < 2) & (split == 0))
    # no decay stands between a token and itself: its pair would have to cancel in the sums
    weights = tl.where(apart, weights, 0.0)

    of_rows = line_of(cu_ptr, i, first, H, pitch)
    step_ptr += of_rows + of_keys
    lanes = row_of(cu_ptr, first, H * wide)
    size = tl.cast(size, tl.int64)
    read_ptr = sums_ptr + tl.where(block == 2, 3, 0) * size + lanes + of_queries
    write_ptr = sums_ptr + tl.where(block == 2, 3, 1) * size + lanes + of_keys
    both_ptr = sums_ptr + 2 * size + lanes + of_keys
    x_ptr, dy_ptr = x, dy
    if not TILES:
        x_ptr += row * x_b + key * x_t
        dy_ptr += (first + of_queries) * (H * P)
    heads = tl.minimum(share, per_group - split * share)
    head_0 = group * per_group + split * share
    log_ptr += of_rows
    rest_ptr += of_rows + of_keys
    if dskip_ptr is not None:
        dskip_ptr += (2 * slot + block).to(tl.int64) * (H * P)
    if block == 2:
        gradient = through_heads(
            dy, x, dy_ptr, x_ptr, step_ptr, log_ptr, None, read_ptr, write_ptr, None, None, weights,
            i, begin, of_keys, of_queries, length, head_0, heads, t, pitch, H, x_t, x_h, cu_ptr,
            True, P, WIDTH, Q, STAGES, TILES, OPERAND, PRECISION,
        )  # fmt: skip
    else:
        gradient = through_heads(
            dy, x, dy_ptr, x_ptr, step_ptr, log_ptr, rest_ptr, read_ptr, write_ptr, both_ptr,
            dskip_ptr, weights, i, begin, of_keys, of_queries, length, head_0, heads, t, pitch, H,
            x_t, x_h, cu_ptr, False, P, WIDTH, Q, STAGES, TILES, OPERAND, PRECISION,
        )  # fmt: skip
    at = (slot.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * (4 * Q * Q)
    at += (of_queries - begin + q)[None, :] * (2 * Q) + (of_keys - begin + q)[:, None]
    tl.store(scores_ptr + at, gradient)
