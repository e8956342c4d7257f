"""What a selective scan's inputs must be; every refusal says what was wanted and what came."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ssmlib.shapes import check, check_floating

INTEGERS = (torch.int32, torch.int64)
WIDE = (torch.float32, torch.float64)


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
    check_floating(x=x, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias, state=state)
    B, C = (M if M.ndim == 4 else M[:, :, None] for M in (B, C))
    check(B=(B, "b t g n"), C=(C, "b t g n"))
    g, d = B.shape[2], x.shape[2]
    if d % g:
        raise ValueError(f"B: expected g groups that divide d={d} (from x), got g={g}")
    _check_state(state)
    _check_decay(A)
    if cu_seqlens is not None:
        _check_packing(cu_seqlens, x, state)
    return B, C


def check_boundaries(bounds: Sequence[int], t: int) -> None:
    """Refuse boundaries that do not cut t tokens into sequences of at least one."""
    if bounds[0] != 0:
        raise ValueError(f"cu_seqlens: expected 0 first, got {bounds[0]}")
    for i in range(1, len(bounds)):
        if bounds[i] <= bounds[i - 1]:
            raise ValueError(
                "cu_seqlens: expected boundaries that increase, got"
                f" {bounds[i - 1]} and {bounds[i]} at {i - 1} and {i}"
            )
    if bounds[-1] != t:
        raise ValueError(f"cu_seqlens: expected t={t} (from x) last, got {bounds[-1]}")


def working_dtype(*tensors: Tensor | None) -> torch.dtype:
    """What to compute in, and the dtype of states: float64 if anything is, float32 otherwise."""
    is_wide = any(x is not None and x.dtype == torch.float64 for x in tensors)
    return torch.float64 if is_wide else torch.float32


def _pattern(M: Tensor) -> str:
    return "b t g n" if isinstance(M, Tensor) and M.ndim == 4 else "b t n"


def _check_state(state: Tensor | None) -> None:
    if state is not None and state.dtype not in WIDE:
        raise ValueError(f"state: expected dtype float32 or float64, got dtype {state.dtype}")


def _check_decay(A: Tensor) -> None:
    if A.device.type != "cpu" or torch.compiler.is_compiling():
        return
    worst = A.detach().max().item()
    if not worst < 0:
        raise ValueError(f"A: expected values < 0, got {worst:g}")


def _check_packing(cu_seqlens: Tensor, x: Tensor, state: Tensor | None) -> None:
    if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2:
        came = tuple(cu_seqlens.shape)
        raise ValueError(f"cu_seqlens: expected (s+1,) with s >= 1, got shape {came}")
    if cu_seqlens.dtype not in INTEGERS:
        came = cu_seqlens.dtype
        raise ValueError(f"cu_seqlens: expected dtype int32 or int64, got dtype {came}")
    if x.shape[0] != 1:
        raise ValueError(f"x: expected b=1 with cu_seqlens, got b={x.shape[0]}")
    s = len(cu_seqlens) - 1
    if state is not None and len(state) != s:
        raise ValueError(f"state: expected s={s} sequences (from cu_seqlens), got {len(state)}")
    if cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling():
        check_boundaries(cu_seqlens.tolist(), x.shape[1])
