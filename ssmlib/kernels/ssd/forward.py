"""The forward pass: one program walks through the chunks of a head, with the state in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmlib.kernels.selective_scan.parts import sequence, sigmoid, slot
from ssmlib.kernels.sizes import cdiv, power_of_2
from ssmlib.kernels.ssd import layout
from ssmlib.kernels.ssd.layout import KEEP, Plan, saved_shape
from ssmlib.kernels.ssd.parts import decays, line_of, locate


@triton.jit
def tokens(v, pointer, begin, q, k, here, is_k, i, head, offset, pitch, TILES, Q, WIDTH, OPERAND):
    """A tile (Q WIDTH) of v (b t h k): by its description, or from a pointer to its first row."""
    if TILES:
        return v.load([i, begin, head, offset]).reshape(Q, WIDTH)
    else:
        at = pointer + q[:, None] * pitch + k[None, :]
        return tl.load(at, mask=here[:, None] & is_k[None, :], other=0.0).to(OPERAND)


@triton.jit
def times(step_ptr, log_ptr, q, left, Q, PADDED):
    """A chunk's steps, log decays, and the last of these; after its last token nothing happens."""
    if PADDED:
        return tl.load(step_ptr + q), tl.load(log_ptr + q), tl.load(log_ptr + Q - 1)
    else:
        step = tl.load(step_ptr + q, mask=q < left, other=0.0)
        log = tl.load(log_ptr + q, mask=q < left, other=0.0)
        total = tl.load(log_ptr + tl.minimum(left, Q) - 1)
        return step, tl.where(q < left, log, total), total


