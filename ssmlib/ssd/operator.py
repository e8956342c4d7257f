"""The fast forms as custom operators, which `torch.compile` passes over whole and autograd knows.

A form is a module with `forward`, `backward`, `saved_shape` and `saved_dtype`, as
`ssmlib.ssd.chunks` has them; FORMS names it, and it is imported when it runs. Differentiable once:
the backward operator has no gradient of its own.
"""

import importlib
from types import ModuleType

import torch
from torch import Tensor

from ssmlib.backends import call, differentiable
from ssmlib.recurrence import wants_grad, working_dtype

FORMS = {"torch": "ssmlib.ssd.chunks", "triton": "ssmlib.kernels.ssd"}


def ssd_by(
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
    chunk_size: int | None,
) -> tuple[Tensor, Tensor]:
    """y and the last h by a form of FORMS; arguments as the forms take them."""
    needs_grad = wants_grad(x, dt, A, B, C, D, z, dt_bias, state)
    args = (x, dt, A, B, C, D, z, dt_bias, dt_softplus, state, cu_seqlens, chunk_size, form)
    y, last, _ = call(_forward, *args, needs_grad)
    return y, last


def module_of(form: str) -> ModuleType:
    return importlib.import_module(FORMS[form])


@torch.library.custom_op("ssmlib::ssd", mutates_args=())
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
    chunk_size: int | None,
    form: str,
    needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (b t h p), the last h (b h p n) or (s h p n), and what this form's backward pass wants."""
    return module_of(form).forward(
        x, dt, A, B, C, D, z, dt_bias, dt_softplus, state, cu_seqlens, chunk_size, needs_grad
    )


@_forward.register_fake
def _(*inputs: Tensor | bool | int | str | None) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, _, state, cu_seqlens, chunk_size, form, needs_grad = inputs
    x, _, _, B, C, *_ = tensors
    wide, module = working_dtype(*tensors, state), module_of(form)
    s = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    kept = module.saved_shape(x, B, cu_seqlens, chunk_size) if needs_grad else (0,)
    last = (s, *x.shape[2:], B.shape[3])
    sizes = ((x.shape, x.dtype), (last, wide), (kept, module.saved_dtype(x, B, C, wide)))
    return tuple(x.new_empty(size, dtype=dtype) for size, dtype in sizes)


@torch.library.custom_op("ssmlib::ssd_backward", mutates_args=())
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
    chunk_size: int | None,
    saved: Tensor,
    form: str,
) -> list[Tensor]:
    """The gradients of x, dt, A, B, C, D, z, dt_bias and state, without those that are None."""
    tensors = (x, dt, A, B, C, D, z, dt_bias)
    grads = module_of(form).backward(
        dy, d_last, *tensors, dt_softplus, state, cu_seqlens, chunk_size, saved
    )
    return [grad for grad in grads if grad is not None]


@_backward.register_fake
def _(dy: Tensor, d_last: Tensor | None, *inputs: Tensor | bool | int | str | None) -> list[Tensor]:
    *tensors, _, state, _, _, _, _ = inputs
    return [v.new_empty(v.shape) for v in (*tensors, state) if v is not None]


def _keep(ctx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, dt_softplus, state, cu_seqlens, chunk_size, form, _ = inputs
    saved = output[2]
    ctx.save_for_backward(*tensors, state, cu_seqlens, saved)
    ctx.mark_non_differentiable(saved)
    ctx.set_materialize_grads(False)
    ctx.options = (dt_softplus, chunk_size, form)


def _differentiate(ctx, dy: Tensor | None, d_last: Tensor | None, _: None) -> tuple:
    *tensors, state, cu_seqlens, saved = ctx.saved_tensors
    dt_softplus, chunk_size, form = ctx.options
    dy = tensors[0].new_zeros(tensors[0].shape) if dy is None else dy.contiguous()
    options = (dt_softplus, state, cu_seqlens, chunk_size, saved, form)
    found = iter(call(_backward, dy, d_last, *tensors, *options))
    *grads, d_state = (None if v is None else next(found) for v in (*tensors, state))
    return (*grads, None, d_state, None, None, None, None)


differentiable(_forward, _differentiate, _keep)


@torch.library.custom_op("ssmlib::ssd_step", mutates_args=())
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
    """y (b h p) and the next state of one token, by a form that has a `step`. Not for autograd."""
    return module_of(form).step(x, dt, A, B, C, D, z, dt_bias, dt_softplus, state)


@step_by.register_fake
def _(form: str, x: Tensor, *others: Tensor | bool | None) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), others[-1].new_empty(others[-1].shape)


@torch.library.custom_op("ssmlib::ssd_step_", mutates_args=("state",))
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
