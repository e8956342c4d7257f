"""Attention with a memory of past keys and values: prefill, a chunk, one token are one call."""

from typing import NamedTuple

import torch
from torch import Tensor

from ssmlib.attention.softmax import attention, check_dtypes, check_window
from ssmlib.shapes import check, check_number


class KVCache(NamedTuple):
    """Past keys (b, t, g, k) and values (b, t, g, v), and how many tokens went by in all.

    `position` is the place of the next token; it exceeds t once a window has dropped some.
    """

    k: Tensor
    v: Tensor
    position: int


def attend_cached(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: KVCache | None = None,
    window: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, KVCache]:
    """Attend causally from c new tokens to themselves and the cache; return (y, longer cache).

    q: (b, c, h, k). k: (b, c, g, k). v: (b, c, g, v). cache: None to start. With a window only the
    last `window` keys and values stay. Keys are cached as they come: rotate them first, with
    positions from cache.position on. The cache is a value, not a buffer: each call copies it.
    Raises ValueError as `attention` does, and for a cache that does not fit or is too short.
    """
    past_k, past_v, position = cache or (None, None, 0)
    past = {"cache.k": (past_k, "b t g k"), "cache.v": (past_v, "b t g v")}
    check(q=(q, "b c h k"), k=(k, "b c g k"), v=(v, "b c g v"), **past)
    check_window(window)
    _check_past(0 if past_k is None else past_k.shape[1], position, window)
    position += k.shape[1]
    if cache is not None:
        check_dtypes(k=k, **{"cache.k": past_k, "cache.v": past_v})
        k, v = torch.cat([past_k, k], dim=1), torch.cat([past_v, v], dim=1)
    y = attention(q, k, v, causal=True, window=window, backend=backend)
    if window is not None and k.shape[1] > window:  # cloned, or the view would keep all of it alive
        k, v = k[:, -window:].clone(), v[:, -window:].clone()
    return y, KVCache(k, v, position)


def _check_past(kept: int, position: int, window: int | None) -> None:
    check_number(low=kept, whole=True, **{"cache.position": position})
    wanted = position if window is None else min(position, window - 1)
    if kept < wanted:
        told = f"the last {wanted} of {position} tokens (for window={window}), got {kept}"
        raise ValueError(f"cache: expected {told}")
