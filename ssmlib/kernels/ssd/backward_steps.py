"""From what each token means to the decays around it, the gradients of dt, A and dt's bias."""

import triton
import triton.language as tl

from ssmlib.kernels.selective_scan.parts import sigmoid
from ssmlib.kernels.ssd.parts import locate, row_of


@triton.jit(do_not_specialize=["t"])
def steps_kernel(
    dt_ptr,
    a_ptr,
    bias_ptr,
    step_ptr,
    log_ptr,
    itself_ptr,
    through_ptr,
    read_ptr,
    sums_ptr,
    cu_ptr,
    ddt_ptr,
    da_ptr,
    dbias_ptr,
    dskip_ptr,
    sequences,
    t,
    slots,
    H,
    G,
    dt_b,
    dt_t,
    dt_h,
    WIDE: tl.constexpr,
    Q: tl.constexpr,
    HEADS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):
    """One program: Q tokens that one program of `pairs_kernel` had, HEADS heads.

    The gradient of a log decay is the sum over all pairs of tokens that it stands between: of what
    is read later, less what that has read from within, of what was written earlier, and of what
    goes through from the state before to the state after. No decay stands between a token and
    itself. A, dt's bias and D get a row each.
    """
    here = tl.program_id(0)
    i, first, length, begin = locate(cu_ptr, here // 2, sequences, t, slots, 2 * Q)
    begin += (here % 2) * Q
    if begin >= length:
        return
    head, q = tl.program_id(1) * HEADS + tl.arange(0, HEADS), tl.arange(0, Q)
    is_h = head < H
    mask = is_h[:, None] & (begin + q < length)[None, :]
    earlier = tl.zeros((HEADS, Q), tl.float32)
    of_step = tl.zeros((HEADS, Q), tl.float32)
    later = tl.zeros((HEADS, Q), tl.float32)
    itself = tl.zeros((HEADS, Q), tl.float32)
    through = tl.zeros((HEADS,), tl.float32)
    found = row_of(cu_ptr, first, H * WIDE) + begin + q[None, :]
    for part in range(WIDE):
        lane = head * WIDE + part
        at = found + lane.to(tl.int64)[:, None] * t
        later += tl.load(read_ptr + at, mask=mask, other=0.0)
        earlier += tl.load(sums_ptr + 4 * at, mask=mask, other=0.0)
        of_step += tl.load(sums_ptr + 4 * at + 1, mask=mask, other=0.0)
        later += tl.load(sums_ptr + 4 * at + 2, mask=mask, other=0.0)
        itself += tl.load(sums_ptr + 4 * at + 3, mask=mask, other=0.0)
        at = here.to(tl.int64) * (H * WIDE) + lane
        through += tl.load(through_ptr + at, mask=is_h, other=0.0)
    at = here.to(tl.int64) * H + head
    if dskip_ptr is not None:
        tl.store(dskip_ptr + at, tl.sum(itself, 1), mask=is_h)
    group = (head // (H // G)).to(tl.int64)[:, None]
    scores = row_of(cu_ptr, first, G) + begin + group * t + q[None, :]
    itself *= tl.load(itself_ptr + scores, mask=mask, other=0.0)
    at = row_of(cu_ptr, first, H) + begin + head.to(tl.int64)[:, None] * t + q[None, :]
    step = tl.load(step_ptr + at, mask=mask, other=0.0)
    log = tl.load(log_ptr + at, mask=mask, other=0.0)
    end = row_of(cu_ptr, first, H) + tl.minimum(begin + Q, length) - 1
    total = tl.load(log_ptr + end + head.to(tl.int64) * t, mask=is_h, other=0.0)
    earlier *= tl.exp2(total[:, None] - log)
    A = tl.load(a_ptr + head, mask=is_h, other=0.0).to(tl.float32)
    direct = of_step + earlier + itself
    later -= step * of_step
    earlier *= step
    by_log = tl.cumsum(later, 1, reverse=True) + (tl.cumsum(earlier, 1) - earlier)
    by_log = tl.where(mask, by_log + through[:, None], 0.0)
    ddt = by_log * A[:, None] + direct
    if SOFTPLUS:
        row = i.to(tl.int64) * dt_b if cu_ptr is None else first * dt_t
        at = begin.to(tl.int64) * dt_t + head[:, None] * dt_h + q[None, :] * dt_t
        raw = tl.load(dt_ptr + row + at, mask=mask, other=0.0).to(tl.float32)
        if bias_ptr is not None:
            raw += tl.load(bias_ptr + head, mask=is_h, other=0.0).to(tl.float32)[:, None]
        ddt *= sigmoid(raw)
    at = (first + begin) * H + q[None, :] * H + head[:, None]
    tl.store(ddt_ptr + at, ddt.to(ddt_ptr.dtype.element_ty), mask=mask)
    at = here.to(tl.int64) * H + head
    tl.store(da_ptr + at, tl.sum(by_log * step, 1), mask=is_h)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + at, tl.sum(ddt, 1), mask=is_h)
