"""`causal_conv1d`: the contract, its checks, which form runs; and one token of it, for decoding."""

from functools import partial

import torch
from torch import Tensor

from ssmlib.backends import call, resolve
from ssmlib.convolution import taps
from ssmlib.convolution.operator import conv_by, step_by_
from ssmlib.convolution.taps import reference
from ssmlib.recurrence import check_packing
from ssmlib.shapes import check, check_floating

WIDTHS = range(2, 17)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Convolve each channel of x with w taps of its own; return y (b t d) and the next state.

    y_t = f(bias + sum_i weight_i x_{t-w+1+i}): the last tap is for the token itself. f is silu with
    activation "silu", nothing with None. x (b t d), weight (d w) with 2 <= w <= 16, bias (d,).
    state (b d w-1), of the dtype of x, is the w - 1 inputs before the first, oldest first; zero if
    None. The state that comes back is the last w - 1 inputs, from before x too where t < w - 1.
    cu_seqlens (s+1,), int32 or int64, increases from 0 to t: then b = 1, s sequences stand one
    after the other, and state is (s d w-1), in and out.

    Half precision is computed in float32; y has the dtype of x. Differentiable, once, in all but
    cu_seqlens. Raises ValueError for shapes that disagree, an empty sequence, another width or
    activation, dtypes that are not real floating point, a state of another dtype than x, a backend
    that is unknown or cannot run; on a CPU, and outside of torch.compile, also for values of
    cu_seqlens that do not cut up t.
    """
    _check(x, weight, bias, activation, state, cu_seqlens)
    chosen = resolve(backend, x, default="torch", available=BACKENDS)
    return BACKENDS[chosen](x, weight, bias, activation == "silu", state, cu_seqlens)


def causal_conv1d_step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    state: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Take one token x (b d); return y (b d) and the next state: `causal_conv1d` at t = 1.

    Raises ValueError as it does.
    """
    check(x=(x, "b d"))
    y, last = causal_conv1d(x[:, None], weight, bias, activation, state, backend=backend)
    return y.squeeze(1), last


def causal_conv1d_step_(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    state: Tensor,
    backend: str = "auto",
) -> Tensor:
    """Take one token x (b d), and write the next state over `state` (b d w-1); return y (b d).

    One launch on a GPU, which allocates only y; a CUDA graph can hold it. Raises ValueError as
    `causal_conv1d` does, also without a state, and where autograd would have to remember the one
    that is written over.
    """
    check(x=(x, "b d"))
    if state is None:
        raise ValueError("state: expected a tensor (b, d, w-1), got NoneType")
    _check(x[:, None], weight, bias, activation, state, None)
    given = [v for v in (x, weight, bias, state) if v is not None]
    if torch.is_grad_enabled() and any(v.requires_grad for v in given):
        raise ValueError(
            "state: expected no gradients, which cannot go through a state that is overwritten;"
            " call causal_conv1d_step, or this under torch.no_grad()"
        )
    chosen = resolve(backend, x, default="torch", available=("torch", "triton"))
    if chosen == "torch" and not torch.compiler.is_compiling():  # an operator costs what it does
        return taps.step_(x, weight, bias, activation == "silu", state)
    return call(step_by_, x, weight, bias, activation == "silu", state, chosen)


def _by(backend: str, *args) -> tuple[Tensor, Tensor]:
    return call(conv_by, *args, backend)


BACKENDS = {
    "reference": reference,
    "torch": partial(_by, "torch"),
    "triton": partial(_by, "triton"),
}


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> None:
    check(
        x=(x, "b t d"),
        weight=(weight, "d w"),
        bias=(bias, "d"),
        state=(state, "b d k" if cu_seqlens is None else "s d k"),
        cu_seqlens=(cu_seqlens, "n"),
    )
    check_floating(x=x, weight=weight, bias=bias, state=state)
    w = weight.shape[1]
    if w not in WIDTHS:
        raise ValueError(f"weight: expected (d, w) with 2 <= w <= 16, got w={w}")
    if activation not in (None, "silu"):
        raise ValueError(f"activation: expected None or 'silu', got {activation!r}")
    if state is not None and state.shape[2] != w - 1:
        told = f"w - 1 = {w - 1} inputs of each channel (from weight)"
        raise ValueError(f"state: expected {told}, got shape {tuple(state.shape)}")
    if state is not None and state.dtype != x.dtype:
        raise ValueError(f"state: expected dtype {x.dtype} (from x), got dtype {state.dtype}")
    if cu_seqlens is not None:
        check_packing(cu_seqlens, x, state)
