"""Rotation and one token's attention by kernels, as operators, which compilers take as they are."""

import torch
from torch import Tensor

from ssmlib.backends import call, differentiable, interpreting
from ssmlib.kernels import attend, rotate


@torch.library.custom_op("ssmlib::rotate", mutates_args=())
def rotate_by_kernel(x: Tensor, positions: Tensor, rates: Tensor, back: bool) -> Tensor:
    """x (b t h k) turned to positions (t,) or (b t) by rates (n,), or turned back."""
    return rotate.rotate(x, positions, rates, back)


@rotate_by_kernel.register_fake
def _(x: Tensor, positions: Tensor, rates: Tensor, back: bool) -> Tensor:
    return x.new_empty(x.shape)


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    _, positions, rates, ctx.back = inputs
    ctx.save_for_backward(positions, rates)


def _differentiate(ctx, dy: Tensor) -> tuple:
    return call(rotate_by_kernel, dy, *ctx.saved_tensors, not ctx.back), None, None, None


differentiable(rotate_by_kernel, _differentiate, _keep)


@torch.library.custom_op("ssmlib::attend_slots", mutates_args=())
def slots_by_kernel(q: Tensor, k: Tensor, v: Tensor, count: Tensor, scale: float) -> Tensor:
    return attend.attend(q, k, v, count, scale, exact=interpreting())


@slots_by_kernel.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, count: Tensor, scale: float) -> Tensor:
    return q.new_empty(*q.shape[:2], v.shape[3])


@torch.library.custom_op("ssmlib::attend_ring", mutates_args=("keys", "values", "position"))
def step_by_kernel_(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    rates: Tensor | None,
    scale: float,
) -> Tensor:
    exact = interpreting()
    return attend.step_(q, k, v, keys, values, position, rates, scale, exact)


@step_by_kernel_.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    rates: Tensor | None,
    scale: float,
) -> Tensor:
    return q.new_empty(*q.shape[:2], v.shape[2])
