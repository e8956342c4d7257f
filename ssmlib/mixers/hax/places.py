"""Which keys a query sees, as lists of places: (… c m) for the last c of t positions, -1 for none.

    recent     the last few
    sinks      the first few
    dilated    every so-many-th
    buckets    the latest of those that hash to what the query hashes to
    selected   those of the highest score so far

The first three look at no content. No list names a key that comes after its query.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmlib.recurrence import working_dtype
from ssmlib.shapes import check, check_floating, check_number

NONE = -1
MOST_BITS = 32
SMALLEST_CHUNK = 64


def recent(c: int, t: int, window: int, device: torch.device | None = None) -> Tensor:
    """(c window): oneself, the one before, and so on."""
    check_number(low=1, whole=True, window=window)
    i = _queries(c, t, device)
    return (i - torch.arange(window, device=device)).clamp_min(NONE)


def sinks(c: int, t: int, count: int, device: torch.device | None = None) -> Tensor:
    """(c count): the first `count` of all, as far as they have come."""
    check_number(low=1, whole=True, count=count)
    first = torch.arange(count, device=device)
    return torch.where(first <= _queries(c, t, device), first, NONE)


def dilated(c: int, t: int, step: int, device: torch.device | None = None) -> Tensor:
    """(c t//step): the places step - 1, 2 step - 1, ... that have come."""
    check_number(low=1, whole=True, step=step)
    some = torch.arange(step - 1, t, step, device=device)
    return torch.where(some <= _queries(c, t, device), some, NONE)


def hash_codes(x: Tensor, planes: Tensor) -> Tensor:
    """Say on which side of each plane x (b t h k) lies, as one number per set of planes: (b h s t).

    planes: (h s w k), s sets of w normal vectors per head. Two vectors at an angle θ have the same
    number with probability (1 - θ / π)^w over the planes drawn (Charikar 2002).
    Raises ValueError for shapes that disagree, and more than 32 planes in a set.
    """
    check(x=(x, "b t h k"), planes=(planes, "h s w k"))
    check_number(high=MOST_BITS, planes=planes.shape[2])
    check_floating(x=x, planes=planes)
    wide = working_dtype(x)  # in half precision, equal vectors could round to different sides
    sides = torch.einsum("bthk,hswk->bhstw", x.to(wide), planes.to(wide)) > 0
    return (sides.long() << torch.arange(planes.shape[2], device=x.device)).sum(-1)


def buckets(q_codes: Tensor, k_codes: Tensor, size: int) -> Tensor:
    """The latest `size` keys with the code of the query, in each of s sets: (b h c s*size).

    q_codes (b h s c), of the last c of t positions, k_codes (b h s t): from `hash_codes`. One sort
    of the keys by code and place, and one binary search per query: t log t, whatever the buckets.
    Raises ValueError for shapes that disagree, c > t, or a size below 1.
    """
    check(q_codes=(q_codes, "b h s c"), k_codes=(k_codes, "b h s t"))
    check_number(low=1, whole=True, size=size)
    t, c = k_codes.shape[-1], q_codes.shape[-1]
    at = torch.arange(t, device=k_codes.device)
    stamps = (k_codes * t + at).sort(-1).values
    _queries(c, t, k_codes.device)
    wanted = (q_codes * t + at[t - c :]).contiguous()
    behind = torch.searchsorted(stamps, wanted, right=True)  # keys up to this code and this time
    rank = behind[..., None] - 1 - torch.arange(size, device=at.device)
    found = stamps.gather(-1, rank.clamp_min(0).flatten(-2)).unflatten(-1, (c, size))
    is_member = (rank >= 0) & (found >= q_codes[..., None] * t)
    places = torch.where(is_member, found % t, NONE)  # b h s c size
    return places.movedim(2, 3).flatten(3)


def selected(scores: Tensor, c: int, count: int) -> Tensor:
    """The `count` keys of the highest score among those that have come: (b h c count).

    scores (b h t). Each chunk of keys finds its best; a scan over chunks, log t steps, merges them
    to the best so far; and a query adds those of its own chunk: linear in t.
    Raises ValueError for c > t or a count below 1.
    """
    check(scores=(scores, "b h t"))
    check_floating(scores=scores)
    check_number(low=1, whole=True, count=count)
    t, w = scores.shape[-1], max(count, SMALLEST_CHUNK)
    first = int(_queries(c, t, None)[0]) // w  # the chunk of the first query
    scores = F.pad(scores.detach(), (0, -t % w), value=-torch.inf).unflatten(-1, (-1, w))
    places = torch.arange(scores.shape[2] * w, device=scores.device).view(-1, w)
    best = _best(scores, places.expand_as(scores), count)
    step = 1
    while step < len(places):
        earlier = [_shift(x, step) for x in best]
        best = _best(*(torch.cat(pair, -1) for pair in zip(best, earlier, strict=True)), count)
        step *= 2
    value, place = (_shift(x, 1)[:, :, first:, None].expand(-1, -1, -1, w, -1) for x in best)
    own = scores[:, :, first:, None].expand(*place.shape[:4], w)
    own = own.masked_fill(torch.ones(w, w, dtype=torch.bool, device=own.device).triu(1), -torch.inf)
    value, place = _best(
        torch.cat([value, own], -1),
        torch.cat([place, places[first:, None].expand_as(own)], -1),
        count,
    )
    place = place.masked_fill(value == -torch.inf, NONE).flatten(2, 3)
    return place[:, :, t - c - first * w : t - first * w]


def _best(scores: Tensor, places: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest scores of the last axis, and their places."""
    top = scores.topk(count, dim=-1)
    return top.values, places.gather(-1, top.indices)


def _shift(x: Tensor, step: int) -> Tensor:
    """x (b h n m), n moved on by `step`: first comes nothing, whose score is the lowest."""
    nothing = -torch.inf if x.is_floating_point() else NONE
    return F.pad(x[:, :, : x.shape[2] - step], (0, 0, step, 0), value=nothing)


def _queries(c: int, t: int, device: torch.device | None) -> Tensor:
    """The positions of the last c of t, (c 1)."""
    check_number(low=1, whole=True, t=t)
    check_number(low=1, high=t, whole=True, c=c)
    return torch.arange(t - c, t, device=device)[:, None]
