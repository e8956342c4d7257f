r"""S4: a diagonal minus a rank one matrix per channel, bilinear, as a convolution and a recurrence.

$A = \Lambda - P P^*$ is HiPPO-LegS in the eigenvectors of its normal part. Powers of $\bar A$ are
dense; the spectrum of the kernel is not. In three steps (Gu, Goel and Ré 2022):

1. the generating function $\sum_{i<t} K_i z^i = \tilde C (I - \bar A z)^{-1} \bar B$ at the t-th
   roots of unity, where $\tilde C = C (I - \bar A^t)$ cuts the kernel off after t taps;
2. Woodbury: the inverse of a diagonal plus a rank one matrix is four sums over the poles;
3. each sum is a Cauchy sum (`cauchy`); an inverse FFT returns the t taps.

The starting state's share of the output is a kernel of the same kind, with other numerators.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ssmlib import discretize
from ssmlib.backends import resolve
from ssmlib.convolution import fft_conv
from ssmlib.s4.diagonal import check_poles, step_output, working_dtypes
from ssmlib.s4.fractions import cauchy, nodes
from ssmlib.shapes import check, check_number

BACKENDS = ("reference", "torch", "triton")
Scaled = tuple[Tensor, Tensor, Tensor]


def s4(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    P: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    state: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Run h' = (diag(A) - P P^H) h + B x, y = 2 Re(C h) + D x by the bilinear rule.

    x (b t d). dt, D (d,) real. A, P, B, C (d n) complex, n conjugate pairs, real parts of A below
    0. state (b d n) complex; zero if None. Returns y (b t d) and the last h, like `s4d`, whose
    notes on dtypes, backends and errors hold here too. One token costs O(n) per channel, a sequence
    needs memory O(b d t), and O(d n^2 log t) for the powers of A_bar that cut the kernel off.
    """
    check(
        x=(x, "b t d"),
        dt=(dt, "d"),
        A=(A, "d n"),
        P=(P, "d n"),
        B=(B, "d n"),
        C=(C, "d n"),
        D=(D, "d"),
        state=(state, "b d n"),
    )
    check_poles(dt, A)
    chosen = resolve(backend, x, default="torch", available=BACKENDS)
    wide, cwide = working_dtypes(x, dt, C)
    inputs, system = x.to(wide), _scaled(dt, A, P, B)
    h = None if state is None else state.to(cwide)
    with torch.autocast(x.device.type, enabled=False):
        if chosen == "reference" or x.shape[1] == 1:
            y, h = _recurrence(inputs, [z.to(cwide) for z in system], C.to(cwide), h)
        else:
            y, h = _convolution(inputs, system, C.to(cwide), h, chosen)
        y = y if D is None else y + D.to(wide) * inputs
    return y.to(x.dtype), h


def kernel_dplr(
    dt: Tensor,
    A: Tensor,
    P: Tensor,
    B: Tensor,
    C: Tensor,
    length: int,
    *,
    backend: str = "auto",
) -> Tensor:
    """Return K (d t) by the three steps; backend "reference" unrolls it, power by power.

    Arguments and errors as in `s4`.
    """
    check(dt=(dt, "d"), A=(A, "d n"), P=(P, "d n"), B=(B, "d n"), C=(C, "d n"))
    check_number(length=length, low=1, whole=True)
    check_poles(dt, A)
    chosen = resolve(backend, A, default="torch", available=BACKENDS)
    wide, cwide = working_dtypes(dt, C)
    if chosen == "reference":
        dense_A, dense_B, dense_C = dense(A, P, B, C)
        rows = [
            discretize.kernel(*discretize.bilinear(a, b, step), c, length)[:, 0, 0]
            for a, b, c, step in zip(dense_A, dense_B, dense_C, dt.double(), strict=True)
        ]
        return torch.stack(rows).to(wide)
    system = _scaled(dt, A, P, B)
    return _responses(system, C.to(cwide), _squares(system, length), length, None, chosen)[0]


