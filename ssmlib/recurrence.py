"""What the recurrences of the library share: the dtype they compute in, packs, chunks, softplus."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

INTEGERS = (torch.int32, torch.int64)
WIDE = (torch.float32, torch.float64)
LINEAR_FROM = 40.0  # above it, softplus(x) is x to the last bit of a float64


class Piece(NamedTuple):
    """A chunk: its tokens, its rows of the state; is it the first or last one of its sequence?"""

    tokens: slice
    rows: slice
    first: bool
    last: bool


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), exact in relative terms also where it is tiny."""
    return F.softplus(x, threshold=LINEAR_FROM)


def working_dtype(*tensors: Tensor | None) -> torch.dtype:
    """What to compute in, and the dtype of states: float64 if anything is, float32 otherwise."""
    is_wide = any(x is not None and x.dtype == torch.float64 for x in tensors)
    return torch.float64 if is_wide else torch.float32


def wants_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in tensors)


def pieces_of(t: int, cu_seqlens: Tensor | None, chunk: int) -> list[Piece]:
    """Every chunk of every sequence, in order. Raises ValueError where cu_seqlens does not fit."""
    if cu_seqlens is None:
        return _chunks(0, t, slice(None), chunk)
    bounds = cu_seqlens.tolist()
    check_boundaries(bounds, t)
    ends = enumerate(itertools.pairwise(bounds))
    return [piece for k, (i, j) in ends for piece in _chunks(i, j, slice(k, k + 1), chunk)]


def most_pieces(t: int, s: int, chunk: int) -> int:
    """The most chunks that any way to cut t tokens into s sequences gives."""
    return t // chunk + s


def check_state(state: Tensor | None) -> None:
    """Raise ValueError for a state that is narrower than float32."""
    if state is not None and state.dtype not in WIDE:
        raise ValueError(f"state: expected dtype float32 or float64, got dtype {state.dtype}")


def check_packing(cu_seqlens: Tensor, x: Tensor, state: Tensor | None) -> None:
    """Raise ValueError for boundaries that do not fit x (1 t …) or the rows of the state.

    Their values are read only where that waits for no device, and not by a compiler.
    """
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


def _chunks(start: int, stop: int, rows: slice, chunk: int) -> list[Piece]:
    return [
        Piece(slice(i, min(i + chunk, stop)), rows, i == start, i + chunk >= stop)
        for i in range(start, stop, chunk)
    ]
