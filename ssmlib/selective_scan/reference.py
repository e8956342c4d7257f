"""The selective scan as its equations say it, one token after the other."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmlib.recurrence import softplus, working_dtype


def selective_scan_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition; arguments and results as in `selective_scan`, B and C as (b t g n).

    Computes in float64 if anything is float64, in float32 otherwise. Autograd keeps every h.
    """
    wide, dtype = working_dtype(x, dt, A, B, C, D, z, dt_bias, state), x.dtype
    x, dt, A, B, C = (v.to(wide) for v in (x, dt, A, B, C))
    with torch.autocast(x.device.type, enabled=False):
        dt = dt if dt_bias is None else dt + dt_bias.to(wide)
        dt = softplus(dt) if dt_softplus else dt
        e = x.shape[2] // B.shape[2]  # channels that share a group's B and C
        B, C = (M.unsqueeze(3).expand(-1, -1, -1, e, -1).flatten(2, 3) for M in (B, C))  # (b t d n)
        state = None if state is None else state.to(wide)
        parts = [x, dt, B, C]
        if cu_seqlens is None:
            y, last = _scan(*parts, A, state)
        else:
            bounds = cu_seqlens.tolist()
            pieces = [
                _scan(*(p[:, i:j] for p in parts), A, None if state is None else state[k : k + 1])
                for k, (i, j) in enumerate(itertools.pairwise(bounds))
            ]
            y, last = torch.cat([y for y, _ in pieces], 1), torch.cat([h for _, h in pieces])
        y = y if D is None else y + D.to(wide) * x
        return (y if z is None else y * F.silu(z.to(wide))).to(dtype), last


def _scan(
    x: Tensor, dt: Tensor, B: Tensor, C: Tensor, A: Tensor, h: Tensor | None
) -> tuple[Tensor, Tensor]:
    """y (b t d) without skip and gate, and the last h (b d n)."""
    h = x.new_zeros(len(x), *A.shape) if h is None else h
    outputs = []
    for x_t, dt_t, B_t, C_t in zip(*(v.unbind(1) for v in (x, dt, B, C)), strict=True):
        h = torch.exp(dt_t[..., None] * A) * h + (dt_t * x_t)[..., None] * B_t
        outputs.append((C_t * h).sum(-1))
    return torch.stack(outputs, dim=1), h
