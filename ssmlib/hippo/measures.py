"""What each measure remembers: its matrices, its basis, and the way back from coefficients.

A basis is a function of age, the time before now. The unit of age is the measure's own: for "legs"
the whole past is 1, for "legt" and "fourier" the window is 1, for "lagt" and "warped" the weight
falls by e in 1.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ssmlib.hippo.matrices import Pair, fourier, lagt, legs, legt, norms
from ssmlib.shapes import check, check_floating, check_number

POINTS = 8192  # where polynomials are evaluated at a time: one table stays in the cache


def legendre(x: Tensor, n: int) -> Tensor:
    """P_0(x) ... P_{n-1}(x), (n, *x.shape), by the three-term recurrence; stable on [-1, 1]."""
    table = torch.ones_like(x).expand(n, *x.shape).clone()
    if n > 1:
        table[1] = x
    for k in range(1, n - 1):
        torch.mul(table[k - 1], -k / (k + 1), out=table[k + 1])
        table[k + 1].addcmul_(x, table[k], value=(2 * k + 1) / (k + 1))
    return table


def window_basis(ages: Tensor, n: int) -> Tensor:
    """The Legendre polynomials, orthonormal over ages from 0 to 1: (n, *ages.shape)."""
    return legendre(1 - 2 * ages, n) * norms(n).to(ages).view(n, *[1] * ages.ndim)


def warped_basis(ages: Tensor, n: int) -> Tensor:
    """The same over e^-age, that is orthonormal over all ages under the weight e^-age."""
    return window_basis(-torch.expm1(-ages), n)


def laguerre_basis(ages: Tensor, n: int) -> Tensor:
    """The Laguerre polynomials, orthonormal over all ages under the weight e^-age."""
    rows = [torch.ones_like(ages), 1 - ages]
    for k in range(1, n - 1):
        rows.append(((2 * k + 1 - ages) * rows[k] - k * rows[k - 1]) / (k + 1))
    return torch.stack(rows[:n])


def fourier_basis(ages: Tensor, n: int) -> Tensor:
    """1, cos and sin of whole turns of 1 - age, orthonormal over ages from 0 to 1."""
    turns = torch.arange(1, n // 2 + 1).to(ages).view(-1, *[1] * ages.ndim)
    angle = 2 * math.pi * turns * (1 - ages)
    pairs = math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], dim=1).flatten(0, 1)
    return torch.cat([torch.ones_like(ages)[None], pairs])


class Measure(NamedTuple):
    """matrices(n) -> (A, B); basis(ages, n) -> (n, *ages.shape); ages run from 0 to `oldest`."""

    matrices: Callable[[int], Pair]
    basis: Callable[[Tensor, int], Tensor]
    oldest: float


MEASURES = {
    "legs": Measure(legs, window_basis, 1.0),
    "legt": Measure(legt, window_basis, 1.0),
    "fourier": Measure(fourier, fourier_basis, 1.0),
    "lagt": Measure(lagt, laguerre_basis, math.inf),
    "warped": Measure(legs, warped_basis, math.inf),
}


def named(measure: str) -> Measure:
    """The entry of MEASURES; ValueError, naming them all, for another."""
    if measure not in MEASURES:
        raise ValueError(f"measure: expected one of {', '.join(MEASURES)}, got {measure!r}")
    return MEASURES[measure]


def reconstruct(coefficients: Tensor, ages: Tensor, measure: str = "legs") -> Tensor:
    """Read the past out of its coefficients (... n) at `ages` (t,) before now: (... t).

    Ages are in the measure's unit, see above; `input_ages` gives those of the inputs.
    Raises ValueError for an unknown measure and for an age out of its range.
    """
    basis, oldest = named(measure).basis, named(measure).oldest
    check(coefficients=(coefficients, "... n"), ages=(ages, "t"))
    check_floating(coefficients=coefficients, ages=ages)
    if not (ages.min() >= 0 and ages.max() <= oldest):
        raise ValueError(
            f"ages: expected 0 to {oldest:g} for measure {measure!r},"
            f" got {ages.min().item():g} to {ages.max().item():g}"
        )
    c, n = coefficients.double(), coefficients.shape[-1]
    pieces = [lean(lambda c, a: c @ basis(a, n), c, piece) for piece in ages.double().split(POINTS)]
    return torch.cat(pieces, dim=-1).to(coefficients.dtype)


def input_ages(t: int, dt: float | None = None) -> Tensor:
    """Ages of the last t inputs, oldest first, each in the middle of its hold: (t,), float64.

    dt is the length of a step in the measure's unit; None, for "legs", makes the t inputs all of
    the past.
    """
    check_number(t=t, low=1, whole=True)
    return (t - 0.5 - torch.arange(t, dtype=torch.float64)) * (1 / t if dt is None else dt)


def lean(f: Callable[..., Tensor], *args: Tensor | int) -> Tensor:
    """f(*args), whose tables of polynomials are made anew for the gradient instead of kept."""
    if any(isinstance(x, Tensor) and x.requires_grad for x in args):
        return checkpoint(f, *args, use_reentrant=False, preserve_rng_state=False)
    return f(*args)