def dense(A: Tensor, P: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same system in real numbers, on the real parts of h above its imaginary parts.

    (d n) each, n pairs, to A (d 2n 2n), B (d 2n 1), C (d 1 2n), float64.
    """
    A, P, B, C = (z.to(torch.complex128) for z in (A, P, B, C))
    re, im = torch.diag_embed(A.real), torch.diag_embed(A.imag)
    turn = torch.cat([torch.cat([re, -im], dim=2), torch.cat([im, re], dim=2)], dim=1)
    p = torch.cat([P.real, P.imag], dim=1)
    return (
        turn - 2 * p[:, :, None] * p[:, None],
        torch.cat([B.real, B.imag], dim=1)[:, :, None],
        2 * torch.cat([C.real, -C.imag], dim=1)[:, None],
    )


def _scaled(dt: Tensor, A: Tensor, P: Tensor, B: Tensor) -> Scaled:
    """dt A, sqrt(dt) P and dt B in complex128: all that the bilinear rule sees of them."""
    step = dt.double()[:, None]
    A, P, B = (z.to(torch.complex128) for z in (A, P, B))
    return step * A, step.sqrt() * P, step * B


def _overlap(p: Tensor, h: Tensor) -> Tensor:
    """P^H h over both members of each pair: real, (... d 1)."""
    return 2 * (p.real * h.real + p.imag * h.imag).sum(-1, keepdim=True)


def _ahead(a: Tensor, p: Tensor, h: Tensor) -> Tensor:
    """(I + dt/2 A) h."""
    return h + (a * h - p * _overlap(p, h)) / 2


def _step(a: Tensor, p: Tensor, h: Tensor, bx: Tensor | float = 0.0) -> Tensor:
    """One bilinear step, (I - dt/2 A)^-1 ((I + dt/2 A) h + dt B x), in O(n) by Woodbury."""
    w = (_ahead(a, p, h) + bx) / (1 - a / 2)
    q = p / (1 - a / 2)
    return w - q * (_overlap(p, w) / (2 + _overlap(p, q)))


def _recurrence(
    x: Tensor, system: Sequence[Tensor], C: Tensor, h: Tensor | None
) -> tuple[Tensor, Tensor]:
    a, p, b = system
    h = C.new_zeros(len(x), *C.shape) if h is None else h
    outputs = []
    for x_t in x.unbind(1):
        h = _step(a, p, h, b * x_t[..., None])
        outputs.append(step_output(C, h))
    return torch.stack(outputs, dim=1), h


def _convolution(
    x: Tensor, system: Scaled, C: Tensor, h: Tensor | None, backend: str
) -> tuple[Tensor, Tensor]:
    rows, t = x.mT.contiguous(), x.shape[1]
    squares = _squares(system, t)
    kernel, response = _responses(system, C, squares, t, h, backend)
    y, last = fft_conv(rows.mT, kernel), _last_state(rows, system, squares)
    if h is not None:
        y = y + response.mT
        last = last + _complex(_advance(squares, _real(h).double()[..., None], t)[..., 0])
    return y, last.to(C.dtype)


def _responses(
    system: Scaled, C: Tensor, squares: list[Tensor], length: int, h: Tensor | None, backend: str
) -> tuple[Tensor, Tensor | None]:
    """The kernel (d t), and what the state h (b d n) alone puts out (b d t): steps 1 to 3.

    e^{i phi} times the matrix to be inverted is diag(is - wa) + w p p^H.
    """
    a, p, b = system
    row = _real(C.conj()).double()[..., None]  # Re(C h) is a plain product of these with _real(h)
    cut = C - _complex(_advance([z.mT for z in squares], row, length)[..., 0]).conj()
    sources = b[None] if h is None else torch.cat([b[None], _ahead(a, p, h)])
    numerators = [(cut * p)[None], (p.conj() * p)[None], cut * sources, p.conj() * sources]
    sums = cauchy(torch.cat(numerators).to(C.dtype), a, length, backend)
    by_p, p_by_p = sums[:2]
    by_source, p_by_source = sums[2:].chunk(2)
    s, w = (node.to(C.real.dtype) for node in nodes(length, C.device))
    spectrum = by_source - w * by_p * p_by_source / (1 + w * p_by_p)
    out = torch.fft.irfft(torch.complex(w, s / 2) * spectrum, length)
    return out[0], None if h is None else out[1:]


def _squares(system: Scaled, length: int) -> list[Tensor]:
    """A_bar^1, ^2, ^4 ... up to `length`, dense and real (d 2n 2n), in float64."""
    a, p, _ = system
    one = torch.eye(a.shape[1], dtype=a.dtype, device=a.device)
    columns = _step(a, p, torch.cat([one, 1j * one])[:, None])  # (2n d n): where each unit goes
    squares = [_real(columns).permute(1, 2, 0)]
    while 2 ** len(squares) <= length:
        squares.append(squares[-1] @ squares[-1])
    return squares


def _advance(squares: list[Tensor], h: Tensor, steps: int) -> Tensor:
    """A_bar^steps h, for h (... d 2n m)."""
    for k, power in enumerate(squares):
        h = power @ h if steps >> k & 1 else h
    return h


def _last_state(x: Tensor, system: Scaled, squares: list[Tensor]) -> Tensor:
    """The state (b d n) after x (b d t) from nothing: blocks of q tokens, then pairs of blocks."""
    (a, p, b), t = system, x.shape[2]
    levels = min(len(squares) - 1, (2 * a.shape[1] - 1).bit_length())  # q is about 2n
    taps = _real(_step(a, p, torch.zeros_like(a), b))[..., None]  # (d 2n 1)
    for power in squares[:levels]:
        taps = torch.cat([power @ taps, taps], dim=2)
    blocks = 2 ** ((-(-t // taps.shape[2]) - 1).bit_length())
    padded = torch.nn.functional.pad(x, (blocks * taps.shape[2] - t, 0))
    ends = torch.einsum("bdcq,dnq->bdcn", padded.unflatten(2, (blocks, -1)), taps.to(x.dtype))
    for power in squares[levels : levels + blocks.bit_length() - 1]:
        early, late = ends.unflatten(2, (-1, 2)).unbind(3)
        ends = torch.einsum("bdcn,dmn->bdcm", early, power.to(x.dtype)) + late
    return _complex(ends[:, :, 0])


def _real(h: Tensor) -> Tensor:
    return torch.cat([h.real, h.imag], dim=-1)


def _complex(h: Tensor) -> Tensor:
    return torch.complex(*h.chunk(2, dim=-1))
