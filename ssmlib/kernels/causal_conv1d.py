r"""The causal convolution of a few taps on a GPU: $y_t = f(b + \sum_i w_i x_{t-W+1+i})$.

A lane owns a few channels and walks along time with the last W - 1 inputs in registers, so that
each row of x is read once. Rows come in groups of N, all loads of a group before its first product,
which keeps enough bytes in flight. A program walks `chunk` rows.

The gradient walks the same way. It makes the pre-activation again from x, keeps the last W
gradients of it, and puts out dx W - 1 rows late. The weights' gradient stays in registers along the
way; each program writes its part of it, and the parts are added in order: the same bits every time.

What happens at the ends of a sequence, to the states and from their gradients, is the work of
kernels of its own, `ends_kernel` and `ends_backward_kernel`: they touch W - 1 rows of each.

x, y (b t d), each row contiguous; w (d W); states (s d W-1), s = b, or the sequences of a pack.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmlib.kernels.sizes import cdiv, power_of_2

LENGTHS = ("t", "s", "chunk")  # another length of text is not another kernel to compile


@triton.jit
def _owner(cu_ptr, s, row):
    """The sequence that holds this row, by bisection."""
    low = row * 0
    high = low + s
    while high - low > 1:
        middle = (low + high) // 2
        below = tl.load(cu_ptr + middle).to(tl.int32) <= row
        low = tl.where(below, middle, low)
        high = tl.where(below, high, middle)
    return low


@triton.jit
def _weights(
    w_ptr, bias_ptr, channel, inside, HAS_BIAS: tl.constexpr, W: tl.constexpr, WIDE: tl.constexpr
):
    taps = ()
    for i in tl.static_range(W):
        taps = taps + (tl.load(w_ptr + channel * W + i, mask=inside, other=0.0).to(WIDE),)
    bias = tl.zeros(channel.shape, WIDE)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channel, mask=inside, other=0.0).to(WIDE)
    return taps, bias


@triton.jit
def _window(
    x_ptr,
    x_t,
    state_ptr,
    row,
    begin,
    inside,
    HAS_STATE: tl.constexpr,
    W: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The W - 1 inputs before `row` of a sequence that begins at `begin`: of x, or of its state."""
    window = ()
    for i in tl.static_range(W - 1):
        at = row - (W - 1) + i
        here = inside & (at >= begin)
        x = tl.load(x_ptr + tl.cast(at, tl.int64) * x_t, mask=here, other=0.0).to(WIDE)
        if HAS_STATE:
            old = state_ptr + (W - 1 + at - begin)
            x += tl.load(old, mask=inside & (at < begin), other=0.0).to(WIDE)
        window = window + (x,)
    return window


@triton.jit
def _restart(
    window, new, state_ptr, inside, HAS_STATE: tl.constexpr, W: tl.constexpr, WIDE: tl.constexpr
):
    """The window at the first token of a sequence, where `new`; as it was, elsewhere."""
    restarted = ()
    for i in tl.static_range(W - 1):
        x = tl.zeros(inside.shape, WIDE)
        if HAS_STATE:
            x = tl.load(state_ptr + i, mask=inside & new, other=0.0).to(WIDE)
        restarted = restarted + (tl.where(new, x, window[i]),)
    return restarted


@triton.jit
def _group(ptr, stride, first, stop, inside, N: tl.constexpr):
    rows = ()
    for i in tl.static_range(N):
        mask = inside & (first + i < stop)
        rows = rows + (tl.load(ptr + tl.cast(first + i, tl.int64) * stride, mask=mask, other=0.0),)
    return rows


@triton.jit
def _dot(taps, window, bias, W: tl.constexpr):
    y = bias
    for i in tl.static_range(W):
        y += taps[i] * window[i]
    return y


@triton.jit
def _slope(y):
    """The derivative of silu."""
    gate = tl.sigmoid(y)
    return gate * (1.0 + y * (1.0 - gate))


