r"""A diagonal system on a GPU: its recurrence, walked by `ssmlib.kernels.s4d`, as one operator.

$$h_t = a h_{t-1} + x_t, \qquad y_t = \mathrm{Re} \sum_n c_n h_{n,t} + D x_t$$

The h of `ssmlib.s4.s4d` is $\bar b$ times this one and c is $2 C \bar b$: so the walk needs no
product of x with $\bar b$, and no division by one.
"""

import torch
from torch import Tensor


def walk(x: Tensor, log_a: Tensor, c: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor]:
    """y (b t d) in the dtype of x, and the last h (b d n), of a system that starts from zero.

    x (b t d) of any float dtype, log_a (d n) complex128, c (d n) complex and D (d,) of the dtype to
    compute in.
    """
    from ssmlib.kernels.s4d import segment_length

    length = segment_length(*x.shape, c.shape[1])
    pairs = torch.view_as_real(log_a), torch.view_as_real(c)
    y, last, _ = _walk(x, *pairs, D, length)
    return y, torch.view_as_complex(last)


@torch.library.custom_op("ssmlib::s4d_walk", mutates_args=())
def _walk(
    x: Tensor, log_a: Tensor, c: Tensor, D: Tensor | None, length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last h (b d n 2), and the h before each of s segments (d b s n 2), empty if s = 1."""
    from ssmlib.kernels.s4d import forward  # triton is imported only when it runs

    return forward(x, log_a, c, D, length)


@_walk.register_fake
def _(
    x: Tensor, log_a: Tensor, c: Tensor, D: Tensor | None, length: int
) -> tuple[Tensor, Tensor, Tensor]:
    (b, t, d), n = x.shape, c.shape[1]
    y, segments = torch.empty_like(x, memory_format=torch.contiguous_format), -(-t // length)
    starts = c.new_empty(0) if segments == 1 else c.new_empty(d, b, segments, n, 2)
    return y, c.new_empty(b, d, n, 2), starts


@torch.library.custom_op("ssmlib::s4d_walk_backward", mutates_args=())
def _walk_backward(
    dy: Tensor,
    d_last: Tensor | None,
    x: Tensor,
    log_a: Tensor,
    c: Tensor,
    D: Tensor | None,
    starts: Tensor,
    length: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients by x, log_a, c and D."""
    from ssmlib.kernels.s4d import backward

    return backward(dy, d_last, x, log_a, c, D, starts, length)


@_walk_backward.register_fake
def _(
    dy: Tensor,
    d_last: Tensor | None,
    x: Tensor,
    log_a: Tensor,
    c: Tensor,
    D: Tensor | None,
    starts: Tensor,
    length: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    return dx, *(torch.empty_like(z) for z in (log_a, c)), c.new_empty(x.shape[2])


def _keep(ctx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, log_a, c, D, ctx.length = inputs
    ctx.save_for_backward(x, log_a, c, D, output[2])
    ctx.set_materialize_grads(False)  # whether the last state is used decides what is computed


def _backward(ctx, dy: Tensor | None, d_last: Tensor | None, _: Tensor | None) -> tuple:
    x, log_a, c, D, starts = ctx.saved_tensors
    dy = torch.zeros_like(x) if dy is None else dy
    *grads, d_skip = _walk_backward(dy, d_last, x, log_a, c, D, starts, ctx.length)
    return *grads, None if D is None else d_skip, None


_walk.register_autograd(_backward, setup_context=_keep)
