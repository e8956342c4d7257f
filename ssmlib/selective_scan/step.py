"""One token of the selective scan, for decoding: as a function, and in place."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmlib.backends import call
from ssmlib.recurrence import softplus, wants_grad, working_dtype
from ssmlib.selective_scan.checks import check_values
from ssmlib.selective_scan.function import BACKENDS, choose
from ssmlib.selective_scan.operator import step_by, step_by_
from ssmlib.shapes import check


def selective_scan_step(
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
    """Take one token; return y (b d) and the next state (b d n): `selective_scan` at t = 1.

    x, dt, z (b d). B, C (b n) or (b g n). state (b d n), and all else, as in `selective_scan`.
    Without Triton this is that very call; with it, a kernel of its own where no gradient is wanted.
    Raises ValueError as `selective_scan` does.
    """
    B, C = _check(x, dt, A, B, C, D, z, dt_bias, state)
    chosen = choose(backend, x, dt, A, B, C, D, z, dt_bias, state)
    if chosen == "triton" and not wants_grad(x, dt, A, B, C, D, z, dt_bias, state):
        return call(step_by, chosen, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state)
    x, dt, B, C, z = (None if v is None else v.unsqueeze(1) for v in (x, dt, B, C, z))
    y, last = BACKENDS[chosen](x, dt, A, B, C, D, z, dt_bias, dt_softplus, state, None)
    return y.squeeze(1), last


def selective_scan_step_(
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
    """Take one token, and write the next state over `state`; return y (b d).

    Nothing is allocated but y, and no value waits for the GPU, so a CUDA graph can hold it.
    Arguments as in `selective_scan_step`. Raises ValueError as it does, also where autograd would
    have to remember the state that is written over, and where the state is narrower than the rest.
    """
    B, C = _check(x, dt, A, B, C, D, z, dt_bias, state)
    return step_unchecked_(x, dt, A, B, C, D, z, dt_bias, dt_softplus, state, backend)


def step_unchecked_(
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
    backend: str,
) -> Tensor:
    """`selective_scan_step_` for a layer that knows its shapes; B and C (b g n).

    On a CPU the checks of a token take as long as its arithmetic.
    """
    tensors = (x, dt, A, B, C, D, z, dt_bias)
    if wants_grad(*tensors, state):
        raise ValueError(
            "state: expected no gradients, which cannot go through a state that is overwritten;"
            " call selective_scan_step, or this under torch.no_grad()"
        )
    wide = working_dtype(*tensors, state)
    if state.dtype != wide:
        raise ValueError(f"state: expected dtype {wide} (the widest input), got {state.dtype}")
    chosen = choose(backend, *tensors, state)
    if chosen == "triton":
        return call(step_by_, chosen, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state)
    if chosen == "torch":
        with torch.autocast(x.device.type, enabled=False):
            return _step_(x, dt, A, B, C, D, z, dt_bias, dt_softplus, state)
    args = (x, dt, A, B, C, D, z, dt_bias, dt_softplus)
    y, last = selective_scan_step(*args, state=state, backend=chosen)
    state.copy_(last)
    return y


def _step_(
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
    """The formulas, without the tiles in which a sequence is taken; B and C (b g n)."""
    wide = state.dtype
    dt = dt.to(wide) if dt_bias is None else dt.to(wide) + dt_bias.to(wide)
    dt = softplus(dt) if dt_softplus else dt
    state.mul_(torch.mul(dt[..., None], A.to(wide)).exp_())
    grouped = state.unflatten(1, (B.shape[1], -1))  # (b g e n), a view
    fed = (dt * x.to(wide)).unflatten(1, grouped.shape[1:3])
    grouped.addcmul_(fed[..., None], B.to(wide)[:, :, None])
    y = (grouped @ C.to(wide)[..., None]).flatten(1)
    y = y if D is None else torch.addcmul(y, D.to(wide), x.to(wide))
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
) -> tuple[Tensor, Tensor]:
    """As `check_inputs` does for a sequence; B and C come back as (b g n)."""
    groups = ["b g n" if isinstance(M, Tensor) and M.ndim == 3 else "b n" for M in (B, C)]
    check(
        x=(x, "b d"),
        dt=(dt, "b d"),
        A=(A, "d n"),
        B=(B, groups[0]),
        C=(C, groups[1]),
        D=(D, "d"),
        z=(z, "b d"),
        dt_bias=(dt_bias, "d"),
        state=(state, "b d n"),
    )
    if state is None:
        raise ValueError("state: expected a tensor (b, d, n), got NoneType")
    B, C = (M if M.ndim == 3 else M[:, None] for M in (B, C))
    check(B=(B, "b g n"), C=(C, "b g n"))
    check_values(x, dt, A, B, C, D, z, dt_bias, state)
    return B, C
