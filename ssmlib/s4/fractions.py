r"""Cauchy sums: the generating function of a diagonal system at the roots of unity.

For a diagonal A with poles $a = \Delta\lambda$, the bilinear rule turns the generating function
$C(I - \bar A z)^{-1} \bar B$ at $z = e^{-2 i \varphi}$, where $\varphi = \pi k / t$, into
$e^{i\varphi}$ times

$$S_k = \sum_n \frac{v_n}{i s_k - w_k a_n} + \frac{\bar v_n}{i s_k - w_k \bar a_n},
\qquad s_k = 2\sin\varphi, \quad w_k = \cos\varphi,$$

with both members of every conjugate pair. Divided by w it is the Cauchy sum of the papers, which
has no value at z = -1, a node of every even length; this one is regular at all of them.

The difference s - w Im a is taken in float64: next to a pole it is all that counts, and in float32
little of it is left. Everything after it is in the dtype of v.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ssmlib.backends import resolve
from ssmlib.s4.powers import BUDGET
from ssmlib.shapes import check, check_number


def cauchy(v: Tensor, a: Tensor, length: int, backend: str = "auto") -> Tensor:
    """Return S (c d f), f = length // 2 + 1 nodes, for numerators v (c d n), any c of them.

    v: complex64 or complex128, which decides the result's dtype. a (d n): complex128, with real
    parts below 0, or nodes may meet poles. Differentiable once. Raises ValueError for shapes or
    dtypes that disagree, a length < 1, and an unknown backend.
    """
    check(v=(v, "c d n"), a=(a, "d n"))
    check_number(length=length, low=1, whole=True)
    if not v.is_complex() or a.dtype != torch.complex128:
        raise ValueError(
            f"v, a: expected complex and torch.complex128, got {v.dtype} and {a.dtype}"
        )
    chosen = resolve(backend, v, a, default="torch", available=BACKENDS)
    if chosen == "reference":
        s, w = (node[None, None] for node in nodes(length, v.device))
        S = torch.zeros(len(v), len(a), length // 2 + 1, dtype=v.dtype, device=v.device)
        for value, pole in ((v, a), (v.conj(), a.conj())):
            matrix = 1 / (1j * s - w * pole[..., None])  # (d n f)
            S = S + torch.einsum("cdn,dnf->cdf", value, matrix.to(v.dtype))
        return S
    pairs = _cauchy(torch.view_as_real(v), torch.view_as_real(a), length, chosen)
    return torch.view_as_complex(pairs)


def nodes(length: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """s = 2 sin(pi k / length) and w = cos(pi k / length) for k <= length / 2, float64."""
    k = torch.arange(length // 2 + 1, dtype=torch.float64, device=device)
    return 2 * torch.sin(math.pi * k / length), torch.sin(math.pi * (length - 2 * k) / (2 * length))


@torch.library.custom_op("ssmlib::cauchy", mutates_args=())
def _cauchy(v: Tensor, a: Tensor, length: int, backend: str) -> Tensor:
    with torch.autocast(v.device.type, enabled=False):
        return BACKENDS[backend]()[0](v, a, length)


@torch.library.custom_op("ssmlib::cauchy_backward", mutates_args=())
def _cauchy_backward(
    v: Tensor, a: Tensor, grad: Tensor, length: int, backend: str
) -> tuple[Tensor, Tensor]:
    with torch.autocast(v.device.type, enabled=False):
        by_v, by_pole = BACKENDS[backend]()[1](a, grad.contiguous(), length)
    product = torch.view_as_complex(v.contiguous()).conj() * torch.view_as_complex(by_pole)
    return by_v, torch.view_as_real(product.sum(0)).to(a.dtype)


@_cauchy.register_fake
def _(v: Tensor, a: Tensor, length: int, backend: str) -> Tensor:
    return v.new_empty(*v.shape[:2], length // 2 + 1, 2)


@_cauchy_backward.register_fake
def _(v: Tensor, a: Tensor, grad: Tensor, length: int, backend: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(v), torch.empty_like(a)


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.rest = inputs[2:]


def _backward(ctx, grad: Tensor) -> tuple:
    return *_cauchy_backward(*ctx.saved_tensors, grad, *ctx.rest), None, None


_cauchy.register_autograd(_backward, setup_context=_keep)


def cauchy_torch(v: Tensor, a: Tensor, length: int) -> Tensor:
    """v (c d n 2), a (d n 2) float64; returns (c d f 2), a few channels and nodes at a time."""
    out = v.new_empty(*v.shape[:2], length // 2 + 1, 2)
    for here, at, (_, x, y1, y2, inv1, inv2) in _chunks(a, length, v.dtype):
        re, im = v[:, here].transpose(0, 1).unbind(-1)  # (d c n)
        x1, x2, y1, y2 = x * inv1, x * inv2, y1 * inv1, y2 * inv2
        out[:, here, at, 0] = (re @ (x1 + x2) + im @ (y1 - y2)).transpose(0, 1)
        out[:, here, at, 1] = (im @ (x1 - x2) - re @ (y1 + y2)).transpose(0, 1)
    return out


def cauchy_backward_torch(a: Tensor, grad: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The gradient by v, and T (c d n 2) with conj(v) T summed over c the gradient by a.

    With R = 1/(is - wa) and Q = 1/(is - w conj a): by v it is conj(R) g + Q conj(g), and T is
    w (conj(R^2) g + Q^2 conj(g)), summed over the nodes.
    """
    by_v = grad.new_zeros(2, len(a), len(grad), a.shape[1])  # (2 d c n)
    by_pole = torch.zeros_like(by_v)
    for here, at, (w, x, y1, y2, inv1, inv2) in _chunks(a, length, grad.dtype):
        re, im = grad[:, here, at].transpose(0, 1).unbind(-1)  # (d c k)
        x1, x2, y1, y2 = x * inv1, x * inv2, y1 * inv1, y2 * inv2
        by_v[0, here] += re @ (x1 + x2).mT - im @ (y1 + y2).mT
        by_v[1, here] += re @ (y1 - y2).mT + im @ (x1 - x2).mT
        re, im = w * re, w * im
        one, two = x1 * x1 - y1 * y1, x2 * x2 - y2 * y2  # real parts of the squares
        y1, y2 = 2 * x1 * y1, 2 * x2 * y2
        by_pole[0, here] += re @ (one + two).mT - im @ (y1 + y2).mT
        by_pole[1, here] += re @ (y1 - y2).mT + im @ (one - two).mT
    return tuple(z.permute(2, 1, 3, 0).contiguous() for z in (by_v, by_pole))


