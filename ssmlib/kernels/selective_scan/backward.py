"""The backward pass: one program walks from the last token of 32 channels to the first."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmlib.kernels.selective_scan.forward import carry
from ssmlib.kernels.selective_scan.layout import BACKWARD, CHUNK, Plan
from ssmlib.kernels.selective_scan.pack import pack
from ssmlib.kernels.selective_scan.parts import (
    LN2,
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
def ends_kernel(
    dy_ptr,
    dt_ptr,
    a_ptr,
    bc_ptr,
    z_ptr,
    bias_ptr,
    end_ptr,
    sum_ptr,
    t,
    pitch,
    per_group,
    segments,
    segment,
    DT: tl.constexpr,
    Z: tl.constexpr,
    D: tl.constexpr,
    G: tl.constexpr,
    N: tl.constexpr,
    N_PAD: tl.constexpr,
    T: tl.constexpr,
    WIDTH: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):
    """The gradient by the state before a segment, if that by the state after it were zero.

    One program: WIDTH channels, one segment of one sequence of a batch, T tokens a turn.
    """
    block, line = tl.program_id(0), tl.program_id(1)
    if line % segments == 0:
        return  # nothing comes before the first segment
    blocks = tl.cdiv(per_group, WIDTH)
    channel = (block % blocks) * WIDTH + tl.arange(0, WIDTH)
    inside = channel < per_group
    group = block // blocks
    k = group * per_group + channel
    begin = (line % segments) * segment
    end = tl.minimum(begin + segment, t)
    now = (line // segments).to(tl.int64) * t
    n = tl.arange(0, N_PAD)
    states = n[:, None] * D + k[None, :]
    real = (n < N)[:, None] & inside[None, :]
    A = tl.load(a_ptr + states, mask=real, other=0.0)
    e = tl.zeros((N_PAD, WIDTH), tl.float32)
    total = tl.zeros((1, WIDTH), tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + k, mask=inside, other=0.0).to(tl.float32)[None, :]
    bc_ptr += ((line // segments).to(tl.int64) * pitch * G + group) * (2 * N_PAD)
    rows = tl.arange(0, T)[:, None]
    tiles = tl.cdiv(end - begin, T)
    bc_ptr += tl.cast(begin + (tiles - 1) * T, tl.int64) * (G * 2 * N_PAD)
    bc_next = rows_of(bc_ptr, end - begin - (tiles - 1) * T, G, N_PAD, T)
    for i in range(tiles):
        step = begin + (tiles - 1 - i) * T
        bc = bc_next
        bc_ptr -= T * G * 2 * N_PAD
        bc_next = rows_of(bc_ptr, step - begin, G, N_PAD, T)
        mask = (step + rows < end) & inside[None, :]
        dt = tl.load(dt_ptr + (now + step) * DT + rows * DT + k[None, :], mask=mask, other=0.0)
        g = tl.load(dy_ptr + (now + step) * D + rows * D + k[None, :], mask=mask, other=0.0)
        dt, g = dt.to(tl.float32), g.to(tl.float32)
        if z_ptr is not None:
            z = tl.load(z_ptr + (now + step) * Z + rows * Z + k[None, :], mask=mask, other=0.0)
            z = z.to(tl.float32)
            g *= z * sigmoid(z)
        if bias_ptr is not None:
            dt += bias
        if SOFTPLUS:
            dt = softplus(dt)
        dt = tl.where(mask, dt, 0.0)
        total += tl.sum(dt, 0, keep_dims=True)
        for r in tl.static_range(T - 1, -1, -1):
            _, c = apart(bc[r], N_PAD)
            e = tl.exp2(row(dt, rows == r) * A) * (row(g, rows == r) * c + e)
    tl.store(end_ptr + line.to(tl.int64) * (N * D) + states, e, mask=real)
    total = tl.reshape(total, (WIDTH,))
    tl.store(sum_ptr + line.to(tl.int64) * D + k, total, mask=inside)


@triton.jit
def coefficients(ptr, at, here, cu_ptr, T: tl.constexpr):
    """T tokens of one row of B or C. In a pack, what lies beyond the end is another sequence's."""
    if cu_ptr is None:
        return tl.load(ptr + tl.multiple_of(at, T))
    else:
        return tl.load(ptr + at, mask=here, other=0.0)


