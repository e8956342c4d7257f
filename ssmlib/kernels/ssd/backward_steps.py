"""From what each token means to the decays around it, the gradients of dt, A and dt's bias."""

import triton
import triton.language as tl

from ssmlib.kernels.selective_scan.parts import sigmoid
from ssmlib.kernels.ssd.parts import line_of, locate, row_of


@triton.jit
def add_up(ptr, head, lanes: tl.constexpr, t, mask):
    """The numbers of all lanes of a head, (HEADS KEEP)."""
    found = tl.zeros(mask.shape, tl.float32)
    for lane in tl.static_range(lanes):
        at = (head.to(tl.int64) * lanes + lane)[:, None] * t
        found += tl.load(ptr + at, mask=mask, other=0.0)
    return found


@triton.jit(
    do_not_specialize=[
        "sequences", "t", "slots", "H", "G", "size_of_pairs", "size_of_states",
    ]
)  # fmt: skip
def steps_kernel(
    dt_ptr,
    a_ptr,
    bias_ptr,
    step_ptr,
    itself_ptr,
    pairs_ptr,
    states_ptr,
    through_ptr,
    cu_ptr,
    ddt_ptr,
    da_ptr,
    dbias_ptr,
    dskip_ptr,
    sequences,
    t,
    pitch,
    slots,
    H,
    G,
    size_of_pairs,
    size_of_states,
    dt_b,
    dt_t,
    dt_h,
    PAIRS: tl.constexpr,
    STATES: tl.constexpr,
    KEEP: tl.constexpr,
    HEADS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):
    """One program: a chunk of KEEP tokens, HEADS heads, of PAIRS and STATES lanes.

    The gradient of a log decay is the sum over all pairs that it stands between: of what is read
    from the state before the chunk, later; of what was left to the state after it, earlier; of what
    goes through from the one to the other; and of the pairs of tokens. In a half those are what is
    read later, less what that has read of tokens that come later too; between halves, in the second
    what is read later, in the first what was written earlier. A, dt's bias and D get a row each.
    """
    here = tl.program_id(0)
    i, first, length, begin = locate(cu_ptr, here, sequences, t, slots, KEEP)
    if begin >= length:
        return
    head, q = tl.program_id(1) * HEADS + tl.arange(0, HEADS), tl.arange(0, KEEP)
    is_h = head < H
    mask = is_h[:, None] & (begin + q < length)[None, :]
    size_of_pairs = tl.cast(size_of_pairs, tl.int64)
    pairs_ptr += row_of(cu_ptr, first, H * PAIRS) + begin + q[None, :]
    states_ptr += row_of(cu_ptr, first, H * STATES) + begin + q[None, :]
    at = line_of(cu_ptr, i, first, H, pitch) + begin + q[None, :]
    step = tl.load(step_ptr + at + head.to(tl.int64)[:, None] * pitch, mask=mask, other=0.0)
    between = add_up(pairs_ptr + 3 * size_of_pairs, head, PAIRS, t, mask)
    is_second = (q >= KEEP // 2)[None, :]
    read_across, write_across = tl.where(is_second, between, 0.0), tl.where(is_second, 0.0, between)
    read = add_up(pairs_ptr, head, PAIRS, t, mask)
    write = add_up(pairs_ptr + size_of_pairs, head, PAIRS, t, mask)
    itself = add_up(pairs_ptr + 2 * size_of_pairs, head, PAIRS, t, mask)
    left = add_up(states_ptr, head, STATES, t, mask)
    past = add_up(states_ptr + size_of_states, head, STATES, t, mask)
    through = tl.zeros((HEADS,), tl.float32)
    for lane in tl.static_range(STATES):
        at = here.to(tl.int64) * (H * STATES) + head * STATES + lane
        through += tl.load(through_ptr + at, mask=is_h, other=0.0)
    at = here.to(tl.int64) * H + head
    if dskip_ptr is not None:
        tl.store(dskip_ptr + at, tl.sum(itself, 1), mask=is_h)
    group = (head // (H // G)).to(tl.int64)[:, None]
    scores = row_of(cu_ptr, first, G) + begin + group * t + q[None, :]
    itself *= tl.load(itself_ptr + scores, mask=mask, other=0.0)

    left_on, across_on = left * step, write_across * step
    by_log = tl.cumsum(past, 1, reverse=True) + (tl.cumsum(left_on, 1) - left_on)
    within = tl.reshape(read - write * step + read_across, (HEADS, 2, KEEP // 2))
    across = tl.reshape(across_on, (HEADS, 2, KEEP // 2))
    within = tl.cumsum(within, 2, reverse=True) + tl.cumsum(across, 2)
    by_log += tl.reshape(within, (HEADS, KEEP)) - across_on
    by_log = tl.where(mask, by_log + through[:, None], 0.0)
    A = tl.load(a_ptr + head, mask=is_h, other=0.0).to(tl.float32)
    ddt = by_log * A[:, None] + (write + write_across + left + itself)
    if SOFTPLUS:
        row = i.to(tl.int64) * dt_b if cu_ptr is None else first * dt_t
        at_dt = begin.to(tl.int64) * dt_t + head[:, None] * dt_h + q[None, :] * dt_t
        raw = tl.load(dt_ptr + row + at_dt, mask=mask, other=0.0).to(tl.float32)
        if bias_ptr is not None:
            raw += tl.load(bias_ptr + head, mask=is_h, other=0.0).to(tl.float32)[:, None]
        ddt *= sigmoid(raw)
    at_ddt = (first + begin) * H + q[None, :] * H + head[:, None]
    tl.store(ddt_ptr + at_ddt, ddt.to(ddt_ptr.dtype.element_ty), mask=mask)
    tl.store(da_ptr + at, tl.sum(by_log * step, 1), mask=is_h)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + at, tl.sum(tl.where(mask, ddt, 0.0), 1), mask=is_h)


@triton.jit
def gate_kernel(
    dy_ptr,
    y_ptr,
    z_ptr,
    gated_ptr,
    dz_ptr,
    size,
    t,
    z_b,
    z_t,
    z_h,
    H: tl.constexpr,
    P: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Of y silu(z), the gradients of y and z, SIZE numbers of (b t h p)."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    mask = at < size
    row, h, p = at // (H * P), at // P % H, at % P
    of_z = row // t * z_b + row % t * z_t + h * z_h + p
    z = tl.load(z_ptr + of_z, mask=mask, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + at, mask=mask, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
    open = sigmoid(z)
    dz = dy * y * (open * (1.0 + z * (1.0 - open)))
    tl.store(gated_ptr + at, (dy * z * open).to(gated_ptr.dtype.element_ty), mask=mask)
    tl.store(dz_ptr + at, dz.to(dz_ptr.dtype.element_ty), mask=mask)
