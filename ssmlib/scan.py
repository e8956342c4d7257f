r"""The linear recurrence $h_t = a_t h_{t-1} + x_t$, elementwise, three ways.

Everything elementwise in the book (S4D, Mamba's core, RG-LRU) is this scan.

- `scan_reference`: the definition, a loop over time; the truth the others are tested against.
- `scan_torch`: chunks side by side, so that a step over time works on many numbers; then the loop
  over the chunks, which hands each the h before it; then the chunks again.
- `ssmlib.kernels.scan`: one pass over memory on a GPU.

Its gradient is a scan as well, from the end:
$g_t = \bar h_t + a_{t+1}^* g_{t+1}$ with $\bar x_t = g_t$ and $\bar a_t = h_{t-1}^* g_t$.
"""

import math

import torch
from torch import Tensor

from ssmlib.backends import call, differentiable, resolve
from ssmlib.shapes import check

PATTERNS = {2: "b t", 3: "b t d", 4: "b t h p", 5: "b t h k v"}
REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WIDE = (torch.float32, torch.float64, torch.complex64, torch.complex128)
ABREAST = 32768  # numbers in a step of `scan_torch`: fewer, and the interpreter is what takes time


def scan(
    a: Tensor, x: Tensor, state: Tensor | None = None, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Run h_t = a_t h_{t-1} + x_t along time; return every h and the last one.

    x (b t ...) with up to three axes of features, real or complex; a broadcasts to x. state
    (b ...) is the h before the first token, zero if None; float32 or wider. h has the dtype that a
    and x promote to. The last h is the `state` of the next piece: float32, or wider if anything is.
    Half precision is computed in float32.

    Backend "reference" multiplies an h with one a at a time. The others may multiply some a with
    one another first: where that product overflows, they give NaN for a finite h.
    Differentiable, once, in a, x and state. Raises ValueError for shapes that disagree, an empty
    axis, integers, a state that is narrower than float32 or complex beside a real scan, and a
    backend that is unknown or cannot run.
    """
    shape = _check(a, x, state)
    chosen = resolve(backend, x, default="torch", available=BACKENDS)
    dtype = torch.promote_types(a.dtype, x.dtype)
    if dtype.is_complex:
        a, x = a.to(dtype), x.to(dtype)
    a, x = a.expand(shape).reshape(*shape[:2], -1), x.reshape(*shape[:2], -1)
    if state is not None:
        wide = torch.promote_types(dtype, state.dtype)
        state = state.to(wide).reshape(shape[0], -1)
    if chosen == "reference":
        h, last = scan_reference(a, x, state)
    else:
        h, last = call(_scan, a, x, state, chosen)
    return h.reshape(shape), last.reshape(shape[:1] + shape[2:])


def scan_reference(a: Tensor, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The definition. a, x (b t d), state (b d)."""
    dtype, wide = _dtypes(a, x, state)
    h = torch.zeros_like(x[:, 0], dtype=wide) if state is None else state
    states = []
    for a_t, x_t in zip(a.to(wide).unbind(1), x.to(wide).unbind(1), strict=True):
        h = a_t * h + x_t
        states.append(h)
    return torch.stack(states, dim=1).to(dtype), h


def scan_torch(a: Tensor, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    dtype, wide = _dtypes(a, x, state)
    a, x = a.to(wide), x.to(wide)
    h = x.new_empty(x.shape)
    start = torch.zeros_like(x[:, 0]) if state is None else state
    last = _run(a, x, start, h, reverse=False)
    return h.to(dtype), last.clone()


def scan_backward_torch(
    dh: Tensor, dlast: Tensor, a: Tensor, h: Tensor, state: Tensor | None, x_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    wide, wide_a, dh = dlast.dtype, a.to(dlast.dtype).conj().resolve_conj(), dh.to(dlast.dtype)
    dx = dh.new_empty(dh.shape)
    torch.add(dh[:, -1], dlast, out=dx[:, -1])
    if dh.shape[1] > 1:
        _run(wide_a[:, 1:], dh[:, :-1], dx[:, -1], dx[:, :-1], reverse=True)
    da = torch.empty_like(dx)
    torch.mul(dx[:, 1:], h[:, :-1].to(wide).conj(), out=da[:, 1:])
    if state is None:
        da[:, 0] = 0
    else:
        torch.mul(dx[:, 0], state.conj(), out=da[:, 0])
    return da.to(a.dtype), dx.to(x_dtype), wide_a[:, 0] * dx[:, 0]


def _run(a: Tensor, x: Tensor, start: Tensor, h: Tensor, reverse: bool) -> Tensor:
    """Write the scan of x (b t d) to h, from the end if reverse; return the h it ends with."""
    b, t, d = x.shape
    c = min(round(math.sqrt(2 * t)), ABREAST // (b * d))
    q = t // c if c > 1 else 0
    whole = slice(t - c * q, t) if reverse else slice(0, c * q)
    rest = slice(0, t - c * q) if reverse else slice(c * q, t)
    if q:
        start = _run_chunks(
            *(v[:, whole].unflatten(1, (c, q)) for v in (a, x)),
            start,
            h[:, whole].unflatten(1, (c, q)),
            reverse,
        )
    return _loop(a[:, rest], x[:, rest], start, h[:, rest], reverse)


def _run_chunks(a: Tensor, x: Tensor, start: Tensor, h: Tensor, reverse: bool) -> Tensor:
    """The same with a, x, h (b c q d), c chunks of q tokens; start (b d)."""
    order = -1 if reverse else 1
    steps = list(zip(*(v.unbind(2)[::order] for v in (a, x, h)), strict=True))
    decay, end = torch.ones_like(x[:, :, 0]), torch.zeros_like(x[:, :, 0])
    for a_i, x_i, _ in steps:
        torch.addcmul(x_i, a_i, end, out=end)
        decay.mul_(a_i)
    before = torch.empty_like(end)  # the h that each chunk starts from
    links = (v.unbind(1)[::order] for v in (decay, end, before))
    for a_c, x_c, before_c in zip(*links, strict=True):
        before_c.copy_(start)
        start = torch.addcmul(x_c, a_c, start)
    for a_i, x_i, h_i in steps:
        torch.addcmul(x_i, a_i, before, out=h_i)
        before = h_i
    return start


def _loop(a: Tensor, x: Tensor, h: Tensor, out: Tensor, reverse: bool) -> Tensor:
    order = -1 if reverse else 1
    for a_t, x_t, h_t in zip(*(v.unbind(1)[::order] for v in (a, x, out)), strict=True):
        torch.addcmul(x_t, a_t, h, out=h_t)
        h = h_t
    return h


def _dtypes(a: Tensor, x: Tensor, state: Tensor | None) -> tuple[torch.dtype, torch.dtype]:
    """The dtype of h, and the one to compute in and keep the state in."""
    dtype = torch.promote_types(a.dtype, x.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    return dtype, wide if state is None else torch.promote_types(wide, state.dtype)


def _triton(a: Tensor, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    from ssmlib.kernels import scan  # triton is imported only when it runs

    return scan.forward(a, x, state, *_dtypes(a, x, state))


def _backward_triton(
    dh: Tensor, dlast: Tensor, a: Tensor, h: Tensor, state: Tensor | None, x_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    from ssmlib.kernels import scan

    return scan.backward(dh, dlast, a, h, state, x_dtype)


BACKENDS = {"reference": scan_reference, "torch": scan_torch, "triton": _triton}
BACKWARD = {"torch": scan_backward_torch, "triton": _backward_triton}


@torch.library.custom_op("ssmlib::scan", mutates_args=())
def _scan(a: Tensor, x: Tensor, state: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    """a, x (b t d), state (b d): every h, and the last one."""
    return BACKENDS[backend](a, x, state)


@torch.library.custom_op("ssmlib::scan_backward", mutates_args=())
def _scan_backward(
    dh: Tensor,
    dlast: Tensor,
    a: Tensor,
    h: Tensor,
    state: Tensor | None,
    x_dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by a, x and state."""
    return BACKWARD[backend](dh, dlast, a, h, state, x_dtype)


@_scan.register_fake
def _(a: Tensor, x: Tensor, state: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    dtype, wide = _dtypes(a, x, state)
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(x[:, 0].shape, dtype=wide)


@_scan_backward.register_fake
def _(
    dh: Tensor,
    dlast: Tensor,
    a: Tensor,
    h: Tensor,
    state: Tensor | None,
    x_dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    da, dx = a.new_empty(h.shape), h.new_empty(h.shape, dtype=x_dtype)
    return da, dx, dlast.new_empty(dlast.shape)


def _keep(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    a, x, state, ctx.backend = inputs
    ctx.x_dtype = x.dtype
    ctx.save_for_backward(a, output[0], state)


def _backward(ctx, dh: Tensor, dlast: Tensor) -> tuple:
    a, h, state = ctx.saved_tensors
    da, dx, dstate = call(_scan_backward, dh, dlast, a, h, state, ctx.x_dtype, ctx.backend)
    return da, dx, None if state is None else dstate, None


differentiable(_scan, _backward, _keep)


def _check(a: Tensor, x: Tensor, state: Tensor | None) -> torch.Size:
    """Raise ValueError for what does not fit together; return the shape of h."""
    if not isinstance(x, Tensor) or x.ndim not in PATTERNS:
        came = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x: expected (b, t, ...) with up to three more axes, got {came}")
    pattern = PATTERNS[x.ndim]
    check(x=(x, pattern), a=(a, "..."), state=(state, pattern.replace(" t", "")))
    try:
        fits = torch.broadcast_shapes(a.shape, x.shape) == x.shape
    except RuntimeError:
        fits = False
    if not fits:
        told = f"a shape that broadcasts to {tuple(x.shape)} (from x)"
        raise ValueError(f"a: expected {told}, got shape {tuple(a.shape)}")
    for name, value in (("a", a), ("x", x)):
        if value.dtype not in REAL + WIDE:
            told = "a real or complex floating point tensor"
            raise ValueError(f"{name}: expected {told}, got dtype {value.dtype}")
    if state is not None and state.dtype not in WIDE:
        raise ValueError(f"state: expected dtype float32 or wider, got dtype {state.dtype}")
    if state is not None and state.is_complex() and not (a.is_complex() or x.is_complex()):
        raise ValueError(f"state: expected real numbers (from a and x), got dtype {state.dtype}")
    return x.shape
