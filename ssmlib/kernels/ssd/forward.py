"""The forward pass: one program walks through the chunks of a head, with the state in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmlib.kernels.selective_scan.parts import sequence, sigmoid, slot
from ssmlib.kernels.ssd import layout
from ssmlib.kernels.ssd.layout import KEEP, Plan, saved_shape
from ssmlib.kernels.ssd.parts import decays, locate, row_of


@triton.jit
def chunks_kernel(
    x_ptr,
    b_ptr,
    c_ptr,
    step_ptr,
    log_ptr,
    d_ptr,
    z_ptr,
    start_ptr,
    cu_ptr,
    y_ptr,
    last_ptr,
    saved_ptr,
    sequences,
    t,
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
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: WIDTH channels of a head, one segment of a sequence, Q tokens a turn.

    y_ptr None: only the state after the segment is wanted, and none of a sequence's last one.
    """
    blocks: tl.constexpr = (P + WIDTH - 1) // WIDTH
    head, line = tl.program_id(0) // blocks, tl.program_id(1)
    i, first, length, begin = locate(cu_ptr, line, sequences, t, segments, segment)
    end = tl.minimum(begin + segment, length)
    if begin >= length or (y_ptr is None and end == length):
        return
    channel = (tl.program_id(0) % blocks) * WIDTH + tl.arange(0, WIDTH)
    n = tl.arange(0, N_PAD)
    q = tl.arange(0, Q)
    causal = q[:, None] >= q[None, :]
    is_p, is_n = channel < P, n < N
    at_state = channel[None, :] * N + n[:, None]  # of (p n)
    real = is_p[None, :] & is_n[:, None]
    h = tl.zeros((N_PAD, WIDTH), tl.float32)
    if start_ptr is not None:
        start_ptr += (line.to(tl.int64) * H + head) * (P * N)
        h = tl.load(start_ptr + at_state, mask=real, other=0.0).to(tl.float32)

    row = i.to(tl.int64) if cu_ptr is None else first * 0
    now = begin.to(tl.int64) if cu_ptr is None else first + begin
    group = head // per_group
    x_ptr += row * x_b + now * x_t + tl.cast(head, tl.int64) * x_h
    b_ptr += row * b_b + now * b_t + tl.cast(group, tl.int64) * b_g
    c_ptr += row * c_b + now * c_t + tl.cast(group, tl.int64) * c_g
    at = row_of(cu_ptr, first, H) + tl.cast(head, tl.int64) * t + begin
    step_ptr += at
    log_ptr += at
    y_ptr_here = y_ptr
    if y_ptr is not None:
        y_ptr_here += ((first + begin) * H + head) * P
    if z_ptr is not None:
        z_ptr += row * z_b + now * z_t + tl.cast(head, tl.int64) * z_h
    if d_ptr is not None:
        skip = tl.load(d_ptr + head * d_h + channel * d_p, mask=is_p, other=0.0).to(tl.float32)
    if saved_ptr is not None:
        at = slot(cu_ptr, first, i, t, KEEP) + begin // KEEP
        saved_ptr += (at * H + head) * (N * P)

    for done in tl.range(0, end - begin, Q, num_stages=STAGES):
        left = end - begin - done
        here = q < left
        step = tl.load(step_ptr + done + q, mask=here, other=0.0)
        log = tl.load(log_ptr + done + q, mask=here, other=0.0)
        total = tl.load(log_ptr + done + tl.minimum(left, Q) - 1)
        log = tl.where(here, log, total)
        x = tl.load(
            x_ptr + q[:, None] * x_t + channel[None, :],
            mask=here[:, None] & is_p[None, :],
            other=0.0,
        ).to(OPERAND)
        B = tl.load(
            b_ptr + q[:, None] * b_t + n[None, :], mask=here[:, None] & is_n[None, :], other=0.0
        ).to(OPERAND)
        x_ptr += x_t * Q
        b_ptr += b_t * Q
        if saved_ptr is not None and done % KEEP == 0:
            kept = saved_ptr + n[:, None] * P + channel[None, :]
            tl.store(kept, h.to(saved_ptr.dtype.element_ty), mask=real)
            saved_ptr += H * (N * P)
        if y_ptr is not None:
            C = tl.load(
                c_ptr + q[:, None] * c_t + n[None, :],
                mask=here[:, None] & is_n[None, :],
                other=0.0,
            ).to(OPERAND)
            c_ptr += c_t * Q
            G = tl.dot(C, tl.trans(B), input_precision=PRECISION)
            between = tl.where(causal, log[:, None] - log[None, :], float("-inf"))
            mixing = (G * tl.exp2(between) * step[None, :]).to(OPERAND)
            y = tl.dot(C, h.to(OPERAND), input_precision=PRECISION) * tl.exp2(log)[:, None]
            y = tl.dot(mixing, x, y, input_precision=PRECISION)
            if d_ptr is not None:
                y += skip[None, :] * x.to(tl.float32)
            if z_ptr is not None:
                z = tl.load(
                    z_ptr + q[:, None] * z_t + channel[None, :],
                    mask=here[:, None] & is_p[None, :],
                    other=0.0,
                ).to(tl.float32)
                z_ptr += z_t * Q
                y *= z * sigmoid(z)
            tl.store(
                y_ptr_here + q[:, None] * (H * P) + channel[None, :],
                y.to(y_ptr.dtype.element_ty),
                mask=here[:, None] & is_p[None, :],
            )
            y_ptr_here += H * P * Q
        rest = step * tl.exp2(total - log)
        fed = (x.to(tl.float32) * rest[:, None]).to(OPERAND)
        h = tl.dot(tl.trans(B), fed, h * tl.exp2(total), input_precision=PRECISION)
    if y_ptr is None or end == length:
        out = line if y_ptr is None else i
        last_ptr += (out.to(tl.int64) * H + head) * (P * N)
        tl.store(last_ptr + at_state, h, mask=real)


