r"""Sums of powers, and their transpose: the kernel and the last state of a diagonal system.

$$y_i = \mathrm{Re} \sum_n c_n z_n^i \qquad s_n = \sum_i z_n^{t-1-i} x_i \qquad z_n = e^{l_n}$$

As matrix products with the Vandermonde matrix $z_n^i$ they would hold n t complex numbers per
channel. Written $i = a q + j$, the matrix falls apart into two small ones, $z^i = (z^q)^a z^j$, and
either sum into an ordinary matrix product with t/q + q instead of t powers.

Phases are reduced in float64: at step t a float32 phase would be off by about t times its rounding.

- `reference`: the definition, with the whole matrix.
- `torch`: two factors, some channels at a time.
- `triton`: the same factors inside one kernel, `ssmlib.kernels.s4`.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ssmlib.backends import resolve
from ssmlib.shapes import check, check_number

BUDGET = {"cpu": 2**18, "cuda": 2**25}  # numbers in the largest temporary


def vandermonde(c: Tensor, log_z: Tensor, length: int, backend: str = "auto") -> Tensor:
    """Return y_i = Re sum_n c_n z_n^i for i < length: (d t), or (b d t) from c (b d n).

    c (d n) or (b d n): complex64 or complex128, which decides the result's dtype. log_z (d n):
    complex128 whatever c is, for it is multiplied by i. Differentiable twice. Raises ValueError for
    shapes or dtypes that disagree, a length < 1, and an unknown backend.
    """
    check(c=(c, "b d n" if c.ndim == 3 else "d n"), log_z=(log_z, "d n"))
    check_number(length=length, low=1, whole=True)
    _check_dtypes(c, log_z, "c")
    chosen = resolve(backend, c, log_z, default="torch", available=BACKENDS)
    rows = c if c.ndim == 3 else c[None]
    if chosen == "reference":
        steps = torch.arange(length, device=c.device)
        y = torch.einsum("bdn,dnt->bdt", rows, _powers(log_z, steps).to(c.dtype)).real
    else:
        y = _vandermonde(torch.view_as_real(rows), torch.view_as_real(log_z), length, chosen)
    return y if c.ndim == 3 else y[0]


def project(x: Tensor, log_z: Tensor, backend: str = "auto") -> Tensor:
    """Return s_n = sum_i z_n^(t-1-i) x_i, the last state of h_i = z h_{i-1} + x_i: (b d n) complex.

    x (b d t): float32 or float64. log_z (d n): complex128. Otherwise as `vandermonde`.
    """
    check(x=(x, "b d t"), log_z=(log_z, "d n"))
    _check_dtypes(x, log_z, "x")
    chosen = resolve(backend, x, log_z, default="torch", available=BACKENDS)
    if chosen == "reference":
        steps = torch.arange(x.shape[2] - 1, -1, -1, device=x.device)
        powers = _powers(log_z, steps).to(torch.promote_types(x.dtype, torch.complex64))
        return torch.einsum("bdt,dnt->bdn", x.to(powers.dtype), powers)
    return torch.view_as_complex(_project(x, torch.view_as_real(log_z), chosen))


@torch.library.custom_op("ssmlib::vandermonde", mutates_args=())
def _vandermonde(c: Tensor, log_z: Tensor, length: int, backend: str) -> Tensor:
    with torch.autocast(c.device.type, enabled=False):
        return BACKENDS[backend]()[0](c, log_z, length)


@torch.library.custom_op("ssmlib::vandermonde_project", mutates_args=())
def _project(x: Tensor, log_z: Tensor, backend: str) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return BACKENDS[backend]()[1](x, log_z)


@_vandermonde.register_fake
def _(c: Tensor, log_z: Tensor, length: int, backend: str) -> Tensor:
    return c.new_empty(*c.shape[:2], length)


@_project.register_fake
def _(x: Tensor, log_z: Tensor, backend: str) -> Tensor:
    return x.new_empty(*x.shape[:2], log_z.shape[1], 2)


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.backend = inputs[-1]


def _vandermonde_backward(ctx, grad: Tensor) -> tuple:
    """The transpose of a sum of powers is `project`; the derivative by log z weighs them with i."""
    c, log_z = ctx.saved_tensors
    if not ctx.needs_input_grad[1]:
        return conj(_project(grad.flip(2), log_z, ctx.backend)), None, None, None
    steps = torch.arange(grad.shape[2], device=grad.device, dtype=grad.dtype)
    both = torch.cat([grad, grad * steps]).flip(2)  # one pass over the powers for two gradients
    plain, moments = conj(_project(both, log_z, ctx.backend)).chunk(2)
    grad_log_z = times(conj(c), moments).sum(0).to(log_z.dtype)
    return plain if ctx.needs_input_grad[0] else None, grad_log_z, None, None


def _project_backward(ctx, grad: Tensor) -> tuple:
    x, log_z = ctx.saved_tensors
    grad_x = grad_log_z = None
    if ctx.needs_input_grad[0]:
        grad_x = _vandermonde(conj(grad), log_z, x.shape[2], ctx.backend).flip(2)
    if ctx.needs_input_grad[1]:
        steps = torch.arange(x.shape[2] - 1, -1, -1, device=x.device, dtype=x.dtype)
        moments = _project(x * steps, log_z, ctx.backend)
        grad_log_z = times(grad, conj(moments)).sum(0).to(log_z.dtype)
    return grad_x, grad_log_z, None


_vandermonde.register_autograd(_vandermonde_backward, setup_context=_keep)
_project.register_autograd(_project_backward, setup_context=_keep)


def vandermonde_torch(c: Tensor, log_z: Tensor, length: int) -> Tensor:
    """c (b d n 2), log_z (d n 2) in pairs of real numbers; returns (b d t)."""
    b, d, n, _ = c.shape
    q, blocks = _tiles(length, n)
    out = c.new_empty(b, d, blocks, q)
    inner, outer = (torch.arange(size, device=c.device) for size in (q, blocks))
    for part in _slabs(d, n * (b * blocks + q), c.device):
        fine = torch.cat(split_powers(log_z[part], inner, c.dtype), dim=1)  # (d 2n q)
        re, im = split_powers(log_z[part], q * outer, c.dtype)  # (d n c)
        c_re, c_im = c[:, part].unsqueeze(-2).unbind(-1)  # (b d n 1)
        coarse = torch.cat([c_re * re - c_im * im, -c_re * im - c_im * re], dim=2)  # (b d 2n c)
        left = coarse.permute(1, 0, 3, 2).reshape(len(fine), b * blocks, 2 * n)
        out[:, part] = (left @ fine).unflatten(1, (b, blocks)).transpose(0, 1)
    return out.flatten(2)[..., :length].contiguous()


def project_torch(x: Tensor, log_z: Tensor) -> Tensor:
    """x (b d t), log_z (d n 2); returns (b d n 2)."""
    (b, d, t), n = x.shape, log_z.shape[1]
    q, blocks = _tiles(t, n)
    out = x.new_empty(b, d, n, 2)
    inner, outer = (torch.arange(size - 1, -1, -1, device=x.device) for size in (q, blocks))
    for part in _slabs(d, 2 * n * (b * blocks + q), x.device):
        rows = x.new_zeros(b, len(log_z[part]), blocks * q)
        rows[..., blocks * q - t :] = x[:, part]  # zeros in front leave the last state alone
        rows = rows.unflatten(2, (blocks, q)).transpose(0, 1).flatten(1, 2)  # (d bc q)
        fine = torch.cat(split_powers(log_z[part], inner, x.dtype), dim=1)
        re, im = (fine @ rows.mT).unflatten(2, (b, blocks)).split(n, dim=1)  # (d n b c)
        z_re, z_im = (z[:, :, None] for z in split_powers(log_z[part], q * outer, x.dtype))
        s_re, s_im = (re * z_re - im * z_im).sum(3), (re * z_im + im * z_re).sum(3)  # (d n b)
        out[:, part] = torch.stack([s_re, s_im], dim=-1).permute(2, 0, 1, 3)
    return out


def _triton() -> tuple[Callable, Callable]:
    from ssmlib.kernels import s4  # triton is imported only when it runs

    return s4.vandermonde_triton, s4.project_triton


BACKENDS: dict[str, Callable[[], tuple[Callable, Callable]] | None] = {
    "reference": None,
    "torch": lambda: (vandermonde_torch, project_torch),
    "triton": _triton,
}


def _powers(log_z: Tensor, steps: Tensor) -> Tensor:
    return torch.exp(log_z[..., None] * steps)


def split_powers(log_z: Tensor, steps: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """z^steps as its real and its imaginary part, (d n k) each, the phase reduced in float64."""
    steps = steps.to(log_z.dtype)
    phase = log_z[..., 1, None] * steps
    phase = (phase - 2 * math.pi * torch.round(phase / (2 * math.pi))).to(dtype)
    size = torch.exp((log_z[..., 0, None] * steps).to(dtype))
    return size * torch.cos(phase), size * torch.sin(phase)


def _tiles(t: int, n: int) -> tuple[int, int]:
    """q and t/q: near sqrt(t), but q no less than n, so that n t/q coarse powers are at most t."""
    q = min(2 ** math.ceil(math.log2(max(math.sqrt(t), n))), t)
    return q, -(-t // q)


def _slabs(d: int, per_channel: int, device: torch.device) -> Iterator[slice]:
    """Slices of the channels whose temporaries stay within the budget."""
    size = max(1, BUDGET.get(device.type, BUDGET["cuda"]) // per_channel)
    return (slice(i, min(i + size, d)) for i in range(0, d, size))


def times(a: Tensor, b: Tensor) -> Tensor:
    product = torch.view_as_complex(a.contiguous()) * torch.view_as_complex(b.contiguous())
    return torch.view_as_real(product)


def conj(a: Tensor) -> Tensor:
    return torch.stack([a[..., 0], -a[..., 1]], dim=-1)


def _check_dtypes(x: Tensor, log_z: Tensor, name: str) -> None:
    complex_wanted = name == "c"
    allowed = (
        (torch.complex64, torch.complex128) if complex_wanted else (torch.float32, torch.float64)
    )
    if x.dtype not in allowed:
        raise ValueError(f"{name}: expected {allowed[0]} or {allowed[1]}, got dtype {x.dtype}")
    if log_z.dtype != torch.complex128:
        raise ValueError(f"log_z: expected torch.complex128, got dtype {log_z.dtype}")
