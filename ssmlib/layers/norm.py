"""RMSNorm, x / sqrt(mean(x²) + eps) * weight, and where norms stand around a mixer.

In PyTorch's own operations half precision goes through memory several times, once of it in float32;
the kernel reads and writes a row once.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmlib.backends import HAS_TRITON, call, differentiable
from ssmlib.shapes import check, check_number

MOST = 16384  # features of a row that the kernel takes
PLACES = ("pre", "post", "both")


class RMSNorm(nn.Module):
    """Scale the last axis of x (..., d) to a root mean square of 1, times offset + weight (d,).

    weight starts at 1 - offset, so that the scale starts at 1; Gemma's norms have an offset of 1.
    Half precision is computed in float32. On a GPU with Triton, and not in float64, a kernel runs,
    which differentiates once. Zhang and Sennrich 2019.
    """

    def __init__(self, d: int, eps: float = 1e-5, offset: float = 0.0):
        super().__init__()
        check_number(low=1, whole=True, d=d)
        check_number(low=0, eps=eps)
        self.weight = nn.Parameter(torch.full((d,), 1.0 - offset))
        self.eps, self.offset = eps, offset

    def forward(self, x: Tensor) -> Tensor:
        check(x=(x, f"... {len(self.weight)}"))
        if self._fits_kernel(x):
            rows = x.reshape(-1, x.shape[-1])
            rows = rows if rows.stride(1) == 1 else rows.contiguous()
            return call(by_kernel, rows, self.weight, self.eps, self.offset).view(x.shape)
        wide = torch.promote_types(x.dtype, torch.float32)
        weight = self.weight.to(wide)
        weight = weight + self.offset if self.offset else weight
        return F.rms_norm(x.to(wide), weight.shape, weight, self.eps).to(x.dtype)

    def _fits_kernel(self, x: Tensor) -> bool:
        """A compiler makes a kernel of its own, of this and of what stands beside it."""
        narrow = torch.float64 not in (x.dtype, self.weight.dtype)
        able = x.is_cuda and HAS_TRITON and not torch.compiler.is_compiling()
        return able and narrow and len(self.weight) <= MOST


@dataclass(frozen=True)
class NormConfig:
    """The norms of a model. eps, offset: see `RMSNorm`.

    place: "pre", x + mixer(norm(x)); "post", norm(x + mixer(x)), as the first Transformer had it;
    "both", x + norm(mixer(norm(x))), as in Gemma 2.
    """

    eps: float = 1e-5
    offset: float = 0.0
    place: str = "pre"

    def build(self, d: int) -> RMSNorm:
        if self.place not in PLACES:
            raise ValueError(f"place: expected one of {', '.join(PLACES)}, got {self.place!r}")
        return RMSNorm(d, self.eps, self.offset)


@torch.library.custom_op("ssmlib::rms_norm", mutates_args=())
def by_kernel(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    """x (rows d)."""
    from ssmlib.kernels import norm  # triton is imported only when it runs

    return norm.forward(x, weight, eps, offset)


@torch.library.custom_op("ssmlib::rms_norm_backward", mutates_args=())
def backward_by_kernel(
    dy: Tensor, x: Tensor, weight: Tensor, eps: float, offset: float
) -> tuple[Tensor, Tensor]:
    """The gradients of x and weight."""
    from ssmlib.kernels import norm

    return norm.backward(dy if dy.stride(1) == 1 else dy.contiguous(), x, weight, eps, offset)


@by_kernel.register_fake
def _(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    return x.new_empty(x.shape)


@backward_by_kernel.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, eps: float, offset: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    x, weight, ctx.eps, ctx.offset = inputs
    ctx.save_for_backward(x, weight)


def _differentiate(ctx, dy: Tensor) -> tuple:
    return (*call(backward_by_kernel, dy, *ctx.saved_tensors, ctx.eps, ctx.offset), None, None)


differentiable(by_kernel, _differentiate, _keep)