@triton.jit
def carry_kernel(
    log_ptr,
    start_ptr,
    end_ptr,
    cu_ptr,
    t,
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
    log_ptr += row_of(cu_ptr, first, H) + tl.cast(head, tl.int64) * t
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
    plan = Plan.of(x, B, C, cu_seqlens, layout.segment(x, B, cu_seqlens, tile))
    x, B, C, z = (layout.rows(v) for v in (x, B, C, z))
    step, log = decays(dt, A, dt_bias, dt_softplus, cu_seqlens, tile.chunk)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    size = saved_shape(x, B, cu_seqlens, chunk_size) if needs_grad else (0,)
    saved = torch.empty(size, dtype=plan.dtype, device=x.device)
    last = plan.states(plan.sequences)
    start = None if state is None else state.contiguous()
    tokens = (x, B, C, step, log)
    if plan.segments > 1:
        start, end = plan.starts(start), plan.states(plan.slots)
        launch(plan, tile, *tokens, None, None, start=None, y=None, last=end, saved=None)
        carry(plan, tile, log, start, end)
    kept = saved if needs_grad else None
    launch(plan, tile, *tokens, D, z, start=start, y=y, last=last, saved=kept)
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
) -> None:
    grid = (plan.h * triton.cdiv(plan.p, tile.width), plan.slots)
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
        plan.sequences,
        plan.t,
        plan.segments,
        plan.segment,
        plan.h,
        plan.h // plan.g,
        *x.stride()[:3],
        *((0, 0, 0) if z is None else z.stride()[:3]),
        *B.stride()[:3],
        *C.stride()[:3],
        *layout.skip_strides(D),
        P=plan.p,
        N=plan.n,
        N_PAD=plan.n_pad,
        WIDTH=tile.width,
        Q=tile.chunk,
        KEEP=KEEP,
        STAGES=tile.stages,
        OPERAND=plan.operand,
        PRECISION=plan.precision,
        num_warps=tile.warps,
    )


def carry(plan: Plan, tile: layout.Tile, log: Tensor, start: Tensor, end: Tensor) -> None:
    size = plan.p * plan.n
    carry_kernel[(triton.cdiv(size, 1024), plan.sequences * plan.h)](
        log,
        start,
        end,
        plan.cu_seqlens,
        plan.t,
        plan.segment,
        plan.h,
        size,
        Q=tile.chunk,
        CHUNKS=triton.next_power_of_2(plan.segment // tile.chunk),
        WIDTH=1024,
        num_warps=4,
    )
