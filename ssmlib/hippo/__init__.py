r"""HiPPO: a fixed number n of coefficients that hold a past of any length (Gu et al. 2020).

A measure says which part of the past counts, and how much. The n best coefficients of the past
under that measure then obey a linear differential equation. Here, as everywhere in the book, it is
written $c' = A c + B u$ with the minus sign inside A: stable systems have eigenvalues left of zero.

    measure    counts                          equation             basis, at age a before now
    legs       all of the past alike           c' = (A c + B u)/t   Legendre on the whole past
    legt       the last 1 unit of time alike   c' = A c + B u       Legendre on the window
    fourier    the last 1 unit of time alike   c' = A c + B u       1, cos and sin on the window
    lagt       e^-a                            c' = A c + B u       Laguerre polynomials of a
    warped     e^-a, with the A, B of legs     c' = A c + B u       Legendre polynomials of e^-a

`warped` is what a time-invariant model such as S4 makes of the LegS matrices by dropping the 1/t
(Gu et al. 2022). Every basis is orthonormal under its measure, so c is a vector of inner products.
The LegS matrices are those of Gu et al. 2020 with the sign above. Their LegT and LagT differ by
that sign and, for LegT, by a diagonal change of coordinates.

    matrices   legs, legt, lagt, fourier -> (A, B); dplr, the form that S4 needs
    measures   MEASURES; reconstruct, from coefficients back to the past
    online     project, from a signal to coefficients as it comes in, and its dense reference
"""

from ssmlib.hippo.matrices import dplr, fourier, lagt, legs, legt
from ssmlib.hippo.measures import MEASURES, Measure, input_ages, legendre, reconstruct
from ssmlib.hippo.online import Memory, project, project_reference

__all__ = [
    "MEASURES",
    "Measure",
    "Memory",
    "dplr",
    "fourier",
    "input_ages",
    "lagt",
    "legendre",
    "legs",
    "legt",
    "project",
    "project_reference",
    "reconstruct",
]
