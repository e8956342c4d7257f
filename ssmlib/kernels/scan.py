r"""The linear scan $h_t = a_t h_{t-1} + x_t$ on a GPU, in one pass over memory.

A lane owns a channel or two and walks along time with h in a register: one multiply-add per number.
What it must not do is wait for memory. The loop is pipelined: the rows of the next STAGES tokens
are on their way while this one is added, and b d channels of them keep enough bytes in flight.

Where b d is small there are too few lanes for that, and time is cut into segments. `ends_kernel`
finds what a segment makes of the state before it: the product of its a times that state, plus the h
that it ends with from zero. Each program of `scan_kernel` then goes through the segments before its
own, in order, and walks its own from the state that they leave. That reads a and x twice.

The gradient is the same walk from the end: with $c_t = a_{t+1}^* g_{t+1}$, what comes back from
the tokens after t, $g_t = \bar h_t + c_t$ is the gradient of $x_t$, and that of $a_t$ is
$h_{t-1}^* g_t$.

A number is a tuple of its parts: (re,) or, with COMPLEX, (re, im), which lie side by side in
memory. Strides count real numbers, d counts channels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmlib.kernels.sizes import cdiv, power_of_2

LENGTHS = ("t", "segment")  # another length of text is not another kernel to compile


@triton.jit
def _load(ptr, inside, WIDE: tl.constexpr, COMPLEX: tl.constexpr):
    parts = (tl.load(ptr, mask=inside, other=0.0).to(WIDE),)
    if COMPLEX:
        parts = parts + (tl.load(ptr + 1, mask=inside, other=0.0).to(WIDE),)
    return parts


@triton.jit
def _store(ptr, z, inside, COMPLEX: tl.constexpr):
    tl.store(ptr, z[0].to(ptr.dtype.element_ty), mask=inside)
    if COMPLEX:
        tl.store(ptr + 1, z[1].to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def _number(re, BLOCK: tl.constexpr, WIDE: tl.constexpr, COMPLEX: tl.constexpr):
    parts = (tl.full((BLOCK,), re, WIDE),)
    if COMPLEX:
        parts = parts + (tl.zeros((BLOCK,), WIDE),)
    return parts


@triton.jit
def _plus(u, v, COMPLEX: tl.constexpr):
    parts = (u[0] + v[0],)
    if COMPLEX:
        parts = parts + (u[1] + v[1],)
    return parts


@triton.jit
def _times(u, v, COMPLEX: tl.constexpr):
    if COMPLEX:
        return (u[0] * v[0] - u[1] * v[1], u[0] * v[1] + u[1] * v[0])
    else:
        return (u[0] * v[0],)


@triton.jit
def _conj(u, COMPLEX: tl.constexpr):
    if COMPLEX:
        return (u[0], -u[1])
    else:
        return u


@triton.jit
def _place(d, t, segment, BLOCK: tl.constexpr, COMPLEX: tl.constexpr):
    """This program's batch row, segment, the tokens of it, and where its channels lie in a row."""
    blocks, segments = tl.cdiv(d, BLOCK), tl.cdiv(t, segment)
    line, k = tl.program_id(0) // blocks, tl.program_id(0) // blocks % segments
    channel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    first = k * segment
    offset = 2 * channel if COMPLEX else channel
    return (line // segments).to(tl.int64), k, first, min(first + segment, t), offset, channel < d


@triton.jit(do_not_specialize=LENGTHS)
def ends_kernel(
    a_ptr,
    x_ptr,
    product_ptr,
    end_ptr,
    a_b,
    a_t,
    x_b,
    x_t,
    t,
    d,
    segment,
    REVERSE: tl.constexpr,
    COMPLEX: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """What each segment makes of what comes before it: product * that + end. From its end if
    REVERSE, where what comes before is what the later tokens hand back."""
    WIDE: tl.constexpr = end_ptr.dtype.element_ty
    b, k, first, stop, at, inside = _place(d, t, segment, BLOCK, COMPLEX)
    row, step = first.to(tl.int64), 1
    if REVERSE:
        row, step = (stop - 1).to(tl.int64), -1
    a_ptr += b * a_b + row * a_t + at
    x_ptr += b * x_b + row * x_t + at
    product = _number(1.0, BLOCK, WIDE, COMPLEX)
    end = _number(0.0, BLOCK, WIDE, COMPLEX)
    for _ in tl.range(first, stop, num_stages=STAGES, loop_unroll_factor=UNROLL):
        a, x = _load(a_ptr, inside, WIDE, COMPLEX), _load(x_ptr, inside, WIDE, COMPLEX)
        if REVERSE:
            a = _conj(a, COMPLEX)
            end = _times(a, _plus(x, end, COMPLEX), COMPLEX)
        else:
            end = _plus(_times(a, end, COMPLEX), x, COMPLEX)
        product = _times(a, product, COMPLEX)
        a_ptr += step * a_t
        x_ptr += step * x_t
    width = 2 * d if COMPLEX else d
    out = (b * tl.cdiv(t, segment) + k) * width + at
    _store(product_ptr + out, product, inside, COMPLEX)
    _store(end_ptr + out, end, inside, COMPLEX)


@triton.jit(do_not_specialize=LENGTHS)
def scan_kernel(
    a_ptr,
    x_ptr,
    start_ptr,
    product_ptr,
    end_ptr,
    h_ptr,
    last_ptr,
    a_b,
    a_t,
    x_b,
    x_t,
    t,
    d,
    segment,
    HAS_START: tl.constexpr,
    SPLIT: tl.constexpr,
    COMPLEX: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """One program: BLOCK channels of one segment of one batch row."""
    WIDE: tl.constexpr = last_ptr.dtype.element_ty
    b, k, first, stop, at, inside = _place(d, t, segment, BLOCK, COMPLEX)
    width = 2 * d if COMPLEX else d
    h = _number(0.0, BLOCK, WIDE, COMPLEX)
    if HAS_START:
        h = _load(start_ptr + b * width + at, inside, WIDE, COMPLEX)
    if SPLIT:
        summary = b * tl.cdiv(t, segment) * width + at
        for _ in tl.range(0, k, num_stages=4):
            product = _load(product_ptr + summary, inside, WIDE, COMPLEX)
            end = _load(end_ptr + summary, inside, WIDE, COMPLEX)
            h = _plus(_times(product, h, COMPLEX), end, COMPLEX)
            summary += width
    row = first.to(tl.int64)
    a_ptr += b * a_b + row * a_t + at
    x_ptr += b * x_b + row * x_t + at
    h_ptr += (b * t + row) * width + at
    for _ in tl.range(first, stop, num_stages=STAGES, loop_unroll_factor=UNROLL):
        a, x = _load(a_ptr, inside, WIDE, COMPLEX), _load(x_ptr, inside, WIDE, COMPLEX)
        h = _plus(_times(a, h, COMPLEX), x, COMPLEX)
        _store(h_ptr, h, inside, COMPLEX)
        a_ptr += a_t
        x_ptr += x_t
        h_ptr += width
    if stop == t:
        _store(last_ptr + b * width + at, h, inside, COMPLEX)


@triton.jit(do_not_specialize=LENGTHS)
def scan_backward_kernel(
    dh_ptr,
    dlast_ptr,
    a_ptr,
    h_ptr,
    start_ptr,
    product_ptr,
    end_ptr,
    da_ptr,
    dx_ptr,
    dstart_ptr,
    g_b,
    g_t,
    a_b,
    a_t,
    t,
    d,
    segment,
    HAS_START: tl.constexpr,
    SPLIT: tl.constexpr,
    COMPLEX: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """One program: BLOCK channels of one segment of one batch row, from its end."""
    WIDE: tl.constexpr = dlast_ptr.dtype.element_ty
    b, k, first, stop, at, inside = _place(d, t, segment, BLOCK, COMPLEX)
    width = 2 * d if COMPLEX else d
    back = _load(dlast_ptr + b * width + at, inside, WIDE, COMPLEX)
    if SPLIT:
        segments = tl.cdiv(t, segment)
        summary = (b * segments + segments - 1) * width + at
        for _ in tl.range(k + 1, segments, num_stages=4):
            product = _load(product_ptr + summary, inside, WIDE, COMPLEX)
            end = _load(end_ptr + summary, inside, WIDE, COMPLEX)
            back = _plus(_times(product, back, COMPLEX), end, COMPLEX)
            summary -= width
    row = (stop - 1).to(tl.int64)
    dh_ptr += b * g_b + row * g_t + at
    a_ptr += b * a_b + row * a_t + at
    h_ptr += (b * t + row - 1) * width + at
    da_ptr += (b * t + row) * width + at
    dx_ptr += (b * t + row) * width + at
    for _ in tl.range(max(first, 1), stop, num_stages=STAGES, loop_unroll_factor=UNROLL):
        a, dh = _load(a_ptr, inside, WIDE, COMPLEX), _load(dh_ptr, inside, WIDE, COMPLEX)
        before = _load(h_ptr, inside, WIDE, COMPLEX)
        g = _plus(dh, back, COMPLEX)
        back = _times(_conj(a, COMPLEX), g, COMPLEX)
        _store(dx_ptr, g, inside, COMPLEX)
        _store(da_ptr, _times(_conj(before, COMPLEX), g, COMPLEX), inside, COMPLEX)
        a_ptr -= a_t
        dh_ptr -= g_t
        h_ptr -= width
        da_ptr -= width
        dx_ptr -= width
    if first == 0:  # token 0 has the start before it, and no row of h
        a, dh = _load(a_ptr, inside, WIDE, COMPLEX), _load(dh_ptr, inside, WIDE, COMPLEX)
        before = _number(0.0, BLOCK, WIDE, COMPLEX)
        if HAS_START:
            before = _load(start_ptr + b * width + at, inside, WIDE, COMPLEX)
        g = _plus(dh, back, COMPLEX)
        _store(dx_ptr, g, inside, COMPLEX)
        _store(da_ptr, _times(_conj(before, COMPLEX), g, COMPLEX), inside, COMPLEX)
        out = dstart_ptr + b * width + at
        _store(out, _times(_conj(a, COMPLEX), g, COMPLEX), inside, COMPLEX)


LANES = 65536  # channels times segments that keep an H100's memory busy
ENOUGH = 16384  # channels for which a second reading of a and x costs more than idle lanes
SHORTEST = 64  # tokens that a segment is worth


def forward(
    a: Tensor, x: Tensor, state: Tensor | None, dtype: torch.dtype, wide: torch.dtype
) -> tuple[Tensor, Tensor]:
    """a, x (b t d), state (b d): every h in `dtype`, and the last one in `wide`."""
    b, t, d = x.shape
    h, last = x.new_empty(b, t, d, dtype=dtype), x.new_empty(b, d, dtype=wide)
    a_, x_, h_, last_ = (_rows(v) for v in (a, x, h, last))
    start = last_ if state is None else _rows(state.contiguous())
    segment, grid, options = _plan(b, t, d, wide, most=4)
    sizes = (*a_.stride()[:2], *x_.stride()[:2], t, d, segment)
    product, end = _ends(a_, x_, last_, False, sizes, grid, options)
    scan_kernel[grid](
        a_,
        x_,
        start,
        product,
        end,
        h_,
        last_,
        *sizes,
        HAS_START=state is not None,
        SPLIT=segment < t,
        **options,
    )
    return h, last


def backward(
    dh: Tensor, dlast: Tensor, a: Tensor, h: Tensor, state: Tensor | None, x_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by a, x and state (also without one)."""
    (b, t, d), h, dlast = h.shape, h.contiguous(), dlast.contiguous()
    da, dx = a.new_empty(b, t, d), h.new_empty(b, t, d, dtype=x_dtype)
    dstate = dlast.new_empty(b, d)
    dh_, dlast_, a_, h_, da_, dx_ = (_rows(v) for v in (dh, dlast, a, h, da, dx))
    dstate_ = _rows(dstate)
    start = dlast_ if state is None else _rows(state.contiguous())
    segment, grid, options = _plan(b, t, d, dlast.dtype, most=2)
    sizes = (*dh_.stride()[:2], *a_.stride()[:2], t, d, segment)
    turned = (*sizes[2:4], *sizes[:2], *sizes[4:])
    product, end = _ends(a_, dh_, dlast_, True, turned, grid, options)
    scan_backward_kernel[grid](
        dh_,
        dlast_,
        a_,
        h_,
        start,
        product,
        end,
        da_,
        dx_,
        dstate_,
        *sizes,
        HAS_START=state is not None,
        SPLIT=segment < t,
        **options,
    )
    return da, dx, dstate


def _rows(v: Tensor) -> Tensor:
    """Real numbers, or pairs of them, with each row contiguous."""
    v = v.resolve_conj() if v.shape[-1] == 1 or v.stride(-1) == 1 else v.contiguous()
    return torch.view_as_real(v).flatten(-2) if v.is_complex() else v


def _plan(b: int, t: int, d: int, wide: torch.dtype, most: int) -> tuple[int, tuple[int], dict]:
    """Tokens of a segment, the grid, and the constants; at most `most` channels to a lane."""
    narrow = wide == torch.float32
    lane = (most if b * d >= 2 * ENOUGH else 2) if narrow else 1  # channels of a lane
    block = min(32 * lane, power_of_2(d))
    segments = 1 if b * d >= ENOUGH else max(1, min(t // SHORTEST, LANES // (b * d)))
    segment = cdiv(t, segments)
    grid = (cdiv(d, block) * cdiv(t, segment) * b,)
    options = {"COMPLEX": wide.is_complex, "BLOCK": block, "UNROLL": 4, "num_warps": 1}
    return segment, grid, options | {"STAGES": 16 if narrow else 8}


def _ends(
    a: Tensor, x: Tensor, wide: Tensor, reverse: bool, sizes: tuple, grid: tuple, options: dict
) -> tuple[Tensor, Tensor]:
    """The segments' products and ends (b segments d); if there is one segment, nothing to read."""
    t, segment = sizes[4], sizes[6]
    if segment >= t:
        return wide, wide
    shape = (len(wide), cdiv(t, segment), wide.shape[1])
    product, end = wide.new_empty(shape), wide.new_empty(shape)
    ends_kernel[grid](a, x, product, end, *sizes, REVERSE=reverse, **options)
    return product, end
