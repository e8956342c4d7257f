"""One token's attention by kernels, as custom operators, which compilers take as they are."""

import torch
from torch import Tensor

from ssmlib.backends import interpreting
from ssmlib.kernels import attend


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
