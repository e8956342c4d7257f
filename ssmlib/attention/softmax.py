r"""Softmax attention $y_i = \sum_j \mathrm{softmax}_j(q_i \cdot k_j / \sqrt{k})\, v_j$, three ways.

Query i stands at position t - c + i of t, so c < t queries are the newest ones; query head i of h
reads key head i // (h / g) of g: g = h is multi-head, g = 1 multi-query, between is grouped-query.

- `attention_reference`: every score, in float64; the truth the others are tested against.
- `attention_torch`: PyTorch's fused kernels; a causal window costs t times w, never t times t.
- `attention_tiled`: the online softmax in the open; one tile of scores at a time.

In the first and last, a NaN anywhere, or an infinite v, spoils the rows that see it and no other.
PyTorch's kernels weigh an unseen v with 0, and 0 * NaN is NaN: there it can spoil earlier rows too.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from ssmlib.backends import resolve
from ssmlib.shapes import check, check_floating, check_number

HALF = (torch.float16, torch.bfloat16)  # what the flash kernel takes
SMALLEST_BLOCK = 64  # below this, a block of a windowed attention is too small to be worth a launch


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = True,
    window: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attend from each query to the keys it sees; return (b, c, h, v).

    q: (b, c, h, k), the last c of t positions. k: (b, t, g, k). v: (b, t, g, v). h is a multiple of
    g, and c <= t. causal: see nothing newer than oneself. window: see only positions less than
    `window` away, oneself included. One floating dtype for all three.
    Raises ValueError for shapes, dtypes or a window that do not fit, or an unknown backend.
    """
    _check_heads(q, k, v, window)
    chosen = resolve(backend, q, default="torch", available=BACKENDS)
    return BACKENDS[chosen](q, k, v, causal, window)


def attention_reference(
    q: Tensor, k: Tensor, v: Tensor, causal: bool = True, window: int | None = None
) -> Tensor:
    """The definition: c times t scores per head, in float64 whatever the inputs' dtype."""
    _check_heads(q, k, v, window)
    q64, k64, v64 = (x.double() for x in (q, *match_heads(q, k, v)))
    scores = torch.einsum("bchk,bthk->bhct", q64, k64) / math.sqrt(q.shape[-1])
    seen = visible(q.shape[1], k.shape[1], causal, window, q.device)
    weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
    return sum(_mix(weights, v64.transpose(1, 2), seen)).transpose(1, 2).to(q.dtype)


def attention_torch(
    q: Tensor, k: Tensor, v: Tensor, causal: bool = True, window: int | None = None
) -> Tensor:
    """PyTorch's scaled_dot_product_attention: exact, and without a score matrix where it can be.

    A mask of c times t booleans is built for a window that is not causal and, but for half
    precision on a GPU, for a part of a causal sequence (1 < c < t); all else is linear in t.
    """
    _check_heads(q, k, v, window)
    c, t = q.shape[1], k.shape[1]
    if causal and window is not None and c + window - 1 < t:
        t = c + window - 1  # nobody sees further back
        k, v = k[:, -t:], v[:, -t:]
    if window is not None and window >= t:
        window = None
    if window is not None and causal and t > 2 * max(window, SMALLEST_BLOCK):
        return _in_blocks(q, k, v, window)
    if window is None and (not causal or c in (1, t)):
        return _sdpa(q, k, v, causal=True) if causal and c > 1 else _sdpa(q, k, v)
    if window is None and q.is_cuda and q.dtype in HALF:
        from torch.nn.attention.bias import causal_lower_right  # torch compiles: imports triton

        return _sdpa(q, k, v, mask=causal_lower_right(c, t))
    return _sdpa(q, k, v, mask=visible(c, t, causal, window, q.device))


def attention_tiled(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = True,
    window: int | None = None,
    block: int = 128,
) -> Tensor:
    """Exact attention holding block times block scores per head: the online softmax.

    Same arguments and result as `attention`; half precision is accumulated in float32. It shows the
    algorithm, in loops that a fused kernel would run on chip; autograd keeps every tile it passes.
    Milakov and Gimelshein 2018, Rabe and Staats 2021, Dao et al. 2022.
    """
    _check_heads(q, k, v, window)
    check_number(low=1, whole=True, block=block)
    groups, start = k.shape[2], k.shape[1] - q.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)
    rows = rearrange(q.to(wide), "b c (g r) k -> b g r c k", g=groups) / math.sqrt(q.shape[-1])
    keys, values = (rearrange(x.to(wide), "b t g k -> b g 1 t k") for x in (k, v))
    tiles = [
        _attend_rows(tile, keys, values, start + i * block, causal, window, block)
        for i, tile in enumerate(rows.split(block, dim=3))
    ]
    return rearrange(torch.cat(tiles, dim=3), "b g r c v -> b c (g r) v").to(q.dtype)


