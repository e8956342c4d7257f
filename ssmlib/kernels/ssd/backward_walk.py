"""The gradients of x and of states: one program walks from a head's last chunk to its first."""

import triton
import triton.language as tl

from ssmlib.kernels.selective_scan.parts import sequence, slot
from ssmlib.kernels.ssd.forward import times, tokens
from ssmlib.kernels.ssd.parts import line_of, locate


@triton.jit(do_not_specialize=["sequences", "t", "segments", "segment", "H", "per_group"])
def adjoint_kernel(
    dy,
    B,
    C,
    step_ptr,
    log_ptr,
    d_ptr,
    start_ptr,
    cu_ptr,
    dx,
    before_ptr,
    adjoint,
    sequences,
    t,
    pitch,
    segments,
    segment,
    H,
    per_group,
    b_b,
    b_t,
    b_g,
    c_b,
    c_t,
    c_g,
    d_h,
    d_p,
    P: tl.constexpr,
    N: tl.constexpr,
    N_PAD: tl.constexpr,
    WIDTH: tl.constexpr,
    Q: tl.constexpr,
    KEEP: tl.constexpr,
    STAGES: tl.constexpr,
    TILES: tl.constexpr,
    BY_CHANNEL: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: WIDTH channels of a head, one segment of a sequence, Q tokens a turn.

    The forward pass from the other end: dy comes in through C, and dx goes out through B. The
    gradient by the state after each KEEP tokens is left in `adjoint`, (slots h n p), as the forward
    pass has left the state before them. dx None: only the gradient by the state before the segment
    is wanted, and none for the first one.
    """
    blocks: tl.constexpr = (P + WIDTH - 1) // WIDTH
    head, line = tl.program_id(0) // blocks, tl.program_id(1)
    i, first, length, begin = locate(cu_ptr, line, sequences, t, segments, segment)
    end = tl.minimum(begin + segment, length)
    if begin >= length or (dx is None and begin == 0):
        return
    offset = (tl.program_id(0) % blocks) * WIDTH
    channel, n, q = offset + tl.arange(0, WIDTH), tl.arange(0, N_PAD), tl.arange(0, Q)
    causal = q[:, None] >= q[None, :]
    is_p, is_n = channel < P, n < N
    real = is_p[:, None] & is_n[None, :]
    at_state = channel[:, None] * N + n[None, :]
    e = tl.zeros((WIDTH, N_PAD), tl.float32)
    if start_ptr is not None:
        start_ptr += (line.to(tl.int64) * H + head) * (P * N)
        e = tl.load(start_ptr + at_state, mask=real, other=0.0).to(tl.float32)
    group = head // per_group
    of_head = line_of(cu_ptr, i, first, H, pitch) + tl.cast(head, tl.int64) * pitch
    step_ptr += of_head + tl.multiple_of(begin, KEEP)
    log_ptr += of_head + tl.multiple_of(begin, KEEP)
    dy_ptr, b_ptr, c_ptr, dx_ptr = dy, B, C, dx
    if not TILES:
        row = i.to(tl.int64) if cu_ptr is None else first * 0
        token = begin.to(tl.int64) if cu_ptr is None else first + begin
        of_tokens = ((first + begin) * H + head) * P
        dy_ptr += of_tokens
        b_ptr += row * b_b + token * b_t + tl.cast(group, tl.int64) * b_g
        c_ptr += row * c_b + token * c_t + tl.cast(group, tl.int64) * c_g
        if dx is not None:
            dx_ptr += of_tokens
    if d_ptr is not None:
        if BY_CHANNEL:
            skip = tl.load(d_ptr + head * d_h + channel * d_p, mask=is_p, other=0.0)
        else:
            skip = tl.load(d_ptr + head * d_h)
        skip = skip.to(tl.float32)
    if adjoint is not None:
        kept = slot(cu_ptr, first, i, t, KEEP)

    tiles = tl.cdiv(end - begin, Q)
    for k in tl.range(0, tiles, num_stages=STAGES):
        tile = tiles - 1 - k
        done = tile * Q
        now, left = begin + done, end - begin - done
        here = q < left
        step, log, total = times(step_ptr + done, log_ptr + done, q, left, Q, cu_ptr is None)
        if TILES:
            dy_at, b_at, c_at = dy_ptr, b_ptr, c_ptr
        else:
            far = done.to(tl.int64)
            dy_at, b_at, c_at = dy_ptr + far * (H * P), b_ptr + far * b_t, c_ptr + far * c_t
        g = tokens(
            dy, dy_at, now, q, channel, here, is_p, i, head, offset, H * P, TILES, Q, WIDTH, OPERAND
        )
        c = tokens(C, c_at, now, q, n, here, is_n, i, group, 0, c_t, TILES, Q, N_PAD, OPERAND)
        if adjoint is not None and ((k == 0) | ((tile + 1) % (KEEP // Q) == 0)):
            of_kept = (kept + now // KEEP) * H + head
            if TILES:
                state = tl.trans(e.to(OPERAND)).reshape(1, N_PAD, WIDTH)
                adjoint.store([of_kept.to(tl.int32), 0, offset], state)
            else:
                at_kept = adjoint + of_kept * (N * P) + n[None, :] * P + channel[:, None]
                tl.store(at_kept, e.to(adjoint.dtype.element_ty), mask=real)
        if dx is not None:
            b = tokens(B, b_at, now, q, n, here, is_n, i, group, 0, b_t, TILES, Q, N_PAD, OPERAND)
            G = tl.dot(c, tl.trans(b), input_precision=PRECISION)  # (i j)
            between = tl.where(causal, log[:, None] - log[None, :], float("-inf"))
            mixing = G * tl.exp2(between) * step[None, :]
            if d_ptr is not None and not BY_CHANNEL:
                mixing += tl.where(q[:, None] == q[None, :], skip, 0.0)
            out = tl.dot(e.to(OPERAND), tl.trans(b), input_precision=PRECISION)
            out *= (step * tl.exp2(total - log))[None, :]
            out = tl.dot(tl.trans(g), mixing.to(OPERAND), out, input_precision=PRECISION)
            out = tl.trans(out)
            if d_ptr is not None and BY_CHANNEL:
                out += skip[None, :] * g.to(tl.float32)
            if TILES:
                dx.store([i, now, head, offset], out.to(OPERAND).reshape(1, Q, 1, WIDTH))
            else:
                at_dx = dx_ptr + far * (H * P) + q[:, None] * (H * P) + channel[None, :]
                mask = here[:, None] & is_p[None, :]
                tl.store(at_dx, out.to(dx.dtype.element_ty), mask=mask)
        read = (tl.trans(g).to(tl.float32) * tl.exp2(log)[None, :]).to(OPERAND)
        e = tl.dot(read, c, e * tl.exp2(total), input_precision=PRECISION)
    if before_ptr is not None and (dx is None or begin == 0):
        out_line = line if dx is None else i
        before_ptr += (out_line.to(tl.int64) * H + head) * (P * N)
        tl.store(before_ptr + at_state, e, mask=real)


@triton.jit
def carry_back_kernel(
    log_ptr,
    start_ptr,
    before_ptr,
    cu_ptr,
    t,
    pitch,
    segment,
    H,
    SIZE,
    Q: tl.constexpr,
    CHUNKS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One program: WIDTH numbers of the state of a head, all segments of one sequence.

    before (slots h SIZE) is what the gradient before a segment would be if that after it were zero.
    start, in which each sequence's last slot is filled in, becomes the gradient after each.
    """
    i, head = tl.program_id(1) // H, tl.program_id(1) % H
    first, length = sequence(cu_ptr, i, t)
    segments = tl.cdiv(length, segment)
    line = i.to(tl.int64) * tl.cdiv(t, segment) if cu_ptr is None else first // segment + i
    log_ptr += line_of(cu_ptr, i, first, H, pitch) + tl.cast(head, tl.int64) * pitch
    k = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    at = ((line + segments - 1) * H + head) * SIZE + k
    e = tl.load(start_ptr + at, mask=k < SIZE, other=0.0)
    chunk = tl.arange(0, CHUNKS) * Q
    for back in range(1, segments):
        begin = (segments - back) * segment
        token = tl.minimum(begin + chunk + Q, length) - 1  # the last one of each chunk
        logs = tl.load(log_ptr + token, mask=begin + chunk < length, other=0.0)
        e = tl.exp2(tl.sum(logs, 0)) * e + tl.load(before_ptr + at, mask=k < SIZE, other=0.0)
        at -= H * SIZE
        tl.store(start_ptr + at, e, mask=k < SIZE)