@triton.jit(do_not_specialize=["per_group"])
def gradient_kernel(
    dy_ptr,
    x_ptr,
    dt_ptr,
    a_ptr,
    bc_ptr,
    b_by_state_ptr,
    c_by_state_ptr,
    d_ptr,
    z_ptr,
    bias_ptr,
    saved_ptr,
    cu_ptr,
    h_ptr,
    carry_ptr,
    da_ptr,
    sums_ptr,
    dx_ptr,
    ddt_ptr,
    dz_ptr,
    shares_ptr,
    t,
    pitch,
    per_group,
    segments,
    segment,
    part,
    share_rows,
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
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: WIDTH channels, one part of one segment of one sequence, from its end.

    Each chunk is run through twice. Forward, from the h that was kept, to leave h before each tile
    of T tokens in h_ptr, which only this program uses. Then from the last tile to the first, and in
    a tile one state index after the other: a, h and the gradient of h for T tokens at once are all
    that has to be held of the (t, d, n) there are.
    """
    block, line = tl.program_id(0), tl.program_id(1)
    blocks = tl.cdiv(per_group, WIDTH)
    channel = (block % blocks) * WIDTH + tl.arange(0, WIDTH)
    inside = channel < per_group
    group = block // blocks
    k = group * per_group + channel
    first, length = sequence(cu_ptr, line // segments, t)
    begin = (line % segments) * segment
    stop = tl.minimum(begin + segment, length)
    begin += part * (segment if cu_ptr is not None else share_rows)
    if cu_ptr is None:
        stop = tl.minimum(begin + share_rows, stop)
    n = tl.arange(0, N_PAD)
    states = n[:, None] * D + k[None, :]
    real = (n < N)[:, None] & inside[None, :]
    A = tl.load(a_ptr + states, mask=real, other=0.0)
    bias = tl.zeros((1, WIDTH), tl.float32)
    skip = tl.zeros((1, WIDTH), tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + k, mask=inside, other=0.0).to(tl.float32)[None, :]
    if d_ptr is not None:
        skip = tl.load(d_ptr + k, mask=inside, other=0.0).to(tl.float32)[None, :]
    saved_ptr += slot(cu_ptr, first, line // segments, t, CHUNK) * (N * D)
    h_ptr += line.to(tl.int64) * (CHUNK // T * N * D)
    carry_ptr += line.to(tl.int64) * (N * D) + k
    da_ptr += line.to(tl.int64) * (N * D) + k
    # a lane's own address and a constant for each row: an integer sum would be made row by row
    x_at, dt_at = x_ptr + first * X + k[None, :], dt_ptr + first * DT + k[None, :]
    dy_at = dy_ptr + first * D + k[None, :]
    dx_at, ddt_at = dx_ptr + first * D + k[None, :], ddt_ptr + first * D + k[None, :]
    if z_ptr is not None:
        z_at, dz_at = z_ptr + first * Z + k[None, :], dz_ptr + first * D + k[None, :]
    if cu_ptr is not None:
        share = block.to(tl.int64) * share_rows + first
        b_first = first
    else:
        share = (block.to(tl.int64) * tl.num_programs(1) + line) * share_rows - begin
        b_first = (line // segments).to(tl.int64) * pitch
    bc_ptr += (b_first * G + group) * (2 * N_PAD)
    by_state = group.to(tl.int64) * N * pitch
    by_state += first if cu_ptr is not None else b_first * (G * N)
    b_by_state_ptr += by_state
    c_by_state_ptr += by_state

    rows = tl.arange(0, T)[:, None]
    of_b = tl.arange(0, T)
    both_of_b = tl.arange(0, 2 * T)
    ones = tl.full((WIDTH, N_PAD), 1.0, OPERAND)
    dbias = tl.zeros((1, WIDTH), tl.float32)
    dskip = tl.zeros((1, WIDTH), tl.float32)
    chunks = tl.cdiv(stop - begin, CHUNK)
    for chunk in range(chunks):
        start = begin + (chunks - 1 - chunk) * CHUNK
        tiles = tl.cdiv(tl.minimum(start + CHUNK, stop) - start, T)
        h = tl.load(
            saved_ptr + tl.cast(start // CHUNK, tl.int64) * (N * D) + states, mask=real, other=0.0
        )
        tl.debug_barrier()  # the last chunk's states have been read
        tl.store(h_ptr + states, h, mask=real)
        step = tl.cast(start, tl.int64)
        left = (tiles - 1) * T  # not the last tile: nothing comes after it
        mask = (rows < left) & inside[None, :]
        x_next = tl.load(x_at + step * X + rows * X, mask=mask, other=0.0)
        dt_next = tl.load(dt_at + step * DT + rows * DT, mask=mask, other=0.0)
        bc_next = rows_of(bc_ptr + step * (G * 2 * N_PAD), left, G, N_PAD, T)
        for j in range(tiles - 1):
            x, dt, bc = x_next.to(tl.float32), dt_next.to(tl.float32) + bias, bc_next
            step += T
            left -= T
            mask = (rows < left) & inside[None, :]
            x_next = tl.load(x_at + step * X + rows * X, mask=mask, other=0.0)
            dt_next = tl.load(dt_at + step * DT + rows * DT, mask=mask, other=0.0)
            bc_next = rows_of(bc_ptr + step * (G * 2 * N_PAD), left, G, N_PAD, T)
            if SOFTPLUS:
                dt = softplus(dt)
            u = dt * x
            for r in tl.static_range(T):
                b, _ = apart(bc[r], N_PAD)
                h = tl.exp2(row(dt, rows == r) * A) * h + row(u, rows == r) * b
            tl.store(h_ptr + (j + 1) * (N * D) + states, h, mask=real)
        tl.debug_barrier()
        for i in range(tiles):
            j = tiles - 1 - i
            now = start + j * T
            step = tl.cast(now, tl.int64)
            valid = now + rows < stop
            mask = valid & inside[None, :]
            x = tl.load(x_at + step * X + rows * X, mask=mask, other=0.0)
            raw = tl.load(dt_at + step * DT + rows * DT, mask=mask, other=0.0)
            dy = tl.load(dy_at + step * D + rows * D, mask=mask, other=0.0)
            x, g = x.to(tl.float32), dy.to(tl.float32)
            raw = raw.to(tl.float32) + bias
            dt = softplus(raw) if SOFTPLUS else raw
            dt = tl.where(mask, dt, 0.0)
            u = dt * x
            if z_ptr is not None:
                z = tl.load(z_at + step * Z + rows * Z, mask=mask, other=0.0)
                z = z.to(tl.float32)
                s = sigmoid(z)
                by_gate = g * s * (1.0 + z * (1.0 - s))
                g *= z * s
                y = skip * x
            dx = tl.zeros((T, WIDTH), tl.float32)
            ddt = tl.zeros((T, WIDTH), tl.float32)
            shares = tl.zeros((2 * T, N_PAD), tl.float32)
            here = now + of_b < stop
            b_next = coefficients(b_by_state_ptr, step + of_b, here, cu_ptr, T)
            c_next = coefficients(c_by_state_ptr, step + of_b, here, cu_ptr, T)
            a_next = tl.load(a_ptr + k, mask=inside, other=0.0)[None, :]
            h_next = tl.load(h_ptr + j * (N * D) + k, mask=inside, other=0.0)[None, :]
            e_next = tl.load(carry_ptr, mask=inside, other=0.0)[None, :]
            da_next = tl.load(da_ptr, mask=inside, other=0.0)
            for m in tl.range(0, N, num_stages=1):
                b, c, a_log = b_next[:, None], c_next[:, None], a_next
                state, e, da = h_next, e_next, da_next
                ahead = tl.minimum(m + 1, N - 1)  # its loads are on their way meanwhile
                at = tl.cast(ahead, tl.int64) * pitch + step + of_b
                b_next = coefficients(b_by_state_ptr, at, here, cu_ptr, T)
                c_next = coefficients(c_by_state_ptr, at, here, cu_ptr, T)
                a_next = tl.load(a_ptr + ahead * D + k, mask=inside, other=0.0)[None, :]
                at = (j * N + ahead) * D + k
                h_next = tl.load(h_ptr + at, mask=inside, other=0.0)[None, :]
                e_next = tl.load(carry_ptr + ahead * D, mask=inside, other=0.0)[None, :]
                da_next = tl.load(da_ptr + ahead * D, mask=inside, other=0.0)
                a = tl.exp2(dt * a_log)
                v, w = u * b, g * c
                hs, dh = v, w
                for r in tl.static_range(T):
                    state = row(a, rows == r) * state + row(v, rows == r)
                    hs = tl.where(rows == r, state, hs)
                for r in tl.static_range(T - 1, -1, -1):
                    e = row(w, rows == r) + e
                    dh = tl.where(rows == r, e, dh)
                    e = row(a, rows == r) * e
                tl.store(carry_ptr + m * D, tl.reshape(e, (WIDTH,)), mask=inside)
                if z_ptr is not None:
                    y += hs * c
                dx += dh * b
                q = dh * (hs - v)  # by dt A: dh a h of the token before
                ddt += q * a_log
                tl.store(da_ptr + m * D, da + tl.sum(q * dt, 0), mask=inside)
                both = tl.join(dh * u, g * hs)
                # the last axis, of one element, gives the compiler a shorter way to the product
                both = tl.reshape(tl.permute(both, (2, 0, 1)), (2 * T, WIDTH, 1))
                both = tl.sum(both, 2).to(OPERAND)
                sums = tl.dot(both, ones, input_precision=PRECISION)  # over channels
                shares = tl.where(n[None, :] == m, sums, shares)
            to = (share + now + both_of_b % T) * 2 + both_of_b // T
            tl.store(
                shares_ptr + to[:, None] * N_PAD + n[None, :],
                shares,
                mask=(now + both_of_b % T < stop)[:, None],
            )
            ddt = dx * x + ddt * LN2
            if SOFTPLUS:
                ddt *= sigmoid(raw)
            ddt = tl.where(mask, ddt, 0.0)
            dx = dx * dt + skip * g
            tl.store(dx_at + step * D + rows * D, dx.to(dx_ptr.dtype.element_ty), mask=mask)
            tl.store(ddt_at + step * D + rows * D, ddt.to(ddt_ptr.dtype.element_ty), mask=mask)
            if z_ptr is not None:
                dz = by_gate * y
                tl.store(dz_at + step * D + rows * D, dz.to(dz_ptr.dtype.element_ty), mask=mask)
            dbias += tl.sum(ddt, 0, keep_dims=True)
            dskip += tl.sum(g * x, 0, keep_dims=True)
    sums_ptr += line.to(tl.int64) * (2 * D) + k[None, :]
    before = tl.load(sums_ptr, mask=inside[None, :], other=0.0)
    tl.store(sums_ptr, before + dbias, mask=inside[None, :])
    before = tl.load(sums_ptr + D, mask=inside[None, :], other=0.0)
    tl.store(sums_ptr + D, before + dskip, mask=inside[None, :])


@triton.jit
def gather_kernel(
    shares_ptr,
    db_ptr,
    dc_ptr,
    t,
    rows,
    segments,
    segment,
    part,
    share_rows,
    blocks,
    G: tl.constexpr,
    N: tl.constexpr,
    N_PAD: tl.constexpr,
    PACKED: tl.constexpr,
    SIZE: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """dB and dC: the shares (blocks rows 2 n) of all blocks of a group, added in their order."""
    group = tl.program_id(1)
    i = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    size = tl.cast(rows, tl.int64) * (2 * N_PAD)
    inside = i < size
    at, n = i // (2 * N_PAD), i % N_PAD
    if not PACKED:
        line, local = at // share_rows, at % share_rows + part * share_rows
        step = (line % segments) * segment + local
        inside &= (local < segment) & (step < t)
        at = (line // segments) * t + step
    inside &= n < N
    shares_ptr += group * blocks * size + i
    total = tl.zeros((SIZE,), tl.float32)
    for first in range(0, blocks, AHEAD):
        for j in tl.static_range(AHEAD):  # so many loads at a time
            total += tl.load(shares_ptr + j * size, mask=inside & (first + j < blocks), other=0.0)
        shares_ptr += AHEAD * size
    is_c = (i // N_PAD) % 2 == 1
    out = (at * G + group) * N + n
    tl.store(db_ptr + out, total.to(db_ptr.dtype.element_ty), mask=inside & (is_c == 0))
    tl.store(dc_ptr + out, total.to(dc_ptr.dtype.element_ty), mask=inside & is_c)


def backward(
    dy: Tensor,
    d_last: Tensor | None,
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
    saved: Tensor,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of x, dt, A, B, C, D, z, dt_bias and state, None where the input was.

    `saved` is what `forward` has kept; d_last None is as if it were zero. Each gradient is in its
    input's dtype.
    """
    plan = Plan.of(x, A, B, cu_seqlens, BACKWARD)
    like = (x, dt, A, B, C, D, z, dt_bias, state)
    dy, x, dt, z = dy.contiguous(), plan.tokens(x), plan.tokens(dt), plan.tokens(z)
    A2, (BC, by_state) = plan.decay(A), pack(plan, B, C, by_state=True)
    start = plan.starts(None if d_last is None else d_last.float().mT, reverse=True)
    if plan.segments > 1:
        end, total = torch.empty_like(start), plan.totals()
        _ends(plan, dy, dt, A2, BC, z, dt_bias, dt_softplus, end, total)
        carry(A2, total, end, start, reverse=True)
    dx, ddt = (torch.empty(v.shape, dtype=v.dtype, device=v.device) for v in (x, dt))
    dz = None if z is None else torch.empty(z.shape, dtype=z.dtype, device=z.device)
    dB, dC = (torch.empty(M.shape, dtype=M.dtype, device=M.device) for M in (B, C))
    dA, sums = torch.zeros_like(start), torch.zeros(*start.shape[:2], 2, plan.d, device=x.device)
    blocks, lines = plan.grid
    parts, share_rows = plan.parts(x.dtype.itemsize)
    rows = share_rows if cu_seqlens is not None else lines * share_rows
    shares = torch.empty(blocks, rows, 2, plan.n_pad, dtype=torch.float32, device=x.device)
    room = (lines, CHUNK // plan.tile.tokens, plan.n, plan.d)
    h = torch.empty(room, dtype=torch.float32, device=x.device)
    for part in reversed(range(parts)):
        gradient_kernel[plan.grid](
            dy, x, dt, A2, BC, *by_state, D, z, dt_bias, saved, cu_seqlens, h, start, dA, sums,
            dx, ddt, dz, shares, plan.t, plan.pitch, plan.per_group, plan.segments, plan.segment,
            part, share_rows, X=x.stride(1), DT=dt.stride(1), Z=0 if z is None else z.stride(1),
            D=plan.d, G=plan.g, N=plan.n, N_PAD=plan.n_pad, T=plan.tile.tokens,
            WIDTH=plan.tile.width, CHUNK=CHUNK, SOFTPLUS=dt_softplus,
            OPERAND=tl.bfloat16 if x.is_cuda and x.dtype == torch.bfloat16 else tl.float32,
            PRECISION="tf32" if x.dtype.itemsize == 2 else "tf32x3", num_warps=1, num_stages=1,
        )  # fmt: skip
        size = 128
        gather_kernel[(cdiv(rows * 2 * plan.n_pad, size), plan.g)](
            shares, dB, dC, plan.t, rows, plan.segments, plan.segment, part, share_rows,
            plan.blocks, G=plan.g, N=plan.n, N_PAD=plan.n_pad, PACKED=cu_seqlens is not None,
            SIZE=size, AHEAD=8, num_warps=1,
        )  # fmt: skip
    d_state = None if state is None else start[:, 0].mT
    d_bias, d_skip = (sums[:, :, i].sum((0, 1)) for i in range(2))  # memory of its own each
    found = (dx, ddt, dA.sum((0, 1)).mT, dB, dC, d_skip, dz, d_bias, d_state)
    return tuple(
        None if v is None else grad.to(v.dtype).contiguous()
        for grad, v in zip(found, like, strict=True)
    )


def _ends(
    plan: Plan,
    dy: Tensor,
    dt: Tensor,
    A2: Tensor,
    BC: Tensor,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    end: Tensor,
    total: Tensor,
) -> None:
    width = 32
    blocks = cdiv(plan.per_group, width)
    ends_kernel[(plan.g * blocks, plan.grid[1])](
        dy, dt, A2, BC, z, dt_bias, end, total, plan.t, plan.pitch, plan.per_group, plan.segments,
        plan.segment, DT=dt.stride(1), Z=0 if z is None else z.stride(1), D=plan.d, G=plan.g,
        N=plan.n, N_PAD=plan.n_pad, T=8, WIDTH=width, SOFTPLUS=dt_softplus, num_warps=plan.warps,
        num_stages=1,
    )  # fmt: skip