def _attend_rows(
    q: Tensor, k: Tensor, v: Tensor, first: int, causal: bool, window: int | None, block: int
) -> Tensor:
    """One tile of queries, the first at position `first`, over all tiles of keys that it sees."""
    last, t = first + q.shape[-2] - 1, k.shape[-2]
    low = 0 if window is None else max(0, first - window + 1)
    high = last + 1 if causal else t if window is None else min(t, last + window)
    i = torch.arange(first, last + 1, device=q.device)
    top = q.new_full((*q.shape[:-1], 1), torch.finfo(q.dtype).min)  # finite: -inf - -inf is NaN
    total, mixed, nan = torch.zeros_like(top), q.new_zeros(*q.shape[:-1], v.shape[-1]), 0
    for start in range(low, high, block):
        stop = min(start + block, high)
        seen = _sees(i, torch.arange(start, stop, device=q.device), causal, window)
        scores = (q @ k[..., start:stop, :].mT).masked_fill(~seen, -math.inf)
        higher = torch.maximum(top, scores.detach().amax(-1, keepdim=True))  # cancels: no gradient
        shrink, weights = torch.exp(top - higher), torch.exp(scores - higher)
        total = shrink * total + weights.sum(-1, keepdim=True)
        gain, spoiled = _mix(weights, v[..., start:stop, :], seen)
        mixed, nan, top = shrink * mixed + gain, nan + spoiled, higher
    return mixed / total + nan


def _mix(weights: Tensor, v: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """weights @ v of the finite values (0 * NaN is NaN), and NaN for the rows that see others."""
    lost = ~v.isfinite()
    spoiled = seen.to(v.dtype) @ lost.to(v.dtype) > 0
    return weights @ v.masked_fill(lost, 0), v.new_zeros(()).masked_fill(spoiled, math.nan)


def visible(
    c: int,
    t: int,
    causal: bool = True,
    window: int | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Which of t keys each of the last c positions sees: booleans, (c, t).

    Raises ValueError unless 1 <= c <= t, and for a window below 1.
    """
    check_number(low=1, whole=True, t=t)
    check_number(low=1, high=t, whole=True, c=c)
    check_window(window)
    j = torch.arange(t, device=device)
    return _sees(j[t - c :], j, causal, window)


def _sees(i: Tensor, j: Tensor, causal: bool, window: int | None) -> Tensor:
    ahead = j - i[:, None]
    seen = ahead <= 0 if causal else torch.ones_like(ahead, dtype=torch.bool)
    return seen if window is None else seen & (ahead.abs() < window)


def _in_blocks(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """A causal window: each block of queries sees its own block of keys and the one before."""
    c, t = q.shape[1], k.shape[1]
    block = max(window, SMALLEST_BLOCK)
    q = F.pad(q, (0, 0, 0, 0, t - c, 0))  # queries that nobody asked for, dropped again below
    first = attention_torch(q[:, :block], k[:, :block], v[:, :block], True, window)
    q, k, v = (F.pad(x, (0, 0, 0, 0, 0, -t % block)) for x in (q, k, v))  # the future: unseen
    q, k, v = (x.unflatten(1, (-1, block)) for x in (q, k, v))
    k, v = (torch.cat([x[:, :-1], x[:, 1:]], dim=2).flatten(0, 1) for x in (k, v))
    seen = visible(block, 2 * block, True, window, q.device)
    rest = _sdpa(q[:, 1:].flatten(0, 1), k, v, mask=seen)
    rest = rest.unflatten(0, (q.shape[0], -1)).flatten(1, 2)
    return torch.cat([first, rest], dim=1)[:, t - c : t]


def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    if q.is_cuda and (type(mask) is Tensor or q.dtype not in HALF):
        # the kernels for masks and float32 do not share heads: they would fall back to all scores
        k, v = match_heads(q, k, v)
    options = {"enable_gqa": True} if k.shape[2] != q.shape[2] else {}
    own, width = v.shape[-1], max(q.shape[-1], v.shape[-1])
    if q.shape[-1] != own:  # PyTorch's kernels without a score matrix take a single width
        options["scale"] = q.shape[-1] ** -0.5
        q, k, v = (F.pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, **options)
    return y.transpose(1, 2)[..., :own]


def match_heads(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    r = q.shape[2] // k.shape[2]
    return tuple(repeat(x, "b t g k -> b t (g r) k", r=r) if r > 1 else x for x in (k, v))


def _check_heads(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> None:
    check(q=(q, "b c h k"), k=(k, "b t g k"), v=(v, "b t g v"))
    check_dtypes(q=q, k=k, v=v)
    (c, h), (t, g) = q.shape[1:3], k.shape[1:3]
    if h % g:
        raise ValueError(f"q: expected h a multiple of g={g} (from k), got h={h}")
    if c > t:
        raise ValueError(f"q: expected at most t={t} queries (from k), got {c}")
    check_window(window)


def check_window(window: int | None) -> None:
    if window is not None:
        check_number(low=1, whole=True, window=window)


def check_dtypes(**named: Tensor) -> None:
    check_floating(**named)
    first, dtype = next((name, x.dtype) for name, x in named.items())
    for name, x in named.items():
        if x.dtype != dtype:
            raise ValueError(f"{name}: expected dtype {dtype} (from {first}), got dtype {x.dtype}")


BACKENDS = {"reference": attention_reference, "torch": attention_torch, "tiled": attention_tiled}
