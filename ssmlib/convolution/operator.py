"""The fast forms of `causal_conv1d` as custom operators, which compilers take as they are."""

from collections.abc import Callable

import torch
from torch import Tensor

from ssmlib.backends import call, differentiable
from ssmlib.convolution import taps


def _forward_triton(*args) -> tuple[Tensor, Tensor]:
    from ssmlib.kernels import causal_conv1d  # triton is imported only when it runs

    return causal_conv1d.forward(*args)


def _backward_triton(*args) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from ssmlib.kernels import causal_conv1d

    return causal_conv1d.backward(*args)


def _step_triton(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, state: Tensor
) -> Tensor:
    from ssmlib.kernels import causal_conv1d

    held = state.contiguous()
    y = causal_conv1d.step_(x, weight, bias, silu, held)
    if held is not state:
        state.copy_(held)
    return y


FORWARD: dict[str, Callable] = {"torch": taps.forward, "triton": _forward_triton}
BACKWARD: dict[str, Callable] = {"torch": taps.backward, "triton": _backward_triton}
STEP: dict[str, Callable] = {"torch": taps.step_, "triton": _step_triton}


@torch.library.custom_op("ssmlib::causal_conv1d", mutates_args=())
def conv_by(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """y (b t d) and the states (b d w-1) or (s d w-1)."""
    return FORWARD[backend](x, weight, bias, silu, state, cu_seqlens)


@torch.library.custom_op("ssmlib::causal_conv1d_backward", mutates_args=())
def backward_by(
    dy: Tensor,
    dlast: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients by x, weight, bias and state; the last two are there without them, too."""
    return BACKWARD[backend](dy, dlast, x, weight, bias, silu, state, cu_seqlens)


def _states_like(x: Tensor, weight: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    d, w = weight.shape
    return x.new_empty(len(x) if cu_seqlens is None else len(cu_seqlens) - 1, d, w - 1)


@conv_by.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), _states_like(x, weight, cu_seqlens)


@backward_by.register_fake
def _(
    dy: Tensor,
    dlast: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    by_bias = weight.new_empty(len(weight)) if bias is None else torch.empty_like(bias)
    by_state = _states_like(x, weight, cu_seqlens)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), by_bias, by_state


def _keep(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, ctx.silu, state, cu_seqlens, ctx.backend = inputs
    ctx.save_for_backward(x, weight, bias, state, cu_seqlens)
    ctx.set_materialize_grads(False)  # a last state that nobody used costs nothing


def _backward(ctx, dy: Tensor | None, dlast: Tensor | None) -> tuple:
    x, weight, bias, state, cu_seqlens = ctx.saved_tensors
    dy = x.new_zeros(x.shape) if dy is None else dy
    options = (ctx.silu, state, cu_seqlens, ctx.backend)
    dx, dweight, dbias, dstate = call(backward_by, dy, dlast, x, weight, bias, *options)
    dbias, dstate = None if bias is None else dbias, None if state is None else dstate
    return dx, dweight, dbias, None, dstate, None, None


differentiable(conv_by, _backward, _keep)


@torch.library.custom_op("ssmlib::causal_conv1d_step_", mutates_args=("state",))
def step_by_(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, state: Tensor, backend: str
) -> Tensor:
    """One token x (b d): y (b d); the state moves on by one place."""
    return STEP[backend](x, weight, bias, silu, state)


@step_by_.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, state: Tensor, backend: str
) -> Tensor:
    return x.new_empty(x.shape)
