"""What a selective scan's inputs must be; every refusal says what was wanted and what came."""

import torch
from torch import Tensor

from ssmlib.recurrence import check_packing, check_state
from ssmlib.shapes import check, check_floating


def check_inputs(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Raise ValueError for what does not fit together; return B and C as (b t g n).

    Values of A and cu_seqlens are read only where that waits for no device, and not by a compiler.
    """
    check(
        x=(x, "b t d"),
        dt=(dt, "b t d"),
        A=(A, "d n"),
        B=(B, _pattern(B)),
        C=(C, _pattern(C)),
        D=(D, "d"),
        z=(z, "b t d"),
        dt_bias=(dt_bias, "d"),
        state=(state, "b d n" if cu_seqlens is None else "s d n"),
        cu_seqlens=(cu_seqlens, "..."),
    )
    B, C = (M if M.ndim == 4 else M[:, :, None] for M in (B, C))
    check(B=(B, "b t g n"), C=(C, "b t g n"))
    check_values(x, dt, A, B, C, D, z, dt_bias, state)
    if cu_seqlens is not None:
        check_packing(cu_seqlens, x, state)
    return B, C


def check_values(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor | None,
) -> None:
    """What is no matter of single axes: dtypes, groups that divide d, the sign of A.

    B and C (... g n), x (... d), with or without an axis of time.
    """
    check_floating(x=x, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias, state=state)
    g, d = B.shape[-2], x.shape[-1]
    if d % g:
        raise ValueError(f"B: expected g groups that divide d={d} (from x), got g={g}")
    check_state(state)
    _check_decay(A)


def _pattern(M: Tensor) -> str:
    return "b t g n" if isinstance(M, Tensor) and M.ndim == 4 else "b t n"


def _check_decay(A: Tensor) -> None:
    if A.device.type != "cpu" or torch.compiler.is_compiling():
        return
    worst = A.detach().max().item()
    if not worst < 0:
        raise ValueError(f"A: expected values < 0, got {worst:g}")