@triton.jit(do_not_specialize=["sequences", "t", "segments", "segment", "H", "per_group"])
def chunks_kernel(
    x,
    B,
    C,
    step_ptr,
    log_ptr,
    d_ptr,
    z,
    start_ptr,
    cu_ptr,
    y,
    last_ptr,
    saved,
    relay_ptr,
    sequences,
    t,
    pitch,
    segments,
    segment,
    H,
    per_group,
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

    x, B, C, z, y and saved are pointers, or with TILES descriptions of their tiles. y None: only
    the state after the segment is wanted, and none of a sequence's last one. A sum over tokens j is
    a product with (p j) on the left, so that y comes out as (p i) beside the state (p n): then the
    state is read from registers, and of a chunk's products only L ∘ G has to be laid out anew.

    With relay_ptr, a segment starts from what the one before it left: relay counts the programs
    that have begun, in whose order the work is taken up, and then has a flag for each of them. So
    whatever a program waits for was begun before it.
    """
    blocks: tl.constexpr = (P + WIDTH - 1) // WIDTH
    block, line = tl.program_id(0), tl.program_id(1)
    if relay_ptr is not None:
        ticket = tl.atomic_add(relay_ptr, 1)
        block, line = ticket % (H * blocks), ticket // (H * blocks)
        line = line % sequences * segments + line // sequences
        relay_ptr += 1 + line * (H * blocks) + block
    head = block // blocks
    i, first, length, begin = locate(cu_ptr, line, sequences, t, segments, segment)
    end = tl.minimum(begin + segment, length)
    if begin >= length or (y is None and end == length):
        return
    offset = (block % blocks) * WIDTH
    channel = offset + tl.arange(0, WIDTH)
    n = tl.arange(0, N_PAD)
    q = tl.arange(0, Q)
    causal = q[:, None] <= q[None, :]
    is_p, is_n = channel < P, n < N
    real = is_p[:, None] & is_n[None, :]
    at_state = channel[:, None] * N + n[None, :]
    h = tl.zeros((WIDTH, N_PAD), tl.float32)
    if start_ptr is not None:
        if relay_ptr is not None and begin > 0:
            while tl.atomic_add(relay_ptr, 0, sem="acquire") == 0:
                pass
        start_ptr += (line.to(tl.int64) * H + head) * (P * N)
        h = tl.load(start_ptr + at_state, mask=real, other=0.0).to(tl.float32)

    group = head // per_group
    of_head = line_of(cu_ptr, i, first, H, pitch) + tl.cast(head, tl.int64) * pitch
    step_ptr += of_head + tl.multiple_of(begin, KEEP)
    log_ptr += of_head + tl.multiple_of(begin, KEEP)
    x_ptr, b_ptr, c_ptr, y_ptr, z_ptr = x, B, C, y, z
    if not TILES:
        row = i.to(tl.int64) if cu_ptr is None else first * 0
        token = begin.to(tl.int64) if cu_ptr is None else first + begin
        x_ptr += row * x_b + token * x_t + tl.cast(head, tl.int64) * x_h
        b_ptr += row * b_b + token * b_t + tl.cast(group, tl.int64) * b_g
        c_ptr += row * c_b + token * c_t + tl.cast(group, tl.int64) * c_g
        if y is not None:
            y_ptr += ((first + begin) * H + head) * P
        if z is not None:
            z_ptr += row * z_b + token * z_t + tl.cast(head, tl.int64) * z_h
    if d_ptr is not None:
        if BY_CHANNEL:
            skip = tl.load(d_ptr + head * d_h + channel * d_p, mask=is_p, other=0.0)
        else:
            skip = tl.load(d_ptr + head * d_h)
        skip = skip.to(tl.float32)
    if saved is not None:
        kept = (slot(cu_ptr, first, i, t, KEEP) + begin // KEEP) * H + head

    for done in tl.range(0, end - begin, Q, num_stages=STAGES):
        left = end - begin - done
        here = q < left
        now = begin + done
        step, log, total = times(step_ptr + done, log_ptr + done, q, left, Q, cu_ptr is None)
        u = tokens(
            x, x_ptr, now, q, channel, here, is_p, i, head, offset, x_t, TILES, Q, WIDTH, OPERAND
        )
        b = tokens(B, b_ptr, now, q, n, here, is_n, i, group, 0, b_t, TILES, Q, N_PAD, OPERAND)
        if saved is not None and done % KEEP == 0:
            if TILES:
                state = tl.trans(h.to(OPERAND)).reshape(1, N_PAD, WIDTH)
                saved.store([kept.to(tl.int32), 0, offset], state)
            else:
                at = saved + kept * (N * P) + n[None, :] * P + channel[:, None]
                tl.store(at, h.to(saved.dtype.element_ty), mask=real)
            kept += H
        if y is not None:
            c = tokens(C, c_ptr, now, q, n, here, is_n, i, group, 0, c_t, TILES, Q, N_PAD, OPERAND)
            G = tl.dot(b, tl.trans(c), input_precision=PRECISION)  # (j i)
            between = tl.where(causal, log[None, :] - log[:, None], float("-inf"))
            mixing = G * tl.exp2(between) * step[:, None]
            if d_ptr is not None and not BY_CHANNEL:
                mixing += tl.where(q[:, None] == q[None, :], skip, 0.0)
            out = tl.dot(h.to(OPERAND), tl.trans(c), input_precision=PRECISION)
            out *= tl.exp2(log)[None, :]
            out = tl.dot(tl.trans(u), mixing.to(OPERAND), out, input_precision=PRECISION)
            out = tl.trans(out)
            if d_ptr is not None and BY_CHANNEL:
                out += skip[None, :] * u.to(tl.float32)
            if z is not None:
                gate = tokens(
                    z, z_ptr, now, q, channel, here, is_p, i, head, offset, z_t,
                    TILES, Q, WIDTH, tl.float32,
                ).to(tl.float32)  # fmt: skip
                out *= gate * sigmoid(gate)
            if TILES:
                y.store([i, now, head, offset], out.to(OPERAND).reshape(1, Q, 1, WIDTH))
            else:
                at = y_ptr + q[:, None] * (H * P) + channel[None, :]
                mask = here[:, None] & is_p[None, :]
                tl.store(at, out.to(y.dtype.element_ty), mask=mask)
        rest = step * tl.exp2(total - log)
        fed = (tl.trans(u).to(tl.float32) * rest[None, :]).to(OPERAND)
        h = tl.dot(fed, b, h * tl.exp2(total), input_precision=PRECISION)
        if not TILES:
            x_ptr += x_t * Q
            b_ptr += b_t * Q
            if y is not None:
                c_ptr += c_t * Q
                y_ptr += H * P * Q
            if z is not None:
                z_ptr += z_t * Q
    if relay_ptr is not None and end < length:
        tl.store(start_ptr + H * (P * N) + at_state, h, mask=real)
        tl.debug_barrier()
        tl.atomic_xchg(relay_ptr + H * blocks, 1, sem="release")
    if y is None or end == length:
        out_line = line if y is None else i
        last_ptr += (out_line.to(tl.int64) * H + head) * (P * N)
        tl.store(last_ptr + at_state, h, mask=real)


@triton.jit(do_not_specialize=["t", "segment"])
def carry_kernel(
    log_ptr,
    start_ptr,
    end_ptr,
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

    end (slots h SIZE) is what each segment makes of zero. start, in which each sequence's first
    slot is filled in, becomes what each of them starts from.
    """
    i, head = tl.program_id(1) // H, tl.program_id(1) % H
    first, length = sequence(cu_ptr, i, t)
    line = i.to(tl.int64) * tl.cdiv(t, segment) if cu_ptr is None else first // segment + i
    log_ptr += line_of(cu_ptr, i, first, H, pitch) + tl.cast(head, tl.int64) * pitch
    k = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    at = (line * H + head) * SIZE + k
    h = tl.load(start_ptr + at, mask=k < SIZE, other=0.0)
    chunk = tl.arange(0, CHUNKS)
    for begin in range(segment, length, segment):
        token = begin - segment + chunk * Q + Q - 1  # the last one of each chunk
        total = tl.sum(tl.load(log_ptr + token, mask=token < begin, other=0.0), 0)
        h = tl.exp2(total) * h + tl.load(end_ptr + at, mask=k < SIZE, other=0.0)
        at += H * SIZE
        tl.store(start_ptr + at, h, mask=k < SIZE)


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    chunk_size: int | None,
    needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y (b t h p), the last h (b h p n), and the h kept for the backward pass.

    Arguments as in `ssd`. A chunk has `chunk_size` tokens where a program can hold that many.
    """
    tile = layout.tile(x, B, C, chunk_size)
    plan = Plan.of(x, B, C, cu_seqlens, *layout.cut(x, cu_seqlens, tile))
    x, B, C, z = (layout.rows(v) for v in (x, B, C, z))
    step, log = decays(dt, A, dt_bias, dt_softplus, cu_seqlens, tile.chunk)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    size = saved_shape(x, B, cu_seqlens, chunk_size) if needs_grad else (0,)
    saved = torch.empty(size, dtype=plan.dtype, device=x.device)
    last = plan.states(plan.sequences)
    start = None if state is None else state.contiguous()
    tokens, relay = (x, B, C, step, log), None
    if plan.segments > 1:
        start = plan.starts(start)
        if plan.relays:
            relay = plan.relay(tile)
        else:
            end = plan.states(plan.slots)
            launch(plan, tile, *tokens, None, None, None, None, end, None, None)
            carry(plan, tile, log, start, end)
    kept = saved if needs_grad else None
    launch(plan, tile, *tokens, D, z, start, y, last, kept, relay)
    return y, last, saved


def launch(
    plan: Plan,
    tile: layout.Tile,
    x: Tensor,
    B: Tensor,
    C: Tensor,
    step: Tensor,
    log: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    start: Tensor | None,
    y: Tensor | None,
    last: Tensor,
    saved: Tensor | None,
    relay: Tensor | None,
) -> None:
    grid = (plan.h * cdiv(plan.p, tile.width), plan.slots)
    strides = [*x.stride()[:3], *((0, 0, 0) if z is None else z.stride()[:3])]
    strides += [*B.stride()[:3], *C.stride()[:3], *layout.skip_strides(D)]
    tiles = plan.cu_seqlens is None and plan.fetches
    tiles = tiles and all(plan.describable(v) for v in (x, B, C, z, y, saved))
    if tiles:
        x, z, y = (plan.describe(v, 1, tile.chunk, 1, tile.width) for v in (x, z, y))
        B, C = (plan.describe(v, 1, tile.chunk, 1, plan.n_pad) for v in (B, C))
        by_head = None if saved is None else saved.flatten(0, 1)
        saved = plan.describe(by_head, 1, plan.n_pad, tile.width)
    chunks_kernel[grid](
        x,
        B,
        C,
        step,
        log,
        D,
        z,
        start,
        plan.cu_seqlens,
        y,
        last,
        saved,
        relay,
        plan.sequences,
        plan.t,
        log.shape[2],
        plan.segments,
        plan.segment,
        plan.h,
        plan.h // plan.g,
        *strides,
        P=plan.p,
        N=plan.n,
        N_PAD=plan.n_pad,
        WIDTH=tile.width,
        Q=tile.chunk,
        KEEP=KEEP,
        STAGES=tile.stages,
        TILES=tiles,
        BY_CHANNEL=D is not None and D.ndim == 2,
        OPERAND=plan.operand,
        PRECISION=plan.precision,
        num_warps=tile.warps,
    )


def carry(plan: Plan, tile: layout.Tile, log: Tensor, start: Tensor, end: Tensor) -> None:
    size = plan.p * plan.n
    carry_kernel[(cdiv(size, 1024), plan.sequences * plan.h)](
        log,
        start,
        end,
        plan.cu_seqlens,
        plan.t,
        log.shape[2],
        plan.segment,
        plan.h,
        size,
        Q=tile.chunk,
        CHUNKS=power_of_2(plan.segment // tile.chunk),
        WIDTH=1024,
        num_warps=4,
    )
