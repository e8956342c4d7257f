"""State space duality, read three ways: as a recurrence, as a masked matrix, as chunks.

Each form maps dt x, the log decays dt A, B, C and a state to y and the next state; what stands
around that (dt's bias and softplus, packs, the skip, the gate) is the same for all of them.
"""

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmlib.recurrence import softplus, working_dtype
from ssmlib.shapes import check, check_number
from ssmlib.ssd.checks import check_groups, check_inputs

Form = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def segsum(log_a: Tensor) -> Tensor:
    """Sum every segment of log_a (... t): entry i, j of (... t t) adds up j + 1 to i.

    exp of it is what is left at i of something that came in at j, 1 for i = j, and 0 for i < j,
    where the sum is -inf. Each entry adds its own terms: the difference of two cumulative sums is
    the same number, but loses the digits of a short segment after a long past.
    """
    check(log_a=(log_a, "... t"))
    t = log_a.shape[-1]
    terms = log_a[..., None].expand(*log_a.shape, t).tril(-1)  # row k of column j, where k > j
    future = torch.ones(t, t, dtype=torch.bool, device=log_a.device).triu(1)
    return terms.cumsum(-2).masked_fill(future, -torch.inf)


def ssd_recurrent(
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
    """The definition, one token after the other; arguments, results and errors as in `ssd`.

    Computes in float64 if anything is float64, in float32 otherwise. Autograd keeps every h.
    """
    return by_form(_recurrent, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state, cu_seqlens)


def ssd_quadratic(
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
    """The dual form, y = (L ∘ C Bᵀ) x with L = exp(segsum(dt A)); it holds (b h t t).

    Attention without a softmax, under a mask that decays. Arguments, results and errors as in
    `ssd`, dtypes as in `ssd_recurrent`.
    """
    return by_form(_quadratic, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state, cu_seqlens)


def ssd_chunked(
    x: Tensor,
    log_a: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """The quadratic form within chunks, the recurrence between them: y and the last state.

    x (b t h p) is multiplied by dt already; log_a (b t h) is dt A. Dao and Gu 2024, section 6.
    Raises ValueError for shapes that disagree and for a chunk_size that is no whole number >= 1.
    """
    _check_listing(x, log_a, B, C, state, chunk_size)
    t, (b, _, g, n), pad = x.shape[1], B.shape, -x.shape[1] % chunk_size
    x, log_a, B, C = (  # (b c l ...): c chunks of l tokens; the last is filled up with zeros
        F.pad(v, (0, 0) * (v.ndim - 2) + (0, pad)).unflatten(1, (-1, chunk_size))
        for v in (x, log_a, B, C)
    )
    x = x.unflatten(3, (g, -1))  # e heads read the B and C of each of g groups
    log_a = log_a.unflatten(3, (g, -1)).movedim(2, -1)  # (b c g e l)
    h = x.new_zeros(b, *x.shape[3:], n) if state is None else state.unflatten(1, (g, -1))
    # 1. within chunks
    L = segsum(log_a).exp()
    y = torch.einsum("bclgn,bcmgn,bcgelm,bcmgep->bclgep", C, B, L, x)
    # 2. what each chunk adds to the state
    added = torch.einsum("bcmgn,bcgem,bcmgep->bcgepn", B, L[..., -1, :], x)
    # 3. the state is passed from chunk to chunk
    decay, starts = log_a.sum(-1).exp()[..., None, None], []
    for k in range(x.shape[1]):
        starts.append(h)
        h = decay[:, k] * h + added[:, k]
    # 4. what each chunk reads from the state at its start
    past = log_a.cumsum(-1).exp()
    y = y + torch.einsum("bclgn,bcgel,bcgepn->bclgep", C, past, torch.stack(starts, 1))
    return y.flatten(1, 2)[:, :t].flatten(2, 3), h.flatten(1, 2)


def by_form(
    form: Form,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Run form(dt x, dt A, B, C, state) over each sequence, under the contract of `ssd`."""
    check_inputs(x, dt, A, B, C, D, z, dt_bias, state, cu_seqlens)
    wide, dtype = working_dtype(x, dt, A, B, C, D, z, dt_bias, state), x.dtype
    x, dt, A, B, C = (v.to(wide) for v in (x, dt, A, B, C))
    with torch.autocast(x.device.type, enabled=False):
        dt = dt if dt_bias is None else dt + dt_bias.to(wide)
        dt = softplus(dt) if dt_softplus else dt
        parts = (dt[..., None] * x, dt * A, B, C)
        rows = len(x) if cu_seqlens is None else len(cu_seqlens) - 1
        h = x.new_zeros(rows, *x.shape[2:], B.shape[3]) if state is None else state.to(wide)
        if cu_seqlens is None:
            y, last = form(*parts, h)
        else:
            pieces = [
                form(*(p[:, i:j] for p in parts), h[k : k + 1])
                for k, (i, j) in enumerate(itertools.pairwise(cu_seqlens.tolist()))
            ]
            y, last = torch.cat([y for y, _ in pieces], 1), torch.cat([h for _, h in pieces])
        if D is not None:
            y = y + (D if D.ndim == 2 else D[:, None]).to(wide) * x
        return (y if z is None else y * F.silu(z.to(wide))).to(dtype), last


def _check_listing(
    x: Tensor, log_a: Tensor, B: Tensor, C: Tensor, state: Tensor | None, chunk_size: int
) -> None:
    check(
        x=(x, "b t h p"),
        log_a=(log_a, "b t h"),
        B=(B, "b t g n"),
        C=(C, "b t g n"),
        state=(state, "b h p n"),
    )
    check_groups(B, x)
    check_number(low=1, whole=True, chunk_size=chunk_size)


def _recurrent(x: Tensor, log_a: Tensor, B: Tensor, C: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    B, C = _of_heads(B, C, h)
    outputs = []
    for x_t, a_t, B_t, C_t in zip(*(v.unbind(1) for v in (x, log_a.exp(), B, C)), strict=True):
        h = a_t[..., None, None] * h + x_t[..., None] * B_t[..., None, :]
        outputs.append((h * C_t[..., None, :]).sum(-1))
    return torch.stack(outputs, dim=1), h


def _quadratic(x: Tensor, log_a: Tensor, B: Tensor, C: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    B, C = (M.transpose(1, 2) for M in _of_heads(B, C, h))  # (b h t n)
    x, log_a = x.transpose(1, 2), log_a.transpose(1, 2)  # (b h t p), (b h t)
    L, past = segsum(log_a).exp(), log_a.cumsum(-1).exp()[..., None]
    y = (L * (C @ B.mT)) @ x + past * (C @ h.mT)
    last = past[:, :, -1:] * h + (L[:, :, -1, :, None] * x).mT @ B
    return y.transpose(1, 2), last


def _of_heads(B: Tensor, C: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """B and C (b t g n), a copy for each head: (b t h n)."""
    e = h.shape[1] // B.shape[2]
    return B.repeat_interleave(e, 2), C.repeat_interleave(e, 2)
