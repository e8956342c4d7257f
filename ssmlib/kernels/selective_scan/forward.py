"""The forward pass: one program walks through the tokens of 32 channels, or of 16."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmlib.kernels.selective_scan.layout import CHUNK, FORWARD, Plan, saved_shape, states_first
from ssmlib.kernels.selective_scan.pack import pack
from ssmlib.kernels.selective_scan.parts import (
    LOG2E,
    apart,
    row,
    rows_of,
    sequence,
    sigmoid,
    slot,
    softplus,
)
from ssmlib.kernels.sizes import cdiv


@triton.jit(do_not_specialize=["per_group"])
def scan_kernel(
    x_ptr,
    dt_ptr,
    a_ptr,
    bc_ptr,
    d_ptr,
    z_ptr,
    bias_ptr,
    start_ptr,
    cu_ptr,
    y_ptr,
    last_ptr,
    sum_ptr,
    saved_ptr,
    t,
    pitch,
    per_group,
    segments,
    segment,
    X: tl.constexpr,
    DT: tl.constexpr,
    Z: tl.constexpr,
    D: tl.constexpr,
    G: tl.constexpr,
    N: tl.constexpr,
    N_PAD: tl.constexpr,
    T: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):
    """One program: WIDTH channels, one segment of one sequence, T tokens a turn.

    The state (N_PAD, WIDTH) stays in registers, channels across lanes. What depends on a token and
    a channel only is done for T tokens at once, so that their latencies overlap. X, DT, Z: the
    strides of a token. y_ptr None: only the last state is wanted, and the sum of dt.
    """
    block, line = tl.program_id(0), tl.program_id(1)
    if y_ptr is None and line % segments == segments - 1:
        return  # no segment starts from what the last one ends with
    blocks = tl.cdiv(per_group, WIDTH)
    channel = (block % blocks) * WIDTH + tl.arange(0, WIDTH)
    inside = channel < per_group
    group = block // blocks
    k = group * per_group + channel
    first, length = sequence(cu_ptr, line // segments, t)
    begin = (line % segments) * segment
    end = tl.minimum(begin + segment, length)
    n = tl.arange(0, N_PAD)
    states = n[:, None] * D + k[None, :]
    real = (n < N)[:, None] & inside[None, :]
    A = tl.load(a_ptr + k[None, :] * N + n[:, None], mask=real, other=0.0).to(tl.float32) * LOG2E
    h = tl.zeros((N_PAD, WIDTH), tl.float32)
    if start_ptr is not None:
        h = tl.load(start_ptr + line.to(tl.int64) * (N * D) + states, mask=real, other=0.0)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + k, mask=inside, other=0.0).to(tl.float32)[None, :]
    if d_ptr is not None:
        skip = tl.load(d_ptr + k, mask=inside, other=0.0).to(tl.float32)[None, :]
    if saved_ptr is not None:
        saved_ptr += slot(cu_ptr, first, line // segments, t, CHUNK) * (N * D)
    if sum_ptr is not None:
        total = tl.zeros((1, WIDTH), tl.float32)

    rows = tl.arange(0, T)[:, None]
    now = first + begin
    # a lane's own address and a constant for each row: an integer sum would be made row by row
    x_at, dt_at = x_ptr + now * X + k[None, :], dt_ptr + now * DT + k[None, :]
    place = now if cu_ptr is not None else (line // segments).to(tl.int64) * pitch + begin
    bc_ptr += (place * G + group) * (2 * N_PAD)
    if y_ptr is not None:
        y_at = y_ptr + now * D + k[None, :]
    mask = (begin + rows < end) & inside[None, :]
    x_next = tl.load(x_at + rows * X, mask=mask, other=0.0).to(tl.float32)
    dt_next = tl.load(dt_at + rows * DT, mask=mask, other=0.0).to(tl.float32)
    if z_ptr is not None:
        z_at = z_ptr + now * Z + k[None, :]
        z_next = tl.load(z_at + rows * Z, mask=mask, other=0.0).to(tl.float32)
    bc_next = rows_of(bc_ptr, end - begin, G, N_PAD, T)
    for step in range(begin, end, T):
        x, dt = x_next, dt_next
        left = end - step
        mask = (rows < left) & inside[None, :]
        more = (rows < left - T) & inside[None, :]  # the next tile is on its way meanwhile
        x_at += T * X
        dt_at += T * DT
        x_next = tl.load(x_at + rows * X, mask=more, other=0.0).to(tl.float32)
        dt_next = tl.load(dt_at + rows * DT, mask=more, other=0.0).to(tl.float32)
        if z_ptr is not None:
            z = z_next
            z_at += T * Z
            z_next = tl.load(z_at + rows * Z, mask=more, other=0.0).to(tl.float32)
        if saved_ptr is not None and step % CHUNK == 0:
            at = saved_ptr + tl.cast(step // CHUNK, tl.int64) * (N * D)
            tl.store(at + states, h, mask=real)
        if bias_ptr is not None:
            dt += bias
        if SOFTPLUS:
            dt = softplus(dt)
        dt = tl.where(mask, dt, 0.0)  # beyond the end h stays what it is
        u = dt * x
        if sum_ptr is not None:
            total += tl.sum(dt, 0, keep_dims=True)
        bc = bc_next
        bc_ptr += T * G * 2 * N_PAD
        bc_next = rows_of(bc_ptr, left - T, G, N_PAD, T)
        y = tl.zeros((T, WIDTH), tl.float32)
        for r in tl.static_range(T):
            at = rows == r
            b, c = apart(bc[r], N_PAD)
            h = tl.exp2(row(dt, at) * A) * h + row(u, at) * b
            if y_ptr is not None:
                y = tl.where(at, tl.sum(h * c, 0, keep_dims=True), y)
        if y_ptr is not None:
            if d_ptr is not None:
                y += skip * x
            if z_ptr is not None:
                y *= z * sigmoid(z)
            tl.store(y_at + rows * D, y.to(y_ptr.dtype.element_ty), mask=mask)
            y_at += T * D
    if y_ptr is None:
        tl.store(last_ptr + line.to(tl.int64) * (N * D) + states, h, mask=real)
    elif line % segments == segments - 1:  # a state of the caller's, (d n)
        last_ptr += (line // segments).to(tl.int64) * (N * D)
        tl.store(last_ptr + k[None, :] * N + n[:, None], h, mask=real)
    if sum_ptr is not None:
        total = tl.reshape(total, (WIDTH,))
        tl.store(sum_ptr + line.to(tl.int64) * D + k, total, mask=inside)


@triton.jit(do_not_specialize=["segments"])
def carry_kernel(
    a_ptr,
    sum_ptr,
    end_ptr,
    start_ptr,
    segments,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """One program: WIDTH channels, one state index, all segments of one sequence.

    end (b segments n d) is what each segment makes of zero, sum the dt in it. start, in which the
    first segment of the walk has been filled in, becomes what each of them starts from.
    """
    k = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    n, line = tl.program_id(1), tl.program_id(2)
    states, inside = tl.num_programs(1), k < D
    a = tl.load(a_ptr + n * D + k, mask=inside, other=0.0)
    at = (line * segments + (segments - 1 if REVERSE else 0)).to(tl.int64)
    h = tl.load(start_ptr + (at * states + n) * D + k, mask=inside, other=0.0)
    for _ in range(segments - 1):
        total = tl.load(sum_ptr + at * D + k, mask=inside, other=0.0)
        h = tl.exp2(a * total) * h + tl.load(end_ptr + (at * states + n) * D + k, mask=inside)
        at += -1 if REVERSE else 1
        tl.store(start_ptr + (at * states + n) * D + k, h, mask=inside)


def carry(A2: Tensor, total: Tensor, end: Tensor, start: Tensor, reverse: bool) -> None:
    b, segments, n, d = end.shape
    grid = (cdiv(d, 128), n, b)
    carry_kernel[grid](
        A2, total, end, start, segments, D=d, WIDTH=128, REVERSE=reverse, num_warps=4
    )


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
    needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y (b t d), the last h (b d n), and the h kept for the backward pass.

    Arguments as in `selective_scan`, B and C (b t g n). Raises ValueError for float64.
    """
    plan = Plan.of(x, A, B, cu_seqlens, FORWARD)
    x, dt, z = (plan.tokens(v) for v in (x, dt, z))
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    size = saved_shape(x, A, B, cu_seqlens) if needs_grad else (0,)
    saved = torch.empty(size, dtype=torch.float32, device=x.device)
    A, (BC, _) = A.contiguous(), pack(plan, B, C)
    start = None if state is None else states_first(state)
    if plan.segments > 1:
        start = plan.starts(start, reverse=False)
        end, total = torch.empty_like(start), plan.totals()
        launch(plan, x, dt, A, BC, None, None, dt_bias, dt_softplus, None, None, None, end, total)
        carry(plan.decay(A), total, end, start, reverse=False)
    last = torch.empty(plan.sequences, plan.d, plan.n, dtype=torch.float32, device=x.device)
    kept = saved if needs_grad else None
    launch(plan, x, dt, A, BC, D, z, dt_bias, dt_softplus, start, y, kept, last, None)
    return y, last, saved


def launch(
    plan: Plan,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    BC: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    start: Tensor | None,
    y: Tensor | None,
    saved: Tensor | None,
    last: Tensor,
    total: Tensor | None,
) -> None:
    scan_kernel[plan.grid](
        x,
        dt,
        A,
        BC,
        D,
        z,
        dt_bias,
        start,
        plan.cu_seqlens,
        y,
        last,
        total,
        saved,
        plan.t,
        plan.pitch,
        plan.per_group,
        plan.segments,
        plan.segment,
        X=x.stride(1),
        DT=dt.stride(1),
        Z=0 if z is None else z.stride(1),
        D=plan.d,
        G=plan.g,
        N=plan.n,
        N_PAD=plan.n_pad,
        T=plan.tile.tokens,
        WIDTH=plan.tile.width,
        CHUNK=CHUNK,
        SOFTPLUS=dt_softplus,
        num_warps=plan.warps,
        num_stages=1,
    )
