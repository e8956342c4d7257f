"""What the inputs of state space duality must be; every refusal says what was wanted, what came."""

import torch
from torch import Tensor

from ssmlib.recurrence import check_packing, check_state
from ssmlib.shapes import check, check_floating

CHUNK_SIZES = (16, 32, 64, 128, 256)


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
) -> None:
    """Raise ValueError for what does not fit together.

    Values of A and cu_seqlens are read only where that waits for no device, and not by a compiler.
    """
    check(
        x=(x, "b t h p"),
        dt=(dt, "b t h"),
        A=(A, "h"),
        B=(B, "b t g n"),
        C=(C, "b t g n"),
        D=(D, "h p" if isinstance(D, Tensor) and D.ndim == 2 else "h"),
        z=(z, "b t h p"),
        dt_bias=(dt_bias, "h"),
        state=(state, "b h p n" if cu_seqlens is None else "s h p n"),
        cu_seqlens=(cu_seqlens, "..."),
    )
    check_floating(x=x, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias, state=state)
    check_groups(B, x)
    check_state(state)
    _check_decay(A)
    if cu_seqlens is not None:
        check_packing(cu_seqlens, x, state)


def check_groups(B: Tensor, x: Tensor) -> None:
    g, h = B.shape[2], x.shape[2]
    if h % g:
        raise ValueError(f"B: expected g groups that divide h={h} (from x), got g={g}")


def check_chunk_size(chunk_size: int | None) -> None:
    if chunk_size is not None and (isinstance(chunk_size, bool) or chunk_size not in CHUNK_SIZES):
        known = ", ".join(map(str, CHUNK_SIZES))
        raise ValueError(f"chunk_size: expected None or one of {known}, got {chunk_size!r}")


def _check_decay(A: Tensor) -> None:
    if A.device.type != "cpu" or torch.compiler.is_compiling():
        return
    worst = A.detach().max().item()
    if not worst <= 0:
        raise ValueError(f"A: expected values <= 0, got {worst:g}")
