"""The S4D layer as one writes it first, with every power in memory: what the suite `s4` beats."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmlib.mixers.s4 import DiagonalSystem, S4Layer


def apply(layer: S4Layer, system: Callable[..., Tensor], x: Tensor) -> Tensor:
    """The layer with its system computed by `system`."""
    u = system(layer, x)
    return F.glu(layer.output_linear(F.gelu(u)), dim=-1)


def plain_system(layer: S4Layer, x: Tensor) -> Tensor:
    t, dtype = x.shape[1], torch.promote_types(x.dtype, torch.float32)
    p = layer.kernel
    K = plain_kernel(*parts_of(p.log_dt, p.log_A_real, p.A_imag, p.B, p.C), t)
    u = x.mT.to(dtype)
    y = torch.fft.irfft(torch.fft.rfft(u, 2 * t) * torch.fft.rfft(K, 2 * t), 2 * t)[..., :t]
    return (y + layer.D[:, None] * u).mT.to(x.dtype)


def plain_kernel(dt: Tensor, A: Tensor, B: Tensor, C: Tensor, length: int) -> Tensor:
    """The zero-order-hold kernel by one einsum over all poles and steps, (d n t) in memory."""
    a = dt[:, None] * A
    powers = torch.exp(a[..., None] * torch.arange(length, device=A.device))
    return 2 * torch.einsum("dn,dnt->dt", C * B * (torch.exp(a) - 1) / A, powers).real


def parameters_of(system: DiagonalSystem) -> list[Tensor]:
    """The system's parameters, detached, in the order that `parts_of` takes them."""
    names = ("log_dt", "log_A_real", "A_imag", "B", "C")
    return [getattr(system, name).detach() for name in names]


def parts_of(
    log_dt: Tensor, log_A_real: Tensor, A_imag: Tensor, B: Tensor, C: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dt, A, B, C of a diagonal system from its parameters."""
    A = torch.complex(-log_A_real.exp(), A_imag)
    return log_dt.exp(), A, torch.view_as_complex(B), torch.view_as_complex(C)
