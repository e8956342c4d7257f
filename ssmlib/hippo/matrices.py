"""The HiPPO matrices, float64, minus sign inside A; and LegS as diagonal plus low rank.

Each returns A (n n) and B (n 1) of c' = A c + B u, and raises ValueError unless n is a whole
number >= 1.
"""

import math

import torch
from torch import Tensor

from ssmlib.shapes import check_number

Pair = tuple[Tensor, Tensor]


def legs(n: int) -> Pair:
    """Scaled Legendre, all of the past alike: lower triangular, with eigenvalues -1 ... -n.

    A[i, k] = -sqrt((2i+1)(2k+1)) for i > k, -(i+1) for i = k; B[i] = sqrt(2i+1).
    """
    norm = norms(n)
    A = -torch.tril(norm * norm.mT, diagonal=-1)
    A -= torch.diag(torch.arange(1, n + 1, dtype=A.dtype))
    return A, norm


def legt(n: int) -> Pair:
    """Translated Legendre, a window of length 1.

    A[i, k] = -sqrt((2i+1)(2k+1)), times (-1)^(k-i) for i < k; B[i] = sqrt(2i+1).
    """
    norm, i = norms(n), torch.arange(n)
    sign = 1 - 2 * ((i - i[:, None]) % 2)
    return -norm * norm.mT * torch.where(i[:, None] < i, sign, 1), norm


def lagt(n: int) -> Pair:
    """Translated Laguerre, weight e^-age: A[i, k] = -1 for i >= k, B[i] = 1."""
    ones = torch.ones_like(norms(n))
    return -torch.tril(ones * ones.mT), ones


def fourier(n: int) -> Pair:
    """Fourier series on a window of length 1 (FouT of Gu et al. 2022), coordinates 1, cos, sin, ...

    Turns each pair at its frequency, and reads a value at the window's seam, which is the mean of
    its newest and its oldest. Raises ValueError for an even n, which would cut a pair.
    """
    if len(norms(n)) % 2 == 0:
        raise ValueError(f"n: expected an odd number, a constant and whole pairs, got {n}")
    now, turn = torch.zeros(n, 1, dtype=torch.float64), torch.zeros(n, n, dtype=torch.float64)
    cos = torch.arange(1, n, 2)
    now[0], now[cos] = 1.0, math.sqrt(2)
    turn[cos, cos + 1] = math.pi * (cos + 1).double()
    return turn - turn.mT - 2 * now * now.mT, 2 * now


def dplr(n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """LegS as diagonal plus low rank: A = V (diag(Lambda) - P P^H) V^H, and V B is its B.

    Returns Lambda, P, B (n,) and the unitary V (n n), complex128. Adding p p^T with p[i] =
    sqrt(i + 1/2) to A leaves -1/2 I plus a skew-symmetric matrix: a normal one, whose eigenvectors
    are orthogonal (those of A itself have a condition number of 1e19 at n = 32).
    Entry i < n/2 has a positive imaginary part, rising with i, and entry i + n/2 is its conjugate,
    in Lambda and in the columns of V. The phase is fixed by P > 0; then B = sqrt(2) P.
    Raises ValueError unless n is even and >= 2. Source: Gu, Goel and Ré 2022 (S4).
    """
    check_number(n=n, low=2, whole=True)
    if n % 2:
        raise ValueError(f"n: expected an even number, for conjugate pairs, got {n}")
    A, B = legs(n)
    p = B / math.sqrt(2)
    shifted = A + p * p.mT
    frequency, vectors = torch.linalg.eigh(-0.5j * (shifted - shifted.mT))  # rising: ... -w, w ...
    frequency, vectors = frequency[n // 2 :], vectors[:, n // 2 :]
    overlap = (vectors.mH @ p.to(vectors.dtype))[:, 0]
    vectors = vectors * (overlap / overlap.abs())
    Lambda = torch.cat([-0.5 + 1j * frequency, -0.5 - 1j * frequency])
    P = overlap.abs().repeat(2).to(Lambda.dtype)
    return Lambda, P, math.sqrt(2) * P, torch.cat([vectors, vectors.conj()], dim=1)


def norms(n: int) -> Tensor:
    """sqrt(2i + 1), (n 1): what makes the Legendre polynomials orthonormal on [0, 1]."""
    check_number(n=n, low=1, whole=True)
    return (2 * torch.arange(n, dtype=torch.float64) + 1).sqrt()[:, None]
