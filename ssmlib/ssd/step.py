"""One token of state space duality, for decoding: as a function, and in place."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmlib.backends import call
from ssmlib.recurrence import softplus, wants_grad, working_dtype
from ssmlib.shapes import check
from ssmlib.ssd.checks import check_inputs
from ssmlib.ssd.function import choose, ssd
from ssmlib.ssd.operator import step_by, step_by_


def ssd_step(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    *,
    state: Tensor,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Take one token; return y (b h p) and the next state (b h p n): `ssd` at t = 1.

    x, z (b h p). dt (b h). B, C (b g n). state (b h p n), and all else, as in `ssd`.
    Differentiable. With Triton, a kernel of its own where no gradient is wanted.
    Raises ValueError as `ssd` does.
    """
    _check(x, dt, A, B, C, D, z, dt_bias, state)
    chosen = choose(backend, x, dt, A, B, C, D, z, dt_bias, state)
    if chosen == "triton" and not wants_grad(x, dt, A, B, C, D, z, dt_bias, state):
        return call(step_by, chosen, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state)
    if chosen != "torch":
        x, dt, B, C, z = (None if v is None else v.unsqueeze(1) for v in (x, dt, B, C, z))
        args = (x, dt, A, B, C, D, z, dt_bias, dt_softplus, state)
        y, last = ssd(*args, backend=chosen)
        return y.squeeze(1), last
    wide = working_dtype(x, dt, A, B, C, D, z, dt_bias, state)
    with torch.autocast(x.device.type, enabled=False):
        dt = _time_step(dt, dt_bias, dt_softplus, wide)
        decay, fed, B = _enter(x, dt, A, B, wide)
        state = (decay * _grouped(state.to(wide), B) + fed * B).flatten(1, 2)
        return _read(x, C, D, z, state), state


def ssd_step_(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    *,
    state: Tensor,
    backend: str = "auto",
) -> Tensor:
    """Take one token, and write the next state over `state`; return y (b h p).

    Nothing as large as the state is allocated, and no value waits for the GPU, so a CUDA graph can
    hold it. Arguments as in `ssd_step`. Raises ValueError as it does, also where autograd would
    have to remember the state that is written over, and where the state is narrower than the rest.
    """
    tensors = (x, dt, A, B, C, D, z, dt_bias)
    if wants_grad(*tensors, state):
        raise ValueError(
            "state: expected no gradients, which cannot go through a state that is overwritten;"
            " call ssd_step, or this under torch.no_grad()"
        )
    _check(*tensors, state)
    wide = working_dtype(*tensors, state)
    if state.dtype != wide:
        raise ValueError(f"state: expected dtype {wide} (the widest input), got {state.dtype}")
    chosen = choose(backend, *tensors, state)
    if chosen == "triton":
        return call(step_by_, chosen, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state)
    if chosen != "torch":
        args = (x, dt, A, B, C, D, z, dt_bias, dt_softplus)
        y, last = ssd_step(*args, state=state, backend=chosen)
        state.copy_(last)
        return y
    with torch.autocast(x.device.type, enabled=False):
        dt = _time_step(dt, dt_bias, dt_softplus, wide)
        decay, fed, B = _enter(x, dt, A, B, wide)
        _grouped(state, B).mul_(decay).addcmul_(fed, B)
        return _read(x, C, D, z, state)


def _time_step(dt: Tensor, dt_bias: Tensor | None, dt_softplus: bool, wide: torch.dtype) -> Tensor:
    dt = dt.to(wide) if dt_bias is None else dt.to(wide) + dt_bias.to(wide)
    return softplus(dt) if dt_softplus else dt


def _enter(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, wide: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """exp(dt A) (b g e 1 1), dt x (b g e p 1) and B (b g 1 1 n), e heads in each of g groups."""
    groups = (B.shape[1], -1)
    decay = torch.exp(dt * A.to(wide)).unflatten(1, groups)[..., None, None]
    fed = (dt[..., None] * x.to(wide)).unflatten(1, groups)[..., None]
    return decay, fed, B.to(wide)[:, :, None, None]


def _grouped(state: Tensor, B: Tensor) -> Tensor:
    """The state as (b g e p n), a view."""
    return state.unflatten(1, (B.shape[1], -1))


def _read(x: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, state: Tensor) -> Tensor:
    """y (b h p) from the state after the token."""
    wide = state.dtype
    C = C.to(wide)[:, :, None, :, None]  # (b g 1 n 1)
    y = (_grouped(state, C) @ C).squeeze(4).flatten(1, 2)
    if D is not None:
        y = y + (D if D.ndim == 2 else D[:, None]).to(wide) * x.to(wide)
    return (y if z is None else y * F.silu(z.to(wide))).to(x.dtype)


def _check(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor,
) -> None:
    """As `check_inputs`, without an axis of time."""
    check(
        x=(x, "b h p"),
        dt=(dt, "b h"),
        A=(A, "h"),
        B=(B, "b g n"),
        C=(C, "b g n"),
        z=(z, "b h p"),
        state=(state, "b h p n"),
    )
    if state is None:
        raise ValueError("state: expected a tensor (b, h, p, n), got NoneType")
    x, dt, B, C, z = (None if v is None else v.unsqueeze(1) for v in (x, dt, B, C, z))
    check_inputs(x, dt, A, B, C, D, z, dt_bias, state, None)
