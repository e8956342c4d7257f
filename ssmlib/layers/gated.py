"""RMS norm under a gate, as Mamba-2 has it before its last matrix: as a module, and as operators.

In PyTorch's own operations a row goes through memory a dozen times, in float32; the kernel reads
and writes it once.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmlib.backends import call, differentiable, resolve
from ssmlib.shapes import check, check_number

BACKENDS = ("torch", "triton")
MOST = 8192  # channels of a group whose gradient fits into a program's registers


class GatedRMSNorm(nn.Module):
    """norm(y silu(z)), or norm(y) silu(z) with norm_before_gate; each of g groups by itself.

    y, z (..., d). RMSNorm with one weight (d,); half precision is computed in float32, and what
    comes out has the dtype of y. backend: "auto", "torch" or "triton"; "auto" takes "triton" for
    CUDA tensors, not of float64, with up to 8,192 channels in a group. The kernel differentiates
    once.
    Raises ValueError for groups that do not divide d, shapes that disagree, and another backend.
    """

    def __init__(
        self,
        d: int,
        groups: int = 1,
        eps: float = 1e-5,
        norm_before_gate: bool = False,
        backend: str = "auto",
    ):
        super().__init__()
        check_number(low=1, whole=True, d=d, groups=groups)
        if d % groups:
            raise ValueError(f"groups: expected a divisor of d={d}, got {groups}")
        self.weight = nn.Parameter(torch.ones(d))
        self.groups, self.eps, self.norm_before_gate = groups, eps, norm_before_gate
        self.backend = backend

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        check(y=(y, f"... {len(self.weight)}"), z=(z, f"... {len(self.weight)}"))
        args = (self.groups, self.eps, self.norm_before_gate)
        chosen = resolve(self.backend, y, z, self.weight, available=BACKENDS)
        large = y.dtype == torch.float64 or len(self.weight) > MOST * self.groups
        if chosen == "torch" or (self.backend == "auto" and large):
            return in_torch(y, z, self.weight, *args)
        rows = (v.reshape(-1, v.shape[-1]) for v in (y, z))
        y_rows, z_rows = (v if v.stride(1) == 1 else v.contiguous() for v in rows)
        return call(by_kernel, y_rows, z_rows, self.weight, *args).view(y.shape)


def in_torch(
    y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float, norm_before_gate: bool
) -> Tensor:
    """The definition."""
    wide, dtype = torch.promote_types(y.dtype, torch.float32), y.dtype
    y, gate = y.to(wide), F.silu(z.to(wide))
    y = y if norm_before_gate else y * gate
    parts = y.unflatten(-1, (groups, -1))
    y = F.rms_norm(parts, parts.shape[-1:], eps=eps).flatten(-2) * weight.to(wide)
    return (y * gate if norm_before_gate else y).to(dtype)


@torch.library.custom_op("ssmlib::gated_norm", mutates_args=())
def by_kernel(
    y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float, norm_before_gate: bool
) -> Tensor:
    """y, z (rows d)."""
    from ssmlib.kernels import gated_norm  # triton is imported only when it runs

    return gated_norm.forward(y, z, weight, groups, eps, norm_before_gate)


@torch.library.custom_op("ssmlib::gated_norm_backward", mutates_args=())
def backward_by_kernel(
    dout: Tensor,
    y: Tensor,
    z: Tensor,
    weight: Tensor,
    groups: int,
    eps: float,
    norm_before_gate: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of y, z and weight."""
    from ssmlib.kernels import gated_norm

    dout = dout if dout.stride(1) == 1 else dout.contiguous()
    return gated_norm.backward(dout, y, z, weight, groups, eps, norm_before_gate)


@by_kernel.register_fake
def _(y: Tensor, z: Tensor, weight: Tensor, *options: int | float | bool) -> Tensor:
    return y.new_empty(y.shape)


@backward_by_kernel.register_fake
def _(
    dout: Tensor, y: Tensor, z: Tensor, weight: Tensor, *options: int | float | bool
) -> tuple[Tensor, Tensor, Tensor]:
    return y.new_empty(y.shape), z.new_empty(z.shape), weight.new_empty(weight.shape)


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.groups, ctx.eps, ctx.norm_before_gate = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, dout: Tensor) -> tuple:
    options = (ctx.groups, ctx.eps, ctx.norm_before_gate)
    return (*call(backward_by_kernel, dout, *ctx.saved_tensors, *options), None, None, None)


differentiable(by_kernel, _differentiate, _keep)
