"""A cache of constant memory that is written over, and one token's attention to it.

Where a `KVCache` is a value, which each call copies and makes longer, a `RingCache` is a place:
token i stands in slot i modulo the number of slots, so that a token past a window takes the slot of
the one that just left it. Softmax does not mind the order of the slots; what is rotated was rotated
before it came.
"""

from math import inf
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmlib.attention.cache import KVCache
from ssmlib.attention.rotary import rotate
from ssmlib.attention.softmax import check_dtypes, check_window, match_heads
from ssmlib.backends import call, resolve
from ssmlib.recurrence import wants_grad
from ssmlib.shapes import check, check_number


class RingCache(NamedTuple):
    """Keys (b m g k) and values (b m g v) in m slots, and how many tokens each row saw, (b,).

    rates (b n): how far q and k turn from one position to the next, see `rotate`; None not to.
    """

    k: Tensor
    v: Tensor
    position: Tensor
    rates: Tensor | None = None


def to_ring(
    cache: KVCache, room: int, window: int | None = None, rates: Tensor | None = None
) -> RingCache:
    """The same memory as a place with room for so many more tokens, or for a window of them.

    rates (n,): of `rotary_rates`, for `attend_ring_` to turn what comes. Raises ValueError for a
    room or a window below 1.
    """
    check(**{"cache.k": (cache.k, "b t g k"), "cache.v": (cache.v, "b t g v")})
    check_number(low=1, whole=True, room=room)
    check_window(window)
    (b, kept), end = cache.k.shape[:2], cache.position
    m = end + room if window is None else min(end + room, window)
    kept = min(kept, m)
    slots = torch.arange(end - kept, end, device=cache.k.device) % m
    rings = []
    for past in (cache.k, cache.v):
        ring = past.new_zeros(b, m, *past.shape[2:])
        ring[:, slots] = past[:, -kept:].detach()
        rings.append(ring)
    rates = None if rates is None else rates.repeat(b, 1)  # a row each, so that rows can be joined
    return RingCache(*rings, torch.full((b,), end, device=cache.k.device), rates)


def attend_ring_(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: RingCache,
    window: int | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Write one token's key and value over `cache`, attend from it to all that is there: y (b h v).

    q: (b h k). k: (b g k). v: (b g v). q and k are turned first, by the cache's rates. window: as
    in `attend_cached`, with at most so many slots. scale: of q · k, None for 1 / sqrt(k). The cache
    keeps the memory it has, and a CUDA graph can hold the call.
    Raises ValueError for what does not fit, where gradients are wanted, and, on the CPU only, where
    reading it waits for nothing, for a token that finds no slot free of what it should see.
    """
    check(
        q=(q, "b h k"),
        k=(k, "b g k"),
        v=(v, "b g v"),
        **{"cache.k": (cache.k, "b m g k"), "cache.v": (cache.v, "b m g v")},
        **{"cache.position": (cache.position, "b"), "cache.rates": (cache.rates, "b n")},
    )
    check_dtypes(q=q, k=k, v=v, **{"cache.k": cache.k, "cache.v": cache.v})
    _check_slots(cache, window)
    if wants_grad(q, k, v, cache.k, cache.v):
        raise ValueError(
            "cache: expected no gradients, which cannot go through a cache that is overwritten;"
            " call attend_cached, or this under torch.no_grad()"
        )
    backend = _backend(backend, q)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if backend == "triton":
        inside = cache.k.stride(3) == cache.v.stride(3) == 1
        if not inside:
            raise ValueError("cache: expected features side by side, as `to_ring` lays them")
        from ssmlib.attention.operators import step_by_kernel_

        return call(step_by_kernel_, q, k, v, *cache, scale)
    if cache.rates is not None:
        at, rates = cache.position[:, None], cache.rates[0]
        q, k = (rotate(x[:, None], at, rates=rates).squeeze(1) for x in (q, k))
    rows, slots = torch.arange(len(q), device=q.device), cache.position % cache.k.shape[1]
    cache.k.index_put_((rows, slots), k)
    cache.v.index_put_((rows, slots), v)
    cache.position.add_(1)
    return attend_slots(q, cache.k, cache.v, cache.position, scale, backend)


def attend_slots(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    count: Tensor,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attend from one query a head, q (b h k), to the first count (b,) slots of k and v: (b h v).

    k: (b m g k). v: (b m g v). A count beyond m is m. scale: of q · k, None for 1 / sqrt(k).
    Raises ValueError for what does not fit, and for a backend that cannot run; there must be at
    least one slot, which is not looked at.
    """
    check(q=(q, "b h k"), k=(k, "b m g k"), v=(v, "b m g v"), count=(count, "b"))
    check_dtypes(q=q, k=k, v=v)
    if q.shape[1] % k.shape[2]:
        raise ValueError(f"q: expected h a multiple of g={k.shape[2]}, got h={q.shape[1]}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return BACKENDS[_backend(backend, q)](q, k, v, count, scale)


def _backend(backend: str, q: Tensor) -> str:
    """The kernel's products are of narrower numbers than float64."""
    if backend == "auto" and q.dtype == torch.float64:
        return "torch"
    return resolve(backend, q, default="torch", available=BACKENDS)


def _slots_reference(q: Tensor, k: Tensor, v: Tensor, count: Tensor, scale: float) -> Tensor:
    """The definition, in float64."""
    q64, k64, v64 = (x.double() for x in (q, *match_heads(q[:, None], k, v)))
    scores = torch.einsum("bhk,bmhk->bhm", q64, k64) * scale
    weights = scores.masked_fill(~_filled(count, k.shape[1])[:, None], -inf).softmax(-1)
    return torch.einsum("bhm,bmhv->bhv", weights, v64).to(q.dtype)


def _slots_torch(q: Tensor, k: Tensor, v: Tensor, count: Tensor, scale: float) -> Tensor:
    mask = None
    if count.device.type == "cpu" and not torch.compiler.is_compiling():  # empty slots cost nothing
        low, high = (min(x.item(), k.shape[1]) for x in (count.min(), count.max()))
        k, v = k[:, :high], v[:, :high]
        mask = None if low == high else _filled(count, high)[:, None, None]
    else:
        mask = _filled(count, k.shape[1])[:, None, None]
        k, v = match_heads(q[:, None], k, v)
    shared = {"enable_gqa": True} if k.shape[2] != q.shape[1] else {}
    y = F.scaled_dot_product_attention(
        q[:, :, None], k.transpose(1, 2), v.transpose(1, 2), mask, scale=scale, **shared
    )
    return y.squeeze(2)


def _slots_triton(q: Tensor, k: Tensor, v: Tensor, count: Tensor, scale: float) -> Tensor:
    from ssmlib.attention.operators import slots_by_kernel  # torch compiles, and so imports triton

    return call(slots_by_kernel, q, k, v, count, scale)


def _check_slots(cache: RingCache, window: int | None) -> None:
    check_window(window)
    m = cache.k.shape[1]
    if window is not None and m > window:
        raise ValueError(f"cache: expected at most window={window} slots, got {m}")
    if m == window or cache.position.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if cache.position.max().item() >= m:
        raise ValueError(f"cache: expected room for one more token, got {m} slots, all taken")


def _filled(count: Tensor, m: int) -> Tensor:
    return torch.arange(m, device=count.device) < count[:, None]


BACKENDS = {"reference": _slots_reference, "torch": _slots_torch, "triton": _slots_triton}
