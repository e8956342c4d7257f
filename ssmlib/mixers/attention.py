r"""Multi-head attention as a layer: causal, rotary, its key and value heads shared by groups.

    y = o_proj(attend(rotate(q_proj(x)), rotate(k_proj(x)), v_proj(x)))

The state is the cache of keys and values: the one in this library that grows with every token,
until `window` stops it. Parameters are called as in transformers' Llama.
"""

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn

from ssmlib.attention import (
    KVCache,
    RingCache,
    RopeScaling,
    attend_cached,
    attend_ring_,
    rotary_rates,
    rotate,
    to_ring,
)
from ssmlib.layers import RMSNorm
from ssmlib.layers.rows import product, project
from ssmlib.shapes import check, check_number


@dataclass(frozen=True)
class AttentionConfig:
    """heads of head_dim features (None: d_model / heads); kv_heads divide them (None: as many).

    window: tokens seen, oneself included; None for all. base: of the rotary embedding; None for
    none, so that only the causal mask tells positions apart. rotated: the share of a head's
    features that turn. scaling: slower turns, see `RopeScaling`. max_length: positions that the
    embedding is good for; longer sequences are refused; None for any. bias, out_bias: of the
    projections to q, k and v; of the one back. scale: of q · k, None for 1 / sqrt(head_dim).
    """

    heads: int = 8
    kv_heads: int | None = None
    window: int | None = None
    base: float | None = 10000.0
    head_dim: int | None = None
    rotated: float = 1.0
    scaling: RopeScaling | None = None
    max_length: int | None = None
    bias: bool = False
    out_bias: bool = False
    scale: float | None = None

    def build(self, d_model: int) -> "Attention":
        return Attention(d_model, self)


class Attention(nn.Module):
    """x (b t d) and the cache of what came before, or None, to y (b t d) and the longer cache.

    d_out: features of y, where they are not those of x. Raises ValueError for sizes that do not
    fit, and for a sequence that is longer than max_length.
    """

    def __init__(self, d: int, config: AttentionConfig, d_out: int | None = None):
        super().__init__()
        c = config
        kv_heads, size = _check_sizes(d, c)
        self.config, self.head_dim = config, size
        self.q_proj = nn.Linear(d, c.heads * size, bias=c.bias)
        self.k_proj = nn.Linear(d, kv_heads * size, bias=c.bias)
        self.v_proj = nn.Linear(d, kv_heads * size, bias=c.bias)
        self.o_proj = nn.Linear(c.heads * size, d if d_out is None else d_out, bias=c.out_bias)

    def forward(self, x: Tensor, state: KVCache | None = None) -> tuple[Tensor, KVCache]:
        check(x=(x, f"b t {self.q_proj.in_features}"))
        q, k, v = (product(x, p) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self.attend(q, k, v, state)

    def hold(self, state: KVCache, room: int) -> RingCache:
        """The cache as a place for `step_`, with room for so many more tokens, or the window's."""
        rates = None if self.config.base is None else self.rates(state.k.device)
        return to_ring(state, room, self.config.window, rates)

    def step_(self, x: Tensor, state: RingCache) -> Tensor:
        """One token x (b 1 d) to y, with its key and value written over `state`.

        max_length is not looked at, as positions may be on a GPU.
        """
        check(x=(x, f"b 1 {self.q_proj.in_features}"))
        return self.attend_(self.q_proj(x), self.k_proj(x), self.v_proj(x), state)

    def step_past_(self, x: Tensor, state: RingCache, norm: RMSNorm) -> Tensor:
        """x + step_(norm(x)), see `ssmlib.layers.rows`; x has as many features as y."""
        past = x[:, 0]
        made = (project(past, p, norm) for p in (self.q_proj, self.k_proj, self.v_proj))
        return project(self._mix_(*made, state), self.o_proj, past=past)[:, None]

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, state: KVCache | None
    ) -> tuple[Tensor, KVCache]:
        """From what the projections made, (b t h*k) and (b t g*k), to y and the longer cache."""
        c, start, t = self.config, 0 if state is None else state.position, q.shape[1]
        _check_length(start + t, c.max_length)
        q, k, v = (p.unflatten(2, (-1, self.head_dim)) for p in (q, k, v))
        if c.base is not None:
            positions, rates = torch.arange(start, start + t, device=q.device), self.rates(q.device)
            q, k = rotate(q, positions, rates=rates), rotate(k, positions, rates=rates)
        if c.scale is not None:
            q = q * (c.scale * sqrt(self.head_dim))
        y, state = attend_cached(q, k, v, state, c.window)
        return product(y.flatten(2), self.o_proj), state

    def attend_(self, q: Tensor, k: Tensor, v: Tensor, state: RingCache) -> Tensor:
        """The same for one token of each row, with the cache written over; returns y."""
        return self.o_proj(self._mix_(q[:, 0], k[:, 0], v[:, 0], state))[:, None]

    def _mix_(self, q: Tensor, k: Tensor, v: Tensor, state: RingCache) -> Tensor:
        """What the heads read, (b h*v), of q (b h*k), k (b g*k) and v (b g*v)."""
        heads = (p.unflatten(1, (-1, self.head_dim)) for p in (q, k, v))
        return attend_ring_(*heads, state, self.config.window, self.config.scale).flatten(1)

    def rates(self, device: torch.device) -> Tensor:
        """How far each pair of a head's features turns from one position to the next."""
        c = self.config
        return rotary_rates(int(self.head_dim * c.rotated), c.base, c.scaling, device)


def _check_sizes(d: int, c: AttentionConfig) -> tuple[int, int]:
    """The key and value heads, and the features of a head."""
    kv_heads = c.heads if c.kv_heads is None else c.kv_heads
    check_number(low=1, whole=True, heads=c.heads, kv_heads=kv_heads)
    for name in ("window", "head_dim", "max_length"):
        if getattr(c, name) is not None:
            check_number(low=1, whole=True, **{name: getattr(c, name)})
    if c.head_dim is None and d % c.heads:
        raise ValueError(f"heads: expected a divisor of d_model={d}, got {c.heads}")
    if c.heads % kv_heads:
        raise ValueError(f"kv_heads: expected a divisor of heads={c.heads}, got {kv_heads}")
    size = d // c.heads if c.head_dim is None else c.head_dim
    if c.base is not None:
        check_number(low=1e-9, high=1, rotated=c.rotated)
        if int(size * c.rotated) % 2 or not int(size * c.rotated):
            told = "an even number of rotated features in a head"
            raise ValueError(f"rotated: expected {told}, got {int(size * c.rotated)} of {size}")
        rotary_rates(2, c.base, c.scaling)  # refuses what it could not turn by
    if c.scale is not None:
        check_number(low=1e-9, scale=c.scale)
    return kv_heads, size


def _check_length(t: int, max_length: int | None) -> None:
    if max_length is not None and t > max_length:
        told = f"at most max_length={max_length} tokens with those before"
        raise ValueError(f"x: expected {told}, got {t}")
