"""The fast forms as custom operators, which `torch.compile` passes over whole and autograd knows.

A form is a module with `forward` and `backward`: `ssmlib.selective_scan.tiles`, or the Triton twin.
Differentiable once: the backward operator has no gradient of its own.
"""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from ssmlib.backends import call, differentiable
from ssmlib.recurrence import wants_grad, working_dtype
from ssmlib.selective_scan import tiles


def scan_by(
    form: str,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y and the last h by the form "torch" or "triton"; arguments as the forms take them."""
    needs_grad = wants_grad(x, dt, A, B, C, D, z, dt_bias, state)
    y, last, _ = call(
        _forward, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state, cu_seqlens, form, needs_grad
    )
    return y, last


def module_of(form: str) -> ModuleType:
    if form == "torch":
        return tiles
    from ssmlib.kernels import selective_scan  # triton is imported only when it runs

    return selective_scan


def _saved_shape(form: str) -> Callable[..., tuple[int, ...]]:
    if form == "torch":
        return tiles.saved_shape
    from ssmlib.kernels.selective_scan.layout import saved_shape

    return saved_shape


@torch.library.custom_op("ssmlib::selective_scan", mutates_args=())
def _forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    form: str,
    needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (b t d), the last h (b d n) or (s d n), and what the backward pass of this form wants."""
    return module_of(form).forward(
        x, dt, A, B, C, D, z, dt_bias, dt_softplus, state, cu_seqlens, needs_grad
    )


@_forward.register_fake
def _(*inputs: Tensor | bool | str | None) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, _, state, cu_seqlens, form, needs_grad = inputs
    x, _, A, B, *_ = tensors
    wide = working_dtype(*tensors, state)
    s = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    saved = _saved_shape(form)(x, A, B, cu_seqlens) if needs_grad else (0,)
    sizes = ((x.shape, x.dtype), ((s, *A.shape), wide), (saved, wide))
    return tuple(x.new_empty(size, dtype=dtype) for size, dtype in sizes)


@torch.library.custom_op("ssmlib::selective_scan_backward", mutates_args=())
def _backward(
    dy: Tensor,
    d_last: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    saved: Tensor,
    form: str,
) -> list[Tensor]:
    """The gradients of x, dt, A, B, C, D, z, dt_bias and state, without those that are None."""
    grads = module_of(form).backward(
        dy, d_last, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state, cu_seqlens, saved
    )
    return [grad for grad in grads if grad is not None]


@_backward.register_fake
def _(dy: Tensor, d_last: Tensor | None, *inputs: Tensor | bool | str | None) -> list[Tensor]:
    *tensors, _, state, _, _, _ = inputs
    return [v.new_empty(v.shape) for v in (*tensors, state) if v is not None]


def _keep(ctx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, dt_softplus, state, cu_seqlens, form, _ = inputs
    saved = output[2]
    ctx.save_for_backward(*tensors, state, cu_seqlens, saved)
    ctx.mark_non_differentiable(saved)
    ctx.set_materialize_grads(False)
    ctx.dt_softplus, ctx.form = dt_softplus, form


def _differentiate(ctx, dy: Tensor | None, d_last: Tensor | None, _: None) -> tuple:
    *tensors, state, cu_seqlens, saved = ctx.saved_tensors
    dy = tensors[0].new_zeros(tensors[0].shape) if dy is None else dy.contiguous()
    options = (ctx.dt_softplus, state, cu_seqlens, saved, ctx.form)
    found = iter(call(_backward, dy, d_last, *tensors, *options))
    *grads, d_state = (None if v is None else next(found) for v in (*tensors, state))
    return (*grads, None, d_state, None, None, None)


differentiable(_forward, _differentiate, _keep)


@torch.library.custom_op("ssmlib::selective_scan_step", mutates_args=())
def step_by(
    form: str,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """y (b d) and the next state of one token: x, dt, z (b d), B, C (b g n). Not for autograd."""
    return module_of(form).step(x, dt, A, B, C, D, z, dt_bias, dt_softplus, state)


@step_by.register_fake
def _(form: str, *inputs: Tensor | bool | None) -> tuple[Tensor, Tensor]:
    *tensors, _, state = inputs
    x = tensors[0]
    return x.new_empty(x.shape), state.new_empty(state.shape, dtype=working_dtype(*tensors, state))


@torch.library.custom_op("ssmlib::selective_scan_step_", mutates_args=("state",))
def step_by_(
    form: str,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    state: Tensor,
) -> Tensor:
    """The same with the next state written over `state`; y."""
    return module_of(form).step_(x, dt, A, B, C, D, z, dt_bias, dt_softplus, state)


@step_by_.register_fake
def _(form: str, x: Tensor, *others: Tensor | bool | None) -> Tensor:
    return x.new_empty(x.shape)
