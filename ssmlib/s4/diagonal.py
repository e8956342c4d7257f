r"""S4D: a diagonal linear system per channel, as a recurrence, as a convolution, or in chunks.

$$h_t = \bar a h_{t-1} + \bar b x_t, \quad y_t = 2\,\mathrm{Re}(C h_t) + D x_t
\iff y = K * x + D x, \quad K_i = 2\,\mathrm{Re} \sum_n C_n \bar b_n \bar a_n^i$$

`s4d` computes it, from A, B, C, D and dt, in any of these forms; `kernel_diagonal` is K.
"""

import torch
from torch import Tensor

from ssmlib.backends import resolve
from ssmlib.convolution import fft_conv
from ssmlib.s4.chunks import chunked
from ssmlib.s4.powers import project, vandermonde
from ssmlib.s4.walk import walk
from ssmlib.shapes import check, check_floating

METHODS = ("zoh", "bilinear")
BACKENDS = ("reference", "fft", "torch", "triton")


def s4d(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    state: Tensor | None = None,
    method: str = "zoh",
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Run a diagonal system over x; return y (b t d) and the last h, the state of the next piece.

    x (b t d). dt, D (d,) real. A, B, C (d n) complex, n conjugate pairs, real parts of A below 0.
    state (b d n) complex, the h before the first token; zero if None. method: "zoh" or "bilinear".
    backend "reference" is the recurrence, step by step, and so is a single token with any. "fft" is
    one convolution over all of x. "torch" goes by chunks, see `ssmlib.s4.chunks`. "triton" is the
    recurrence in one kernel, see `ssmlib.s4.walk`. These three hold no state per token. Half
    precision is computed in float32; y has the dtype of x.
    Differentiable in everything, with "triton" once.
    Raises ValueError for shapes that disagree, a dt <= 0 or a real part >= 0 (read on the CPU
    only), a method or a backend that is unknown.
    """
    check(
        x=(x, "b t d"),
        dt=(dt, "d"),
        A=(A, "d n"),
        B=(B, "d n"),
        C=(C, "d n"),
        D=(D, "d"),
        state=(state, "b d n"),
    )
    chosen = resolve(backend, x, default="torch", available=BACKENDS)
    log_a, b_bar = discretize_diagonal(dt, A, B, method)
    wide, cwide = working_dtypes(x, dt, C)
    C, D = C.to(cwide), None if D is None else D.to(wide)
    h = None if state is None else state.to(cwide)
    with torch.autocast(x.device.type, enabled=False):
        if chosen == "reference" or x.shape[1] == 1:
            a_bar, b_bar = torch.exp(log_a).to(cwide), b_bar.to(cwide)
            y, h = _recurrence(x.to(wide), a_bar, b_bar, C, D, h)
        elif chosen == "fft":
            y, h = _convolution(x.to(wide), log_a, b_bar, C, D, h)
        elif chosen == "torch":
            y, h = chunked(x.to(wide), log_a, b_bar, C, D, h)
        else:
            y, last = walk(x, log_a, (2 * C * b_bar).to(cwide), D)
            y, h = _add_start(y, b_bar.to(cwide) * last, log_a, C, h)
    return y.to(x.dtype), h


def kernel_diagonal(
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    length: int,
    *,
    method: str = "zoh",
    backend: str = "auto",
) -> Tensor:
    """Return K (d t): what a token leaves in the output i steps later, i < length.

    Arguments and errors as in `s4d`; backend "reference" sums the whole matrix of powers.
    """
    check(dt=(dt, "d"), A=(A, "d n"), B=(B, "d n"), C=(C, "d n"))
    log_a, b_bar = discretize_diagonal(dt, A, B, method)
    return _kernel(log_a, b_bar, C.to(working_dtypes(dt, C)[1]), length, backend)


def discretize_diagonal(
    dt: Tensor, A: Tensor, B: Tensor, method: str = "zoh"
) -> tuple[Tensor, Tensor]:
    """Return log a_bar and b_bar (d n), complex128: a phase that is multiplied by t needs it."""
    check_poles(dt, A)
    step, A, B = dt.double()[:, None], A.to(torch.complex128), B.to(torch.complex128)
    if check_method(method) == "zoh":  # A is not 0: `zoh_diagonal` without its series
        log_a = step * A
        return log_a, torch.expm1(log_a) / A * B
    ahead, behind = 1 + step / 2 * A, 1 - step / 2 * A
    ratio = ahead / behind
    return torch.log(torch.where(ratio == 0, 1e-300, ratio)), step * B / behind


def check_method(method: str) -> str:
    """Return the method if it is one of METHODS; raise ValueError otherwise."""
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    return method


def check_poles(dt: Tensor, A: Tensor) -> None:
    """Refuse what does not decay; values are read only where that does not wait for a device."""
    check_floating(dt=dt)
    if not A.is_complex():
        raise ValueError(f"A: expected complex values, one of each conjugate pair, got {A.dtype}")
    if A.device.type != "cpu" or torch.compiler.is_compiling():
        return
    worst, least = A.detach().real.max().item(), dt.detach().min().item()
    if not worst < 0:
        raise ValueError(f"A: expected negative real parts, got {worst:g}")
    if not least > 0:
        raise ValueError(f"dt: expected steps > 0, got {least:g}")


def working_dtypes(*tensors: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """The real and the complex dtype to compute in: float64 if anything is, float32 otherwise."""
    wide = (torch.float64, torch.complex128)
    is_wide = any(z.dtype in wide for z in tensors)
    return wide if is_wide else (torch.float32, torch.complex64)


def step_output(C: Tensor, h: Tensor) -> Tensor:
    """2 Re(C h) summed over the pairs: (... d)."""
    return 2 * (C.real * h.real - C.imag * h.imag).sum(-1)


def _kernel(log_a: Tensor, b_bar: Tensor, C: Tensor, length: int, backend: str) -> Tensor:
    return vandermonde((2 * C * b_bar).to(C.dtype), log_a, length, backend)


def _recurrence(
    x: Tensor, a_bar: Tensor, b_bar: Tensor, C: Tensor, D: Tensor | None, h: Tensor | None
) -> tuple[Tensor, Tensor]:
    h = C.new_zeros(len(x), *C.shape) if h is None else h
    outputs = []
    for x_t in x.unbind(1):
        h = a_bar * h + b_bar * x_t[..., None]
        outputs.append(step_output(C, h))
    y = torch.stack(outputs, dim=1)
    return y if D is None else y + D * x, h


def _convolution(
    x: Tensor, log_a: Tensor, b_bar: Tensor, C: Tensor, D: Tensor | None, h: Tensor | None
) -> tuple[Tensor, Tensor]:
    rows, t = x.mT.contiguous(), x.shape[1]  # time last, once for the transform and the last state
    y = fft_conv(rows.mT, _kernel(log_a, b_bar, C, t, "auto"))
    y = y if D is None else y + D * rows.mT
    return _add_start(y, b_bar.to(C.dtype) * project(rows, log_a), log_a, C, h)


def _add_start(
    y: Tensor, last: Tensor, log_a: Tensor, C: Tensor, h: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What a system that starts from zero gives, and what it would give without x, from h."""
    if h is None:
        return y, last
    t = y.shape[1]
    y = y + vandermonde((2 * C * torch.exp(log_a)).to(C.dtype) * h, log_a, t).mT
    return y, last + torch.exp(t * log_a).to(C.dtype) * h