def _chunks(a: Tensor, length: int, dtype: torch.dtype) -> Iterator[tuple[slice, slice, tuple]]:
    """Slices of the channels and of the nodes, with w (k,) and the fractions' parts, (d n k) each.

    The denominators are x + i y1 and x + i y2; inv1, inv2 the inverse squares of their sizes.
    """
    s, w = nodes(length, a.device)
    (d, n, _), f = a.shape, len(s)
    budget = BUDGET.get(a.device.type, BUDGET["cuda"])
    k = min(f, max(1, budget // n))
    size = max(1, budget // (n * k))
    for here in (slice(i, i + size) for i in range(0, d, size)):
        re, im = a[here, :, None].unbind(-1)  # (d n 1)
        for at in (slice(j, j + k) for j in range(0, f, k)):
            x = (-re * w[at]).to(dtype)
            y1, y2 = (s[at] - im * w[at]).to(dtype), (s[at] + im * w[at]).to(dtype)
            inv1, inv2 = 1 / (x * x + y1 * y1), 1 / (x * x + y2 * y2)
            yield here, at, (w[at].to(dtype), x, y1, y2, inv1, inv2)


def _triton() -> tuple[Callable, Callable]:
    from ssmlib.kernels import s4

    return s4.cauchy_triton, s4.cauchy_backward_triton


BACKENDS: dict[str, Callable[[], tuple[Callable, Callable]] | None] = {
    "reference": None,
    "torch": lambda: (cauchy_torch, cauchy_backward_torch),
    "triton": _triton,
}
