"""Decoding's products: a few rows, each the next token of a sequence, through one matrix.

Such a product reads its matrix and does next to nothing else, so that on a GPU what stands around
it costs as much again, launch by launch. `project` takes it along: a norm, a sum, a convolution. On
a CPU PyTorch's products in float32 are MKL's, and oneDNN's can be twice as fast: of one row, where
MKL keeps a single core busy, and of many on an AMD.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmlib.backends import HAS_TRITON, alone, call, resolve
from ssmlib.convolution import causal_conv1d_step_
from ssmlib.convolution.taps import step_
from ssmlib.layers.norm import RMSNorm
from ssmlib.shapes import check

MOST = 2  # rows of a GPU; from there on a library's product is as fast
ONEDNN = None
if torch.backends.mkldnn.is_available():
    ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # what compiled models call
WORTH = 2**18  # multiplications of a product, from which oneDNN's is the faster
WIDEST = 8192  # inputs that a program holds


class Convolution(NamedTuple):
    """A step of a short convolution and a silu, on outputs from `first` on.

    weight (d w), bias (d,) or None; state (b d w-1) is written over.
    """

    first: int
    weight: Tensor
    bias: Tensor | None
    state: Tensor


class Scale(NamedTuple):
    """The RMS norm of a row, by the weight of some other module."""

    weight: Tensor
    eps: float
    offset: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        weight = self.weight.to(wide) + self.offset
        return F.rms_norm(x.to(wide), weight.shape, weight, self.eps).to(x.dtype)


def project(
    x: Tensor,
    linear: nn.Linear,
    norm: RMSNorm | Scale | None = None,
    past: Tensor | None = None,
    convolution: Convolution | None = None,
    bias: bool = True,
    backend: str = "auto",
) -> Tensor:
    """past + linear(norm(x)), (b o) of x (b i), some of its outputs convolved; without gradients.

    One launch on a GPU for up to MOST rows; on a CPU a product by oneDNN. bias: whether to add the
    linear layer's. A layer that is more than `nn.Linear`, or has hooks, is called as it is.
    backend: "auto", "torch" or "triton". Raises ValueError for shapes that disagree, and a backend
    that is unknown or cannot run.
    """
    check(x=(x, f"b {linear.in_features}"), past=(past, f"b {linear.out_features}"))
    c = convolution
    if backend == "auto":
        launched = x.is_cuda and linear.in_features <= WIDEST and _quick(x, linear)
        backend = "auto" if launched else "torch"
    if resolve(backend, x, available=("torch", "triton")) == "triton":
        added = linear.bias if bias else None
        options = (None, 0.0, 0.0) if norm is None else (norm.weight, norm.eps, norm.offset)
        args = (x if x.stride(1) == 1 else x.contiguous(), linear.weight, added, *options)
        if c is None:
            return call(by_kernel, *args, past)
        return call(by_kernel_, *args, past, c.weight, c.bias, c.state, c.first)
    y = _multiply(x if norm is None else norm(x), linear, bias)
    y = y if past is None else past + y
    if c is not None:
        part = y[:, c.first : c.first + len(c.weight)]
        part.copy_(_convolve_(part, c))
    return y


def product(x: Tensor, linear: nn.Linear, bias: bool = True) -> Tensor:
    """linear(x) of x (b t i); one token of a GPU goes by `project`, all of a CPU by oneDNN."""
    if x.is_cuda and x.shape[1] == 1:
        return project(x[:, 0], linear, bias=bias)[:, None]
    return _multiply(x, linear, bias)


def few(x: Tensor) -> bool:
    """Whether `project` is for x (b ...): few rows that nothing is learned from; any of a CPU."""
    kind = x.device.type
    if torch.is_grad_enabled() or not alone((x,)) or torch.is_autocast_enabled(kind):
        return False
    if kind == "cpu":
        return ONEDNN is not None and x.dtype == torch.float32
    return x.is_cuda and HAS_TRITON and len(x) <= MOST and x.dtype != torch.float64


def _quick(x: Tensor, linear: nn.Linear) -> bool:
    """Whether it is nothing but a product of few rows, without gradients."""
    return _bare(linear) and x.dtype == linear.weight.dtype and few(x)


def _bare(linear: nn.Linear) -> bool:
    """Whether it is `nn.Linear` and nothing more, so that its weight says all."""
    return type(linear) is nn.Linear and not (linear._forward_hooks or linear._forward_pre_hooks)


def _convolve_(x: Tensor, c: Convolution) -> Tensor:
    if x.device.type == "cpu":  # where the checks of a token take as long as its arithmetic
        return step_(x, c.weight, c.bias, True, c.state)
    return causal_conv1d_step_(x, c.weight, c.bias, "silu", state=c.state)


def _multiply(x: Tensor, linear: nn.Linear, bias: bool) -> Tensor:
    if x.device.type == "cpu" and _bare(linear) and not torch.compiler.is_compiling():
        weight, added = linear.weight, linear.bias if bias else None
        worth = x.numel() // x.shape[-1] * weight.numel() >= WORTH
        if worth and weight.is_contiguous() and x.dtype == weight.dtype and few(x):
            return ONEDNN(x.contiguous(), weight, added, "none", [], "")
    if bias or linear.bias is None:
        return linear(x)
    return F.linear(x, linear.weight) if _bare(linear) else linear(x) - linear.bias


@torch.library.custom_op("ssmlib::project", mutates_args=())
def by_kernel(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Tensor | None,
    eps: float,
    offset: float,
    past: Tensor | None,
) -> Tensor:
    """x (b i), each row contiguous."""
    from ssmlib.kernels import rows  # triton is imported only when it runs

    return rows.forward(x, weight, bias, norm, eps, offset, past)


@torch.library.custom_op("ssmlib::project_", mutates_args=("state",))
def by_kernel_(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Tensor | None,
    eps: float,
    offset: float,
    past: Tensor | None,
    taps: Tensor,
    taps_bias: Tensor | None,
    state: Tensor,
    first: int,
) -> Tensor:
    """The same, outputs from `first` on convolved and gated, the state written over."""
    from ssmlib.kernels import rows

    convolution = (taps, taps_bias, state, first, True)
    return rows.forward(x, weight, bias, norm, eps, offset, past, *convolution)


@by_kernel.register_fake
@by_kernel_.register_fake
def _(x: Tensor, weight: Tensor, *others: Tensor | float | int | None) -> Tensor:
    return x.new_empty(len(x), len(weight))
