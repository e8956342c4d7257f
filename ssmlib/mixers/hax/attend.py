r"""Softmax attention over a list of places: $y_i = \sum_{j \in P_i} w_{ij} v_j$.

$w_{ij}$ is the softmax over $j \in P_i$ of $s_{ij} = q_i \cdot k_j / \sqrt{k} + b_j$. A place that
is named twice counts once; a query that names none gets 0.

    reference   every score, those of the places alone kept: c t numbers
    gather      the keys and values of the places, side by side: c m (k + v) numbers
"""

import math

import torch
from torch import Tensor

from ssmlib.recurrence import working_dtype
from ssmlib.shapes import check, check_floating

BACKENDS = ("reference", "gather")


def attend_to(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    places: Tensor,
    bias: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attend from q (b c h k) to those of k (b t h k) and v (b t h v) that are named: (b c h v).

    places (b h c m): from `ssmlib.mixers.hax.places`, -1 for none. bias (b h t): added to the
    scores of a key. backend: "auto" takes the form that holds fewer numbers. Computed in float32 or
    wider. Differentiable in all but places.
    Raises ValueError for shapes or dtypes that disagree, and for an unknown backend.
    """
    check(
        q=(q, "b c h k"),
        k=(k, "b t h k"),
        v=(v, "b t h v"),
        places=(places, "b h c m"),
        bias=(bias, "b h t"),
    )
    check_floating(q=q, k=k, v=v, bias=bias)
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend: expected one of auto, {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "auto":
        held = places.shape[-1] * (k.shape[-1] + v.shape[-1])
        backend = "reference" if k.shape[1] <= held else "gather"
    wide = working_dtype(q, k, v)
    q, k, v = (x.to(wide).transpose(1, 2) for x in (q, k, v))  # b h t k
    bias = None if bias is None else bias.to(wide)
    form = _by_scores if backend == "reference" else _by_gathering
    return form(q / math.sqrt(q.shape[-1]), k, v, places, bias).transpose(1, 2).to(v.dtype)


def _by_scores(q: Tensor, k: Tensor, v: Tensor, places: Tensor, bias: Tensor | None) -> Tensor:
    seen = torch.zeros(*places.shape[:3], k.shape[2] + 1, dtype=torch.bool, device=k.device)
    seen.scatter_(-1, torch.where(places >= 0, places, k.shape[2]), True)
    scores = q @ k.mT
    if bias is not None:
        scores = scores + bias[:, :, None]
    return _weights(scores, seen[..., :-1]) @ v


def _by_gathering(q: Tensor, k: Tensor, v: Tensor, places: Tensor, bias: Tensor | None) -> Tensor:
    places = _without_repeats(places)
    b, h, t = k.shape[:3]
    head = torch.arange(b * h, device=k.device).view(b, h, 1, 1)
    rows = places.clamp_min(0) + t * head
    scores = torch.einsum("bhck,bhcmk->bhcm", q, k.flatten(0, 2)[rows])
    if bias is not None:
        scores = scores + bias.flatten()[rows]
    return torch.einsum("bhcm,bhcmv->bhcv", _weights(scores, places >= 0), v.flatten(0, 2)[rows])


def _weights(scores: Tensor, seen: Tensor) -> Tensor:
    """Softmax over what is seen, and 0 where nothing is."""
    lowest = torch.finfo(scores.dtype).min  # not -inf: a row of nothing would be NaN
    return scores.masked_fill(~seen, lowest).softmax(-1) * seen


def _without_repeats(places: Tensor) -> Tensor:
    ordered = places.sort(-1).values
    again = torch.zeros_like(ordered, dtype=torch.bool)
    again[..., 1:] = ordered[..., 1:] == ordered[..., :-1]
    return ordered.masked_fill(again, -1)
