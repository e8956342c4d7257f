r"""Where S4 starts: the poles of A, its low-rank part, and the time scales.

A real system of size n is written in n/2 complex coordinates, one for each conjugate pair, so that
$y = 2\,\mathrm{Re}(C h)$. Everything here returns that half.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ssmlib import hippo
from ssmlib.shapes import check_number


class System(NamedTuple):
    """A = diag(A) - P P^H and B in n/2 conjugate pairs per channel, (d n/2) complex128 each."""

    A: Tensor
    P: Tensor
    B: Tensor


def _legs(n: int) -> Tensor:
    return hippo.dplr(n)[0][: n // 2]


def _lin(n: int) -> Tensor:
    return torch.complex(torch.full_like(_pairs(n), -0.5), math.pi * _pairs(n))


def _inv(n: int) -> Tensor:
    frequency = n / math.pi * (n / (2 * _pairs(n) + 1) - 1)
    return torch.complex(torch.full_like(frequency, -0.5), frequency)


def _real(n: int) -> Tensor:
    return torch.complex(-1 - _pairs(n), torch.zeros_like(_pairs(n)))


POLES: dict[str, Callable[[int], Tensor]] = {
    "legs": _legs,
    "lin": _lin,
    "inv": _inv,
    "real": _real,
}
INITS = (*POLES, "random")


def poles(name: str, n: int, d: int = 1, generator: torch.Generator | None = None) -> Tensor:
    """Return n/2 poles for each of d channels, (d n/2) complex128.

    legs: -1/2 + the frequencies of the normal part of HiPPO-LegS.
    lin: -1/2 + i pi k.    inv: -1/2 + i n/pi (n/(2k+1) - 1), close to legs.    k = 0 ... n/2 - 1.
    real: -(k+1), without oscillation.    random: -1/2 + i e^g, g standard normal, the only one
    that differs between channels.
    Raises ValueError for another name, and for an n that is odd or below 2.
    Source: Gu et al. 2022, "On the parameterization and initialization of diagonal state space
    models"; random is what its authors' code calls so.
    """
    check_number(n=n, low=2, whole=True)
    check_number(d=d, low=1, whole=True)
    if n % 2:
        raise ValueError(f"n: expected an even number, for conjugate pairs, got {n}")
    if name == "random":
        frequency = torch.randn(d, n // 2, generator=generator, dtype=torch.float64).exp()
        return torch.complex(torch.full_like(frequency, -0.5), frequency)
    if name not in POLES:
        raise ValueError(f"init: expected one of {', '.join(INITS)}, got {name!r}")
    return POLES[name](n).repeat(d, 1)


def diagonal(name: str, n: int, d: int = 1, generator: torch.Generator | None = None) -> System:
    """The poles of `name` with P = 0; B is 1, or for legs half of LegS's own B.

    As n grows, the responses of that half approach those of the full LegS (Gu et al. 2022), but on
    average over short times only: around them they keep a noise of high frequencies.
    """
    A = poles(name, n, d, generator)
    B = hippo.dplr(n)[2][: n // 2].repeat(d, 1) / 2 if name == "legs" else torch.ones_like(A)
    return System(A, torch.zeros_like(A), B)


def dplr(name: str, n: int, d: int = 1, generator: torch.Generator | None = None) -> System:
    """HiPPO-LegS itself for "legs"; for other names its poles, a random complex normal P, B = 1."""
    A = poles(name, n, d, generator)
    if name == "legs":
        _, P, B, _ = hippo.dplr(n)
        return System(A, P[: n // 2].repeat(d, 1), B[: n // 2].repeat(d, 1))
    P = torch.randn(d, n // 2, generator=generator, dtype=A.dtype)
    return System(A, P, torch.ones_like(A))


def timescales(
    d: int, low: float = 1e-3, high: float = 0.1, generator: torch.Generator | None = None
) -> Tensor:
    """Draw dt (d,), float64, log-uniformly from [low, high]; a kernel spans about 1/dt steps.

    Raises ValueError unless 0 < low <= high.
    """
    check_number(d=d, low=1, whole=True)
    check_number(low=1e-300, dt_min=low)
    check_number(low=low, dt_max=high)
    uniform = torch.rand(d, generator=generator, dtype=torch.float64)
    return torch.exp(math.log(low) + uniform * (math.log(high) - math.log(low)))


def _pairs(n: int) -> Tensor:
    return torch.arange(n // 2, dtype=torch.float64)