@triton.jit(do_not_specialize=LENGTHS)
def conv_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    state_ptr,
    cu_ptr,
    y_ptr,
    x_b,
    x_t,
    t,
    d,
    s,
    chunk,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    HAS_STATE: tl.constexpr,
    PACKED: tl.constexpr,
    W: tl.constexpr,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One program: BLOCK channels of `chunk` rows."""
    channel = tl.program_id(0) % tl.cdiv(d, BLOCK) * BLOCK + tl.arange(0, BLOCK)
    piece = tl.program_id(0) // tl.cdiv(d, BLOCK)
    b = (piece // tl.cdiv(t, chunk)).to(tl.int64)
    first = piece % tl.cdiv(t, chunk) * chunk
    inside = channel < d
    taps, bias = _weights(w_ptr, bias_ptr, channel, inside, HAS_BIAS, W, WIDE)
    stop = tl.minimum(first + chunk, t)
    x_ptr += b * x_b + channel
    y_ptr += b * t * d + channel
    begin, owner, end = 0, b, t
    if PACKED:
        owner = _owner(cu_ptr, s, first).to(tl.int64)
        begin, end = tl.load(cu_ptr + owner).to(tl.int32), tl.load(cu_ptr + owner + 1).to(tl.int32)
    old = state_ptr + (owner * d + channel) * (W - 1)
    window = _window(x_ptr, x_t, old, first, begin, inside, HAS_STATE, W, WIDE)
    for i in range(first, stop, N):
        rows = _group(x_ptr, x_t, i, stop, inside, N)
        for j in tl.static_range(N):
            if PACKED:
                new = (end == i + j) & (end < t)
                owner += new.to(tl.int64)
                end = tl.load(cu_ptr + owner + 1).to(tl.int32)
                old = state_ptr + (owner * d + channel) * (W - 1)
                window = _restart(window, new, old, inside, HAS_STATE, W, WIDE)
            window = window + (rows[j].to(WIDE),)
            y = _dot(taps, window, bias, W)
            window = window[1:]
            if SILU:
                y = y * tl.sigmoid(y)
            at = y_ptr + tl.cast(i + j, tl.int64) * d
            tl.store(at, y.to(y_ptr.dtype.element_ty), mask=inside & (i + j < stop))


@triton.jit(do_not_specialize=LENGTHS)
def conv_backward_kernel(
    dy_ptr,
    x_ptr,
    w_ptr,
    bias_ptr,
    state_ptr,
    cu_ptr,
    dx_ptr,
    dw_ptr,
    g_b,
    g_t,
    x_b,
    x_t,
    t,
    d,
    s,
    chunk,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    HAS_STATE: tl.constexpr,
    PACKED: tl.constexpr,
    W: tl.constexpr,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One program: BLOCK channels of `chunk` rows of dx, and their part of dw (part W+1 d)."""
    channel = tl.program_id(0) % tl.cdiv(d, BLOCK) * BLOCK + tl.arange(0, BLOCK)
    piece = tl.program_id(0) // tl.cdiv(d, BLOCK)
    b = (piece // tl.cdiv(t, chunk)).to(tl.int64)
    first = piece % tl.cdiv(t, chunk) * chunk
    inside = channel < d
    taps, bias = _weights(w_ptr, bias_ptr, channel, inside, HAS_BIAS, W, WIDE)
    stop = tl.minimum(first + chunk, t)
    x_ptr += b * x_b + channel
    dy_ptr += b * g_b + channel
    dx_ptr += b * t * d + channel
    begin, owner, end = 0, b, t
    if PACKED:
        owner = _owner(cu_ptr, s, first).to(tl.int64)
        begin, end = tl.load(cu_ptr + owner).to(tl.int32), tl.load(cu_ptr + owner + 1).to(tl.int32)
    old = state_ptr + (owner * d + channel) * (W - 1)
    window = _window(x_ptr, x_t, old, first, begin, inside, HAS_STATE, W, WIDE)
    grads, begins, dw = (), (), ()
    for _ in tl.static_range(W - 1):
        grads = grads + (tl.zeros((BLOCK,), WIDE),)
        begins = begins + (first,)
    for _ in tl.static_range(W):
        dw = dw + (tl.zeros((BLOCK,), WIDE),)
    dbias = tl.zeros((BLOCK,), WIDE)
    for i in range(first, stop + W - 1, N):
        xs = _group(x_ptr, x_t, i, t, inside, N)
        gs = _group(dy_ptr, g_t, i, t, inside, N)
        for j in tl.static_range(N):
            if PACKED:
                new = (end == i + j) & (end < t)
                owner += new.to(tl.int64)
                begin = tl.load(cu_ptr + owner).to(tl.int32)
                end = tl.load(cu_ptr + owner + 1).to(tl.int32)
                old = state_ptr + (owner * d + channel) * (W - 1)
                window = _restart(window, new, old, inside, HAS_STATE, W, WIDE)
                begins = begins + (begin,)
            window = window + (xs[j].to(WIDE),)
            g = gs[j].to(WIDE)
            if SILU:
                g *= _slope(_dot(taps, window, bias, W))
            own = tl.where(i + j < stop, g, 0.0)  # what comes after is the next program's
            dbias += own
            added = ()
            for m in tl.static_range(W):
                added = added + (dw[m] + own * window[m],)
            dw = added
            grads = grads + (g,)
            row = i + j - (W - 1)
            dx = tl.zeros((BLOCK,), WIDE)
            for m in tl.static_range(W):
                by = taps[W - 1 - m] * grads[m]
                if PACKED:
                    by = tl.where(begins[m] <= row, by, 0.0)
                dx += by
            at = dx_ptr + tl.cast(row, tl.int64) * d
            mask = inside & (row >= first) & (row < stop)
            tl.store(at, dx.to(dx_ptr.dtype.element_ty), mask=mask)
            window, grads = window[1:], grads[1:]
            if PACKED:
                begins = begins[1:]
    out = dw_ptr + piece.to(tl.int64) * (W + 1) * d + channel
    for m in tl.static_range(W):
        tl.store(out + m * d, dw[m], mask=inside)
    tl.store(out + W * d, dbias, mask=inside)


@triton.jit(do_not_specialize=("parts",))
def add_kernel(part_ptr, dw_ptr, dbias_ptr, parts, d, W: tl.constexpr, BLOCK: tl.constexpr):
    """One program: the sum of all parts for BLOCK channels of one tap, or, after the last, of the
    bias. Rows of parts are added side by side, then up: always in the same order."""
    ROWS: tl.constexpr = 32
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tap, inside = tl.program_id(1), channel < d
    total = tl.zeros((ROWS, BLOCK), part_ptr.dtype.element_ty)
    for first in range(0, parts, ROWS):
        part = first + tl.arange(0, ROWS)
        at = (part.to(tl.int64) * (W + 1) + tap)[:, None] * d + channel[None, :]
        total += tl.load(part_ptr + at, mask=(part < parts)[:, None] & inside[None, :], other=0.0)
    sums = tl.sum(total, 0)
    if tap < W:
        tl.store(dw_ptr + channel * W + tap, sums.to(dw_ptr.dtype.element_ty), mask=inside)
    else:
        tl.store(dbias_ptr + channel, sums.to(dbias_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=LENGTHS[:1])
def ends_kernel(
    x_ptr,
    state_ptr,
    cu_ptr,
    last_ptr,
    x_b,
    x_t,
    t,
    d,
    HAS_STATE: tl.constexpr,
    PACKED: tl.constexpr,
    W: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: BLOCK channels of the state after one sequence."""
    channel = tl.program_id(0) % tl.cdiv(d, BLOCK) * BLOCK + tl.arange(0, BLOCK)
    owner = (tl.program_id(0) // tl.cdiv(d, BLOCK)).to(tl.int64)
    inside = channel < d
    begin, end, b = 0, t, owner
    if PACKED:
        begin, end = tl.load(cu_ptr + owner).to(tl.int32), tl.load(cu_ptr + owner + 1).to(tl.int32)
        b = owner * 0
    at = (owner * d + channel) * (W - 1)
    x_ptr += b * x_b + channel
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    window = _window(x_ptr, x_t, state_ptr + at, end, begin, inside, HAS_STATE, W, dtype)
    for i in tl.static_range(W - 1):
        tl.store(last_ptr + at + i, window[i], mask=inside)


@triton.jit(do_not_specialize=LENGTHS[:1])
def ends_backward_kernel(
    dy_ptr,
    dlast_ptr,
    x_ptr,
    w_ptr,
    bias_ptr,
    state_ptr,
    cu_ptr,
    dx_ptr,
    dstate_ptr,
    g_b,
    g_t,
    x_b,
    x_t,
    t,
    d,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    HAS_STATE: tl.constexpr,
    HAS_DLAST: tl.constexpr,
    PACKED: tl.constexpr,
    W: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One program: BLOCK channels of one sequence: add dlast to its last W - 1 rows of dx, and find
    the gradient of its state, from its first W - 1 outputs and, if it is that short, from dlast."""
    channel = tl.program_id(0) % tl.cdiv(d, BLOCK) * BLOCK + tl.arange(0, BLOCK)
    owner = (tl.program_id(0) // tl.cdiv(d, BLOCK)).to(tl.int64)
    inside = channel < d
    begin, end, b = 0, t, owner
    if PACKED:
        begin, end = tl.load(cu_ptr + owner).to(tl.int32), tl.load(cu_ptr + owner + 1).to(tl.int32)
        b = owner * 0
    own = (owner * d + channel) * (W - 1)
    x_ptr += b * x_b + channel
    dy_ptr += b * g_b + channel
    dx_ptr += b * t * d + channel
    if HAS_DLAST:
        for i in tl.static_range(W - 1):
            row = end - (W - 1) + i
            here = inside & (row >= begin)
            at = dx_ptr + tl.cast(row, tl.int64) * d
            more = tl.load(dlast_ptr + own + i, mask=here, other=0.0).to(WIDE)
            dx = tl.load(at, mask=here, other=0.0).to(WIDE) + more
            tl.store(at, dx.to(dx_ptr.dtype.element_ty), mask=here)
    if HAS_STATE:
        taps, bias = _weights(w_ptr, bias_ptr, channel, inside, HAS_BIAS, W, WIDE)
        window = _window(x_ptr, x_t, state_ptr + own, begin, begin, inside, HAS_STATE, W, WIDE)
        grads = ()
        for i in tl.static_range(W - 1):
            here, row = inside & (begin + i < end), tl.cast(begin + i, tl.int64)
            window = window + (tl.load(x_ptr + row * x_t, mask=here, other=0.0).to(WIDE),)
            g = tl.load(dy_ptr + row * g_t, mask=here, other=0.0).to(WIDE)
            if SILU:
                g *= _slope(_dot(taps, window, bias, W))
            grads = grads + (g,)
            window = window[1:]
        for i in tl.static_range(W - 1):
            dold = tl.zeros((BLOCK,), WIDE)
            for j in tl.static_range(i + 1):  # token j is i - j taps from the newest it can reach
                dold += taps[i - j] * grads[j]
            if HAS_DLAST:
                still = i - (end - begin)  # where this input is in the state after the sequence
                here = inside & (still >= 0)
                dold += tl.load(dlast_ptr + own + still, mask=here, other=0.0).to(WIDE)
            tl.store(dstate_ptr + own + i, dold.to(dstate_ptr.dtype.element_ty), mask=inside)


@triton.jit
def step_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    state_ptr,
    y_ptr,
    x_b,
    d,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    W: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One program: one token of BLOCK channels; the state moves on by one place."""
    channel = tl.program_id(0) % tl.cdiv(d, BLOCK) * BLOCK + tl.arange(0, BLOCK)
    b = (tl.program_id(0) // tl.cdiv(d, BLOCK)).to(tl.int64)
    inside = channel < d
    taps, y = _weights(w_ptr, bias_ptr, channel, inside, HAS_BIAS, W, WIDE)
    x = tl.load(x_ptr + b * x_b + channel, mask=inside, other=0.0)
    state_ptr += (b * d + channel) * (W - 1)
    for i in tl.static_range(W - 1):
        old = tl.load(state_ptr + i, mask=inside, other=0.0)
        y += taps[i] * old.to(WIDE)
        if i > 0:
            tl.store(state_ptr + i - 1, old, mask=inside)
    tl.store(state_ptr + W - 2, x, mask=inside)
    y += taps[W - 1] * x.to(WIDE)
    if SILU:
        y = y * tl.sigmoid(y)
    tl.store(y_ptr + b * d + channel, y.to(y_ptr.dtype.element_ty), mask=inside)


# By the largest width: channels of a lane and rows of a group that leave registers for the window.
FORWARD = {4: (4, 8), 8: (4, 4), 16: (2, 2)}
BACKWARD = {4: (4, 4), 8: (2, 4), 16: (1, 2)}
PROGRAMS = 4096  # that keep an H100 busy


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y (b t d), and the states after each sequence, (b d w-1) or (s d w-1)."""
    (b, t, d), w, x = x.shape, weight.shape[1], _rows(x)
    s = b if cu_seqlens is None else len(cu_seqlens) - 1
    y, last = x.new_empty(b, t, d), x.new_empty(s, d, w - 1)
    given, inputs = _given(x, weight, bias, silu, state, cu_seqlens)
    shape = _shape(FORWARD, w, d)
    blocks = cdiv(d, shape["BLOCK"])
    chunk = _chunk(b, t, blocks, most=32)
    conv_kernel[(blocks * cdiv(t, chunk) * b,)](
        x,
        *inputs,
        y,
        *x.stride()[:2],
        t,
        d,
        s,
        chunk,
        **given,
        **shape,
    )
    _, _, *ends = inputs
    kinds = {name: given[name] for name in ("HAS_STATE", "PACKED", "W")}
    ends_kernel[(blocks * s,)](
        x, *ends, last, *x.stride()[:2], t, d, **kinds, BLOCK=shape["BLOCK"], num_warps=1
    )
    return y, last


def backward(
    dy: Tensor,
    dlast: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients by x, weight, bias and state; the last two are there without them, too."""
    (b, t, d), w, x, dy = x.shape, weight.shape[1], _rows(x), _rows(dy)
    s = b if cu_seqlens is None else len(cu_seqlens) - 1
    dx, dstate = x.new_empty(b, t, d), x.new_empty(s, d, w - 1)
    given, inputs = _given(x, weight, bias, silu, state, cu_seqlens)
    shape = _shape(BACKWARD, w, d)
    blocks = cdiv(d, shape["BLOCK"])
    chunk = _chunk(b, t, blocks, most=128)
    pieces, sizes = cdiv(t, chunk) * b, (*dy.stride()[:2], *x.stride()[:2], t, d)
    wide = torch.float64 if given["WIDE"] == tl.float64 else torch.float32
    parts = x.new_empty(pieces, w + 1, d, dtype=wide)
    dweight = weight.new_empty(d, w)
    dbias = weight.new_empty(d, dtype=weight.dtype if bias is None else bias.dtype)
    conv_backward_kernel[(blocks * pieces,)](
        dy, x, *inputs, dx, parts, *sizes, s, chunk, **given, **shape
    )
    if dlast is not None or state is not None:
        ends_backward_kernel[(blocks * s,)](
            dy,
            x if dlast is None else dlast.contiguous(),
            x,
            *inputs,
            dx,
            dstate,
            *sizes,
            **given,
            HAS_DLAST=dlast is not None,
            BLOCK=shape["BLOCK"],
            num_warps=1,
        )
    add_kernel[(cdiv(d, 64), w + 1)](parts, dweight, dbias, pieces, d, W=w, BLOCK=64)
    return dx, dweight, dbias, dstate


def step_(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, state: Tensor) -> Tensor:
    """One token x (b d): y (b d), and `state` (b d w-1), contiguous, moves on by one place."""
    (b, d), x = x.shape, _rows(x)
    y, block = x.new_empty(b, d), min(128, power_of_2(d))
    given, (weight, bias, state, _) = _given(x, weight, bias, silu, state, None)
    kinds = {name: given[name] for name in ("HAS_BIAS", "SILU", "W", "WIDE")}
    step_kernel[(cdiv(d, block) * b,)](
        x, weight, bias, state, y, x.stride(0), d, **kinds, BLOCK=block, num_warps=1
    )
    return y


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _given(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[dict, tuple[Tensor, ...]]:
    """What is there, as the kernels' constants; and the tensors, x in place of what is not."""
    is_wide = any(v is not None and v.dtype == torch.float64 for v in (x, weight, bias))
    given = {
        "HAS_BIAS": bias is not None,
        "SILU": silu,
        "HAS_STATE": state is not None,
        "PACKED": cu_seqlens is not None,
        "W": weight.shape[1],
        "WIDE": tl.float64 if is_wide else tl.float32,
    }
    inputs = (weight, bias, state, cu_seqlens)
    return given, tuple(x if v is None else v.contiguous() for v in inputs)


def _shape(table: dict[int, tuple[int, int]], w: int, d: int) -> dict[str, int]:
    lane, group = next(table[widest] for widest in table if w <= widest)
    return {"BLOCK": min(32 * lane, power_of_2(d)), "N": group, "num_warps": 1}


def _chunk(b: int, t: int, blocks: int, most: int) -> int:
    """Rows of a program: many, so that few are read twice, but not so many that lanes idle."""
    rows = most
    while rows > 8 and b * blocks * cdiv(t, rows) < PROGRAMS:
        rows //= 2
    return rows
