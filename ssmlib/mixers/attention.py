r"""Multi-head attention as a layer: causal, rotary, its key and value heads shared by groups.

    y = o_proj(attend(rotate(q_proj(x)), rotate(k_proj(x)), v_proj(x)))

The state is the cache of keys and values: the one in this library that grows with every token,
until `window` stops it. Parameters are called as in transformers' Llama.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssmlib.attention import KVCache, attend_cached, rotate
from ssmlib.shapes import check, check_number


@dataclass(frozen=True)
class AttentionConfig:
    """heads divide d_model; kv_heads, None for as many, divide heads.

    window: tokens seen, oneself included; None for all. base: of the rotary embedding; None for
    none, so that only the causal mask tells positions apart.
    """

    heads: int = 8
    kv_heads: int | None = None
    window: int | None = None
    base: float | None = 10000.0

    def build(self, d_model: int) -> "Attention":
        return Attention(d_model, self)


class Attention(nn.Module):
    """x (b t d) and the cache of what came before, or None, to y (b t d) and the longer cache."""

    def __init__(self, d: int, config: AttentionConfig):
        super().__init__()
        heads = config.heads
        kv_heads = heads if config.kv_heads is None else config.kv_heads
        check_number(low=1, whole=True, heads=heads, kv_heads=kv_heads)
        if config.window is not None:
            check_number(low=1, whole=True, window=config.window)
        if d % heads:
            raise ValueError(f"heads: expected a divisor of d_model={d}, got {heads}")
        if heads % kv_heads:
            raise ValueError(f"kv_heads: expected a divisor of heads={heads}, got {kv_heads}")
        if config.base is not None and d // heads % 2:
            raise ValueError(f"heads: expected an even d_model / heads to rotate, got {d // heads}")
        self.shape, self.window, self.base = (-1, d // heads), config.window, config.base
        self.q_proj = nn.Linear(d, d, bias=False)
        self.k_proj = nn.Linear(d, d // heads * kv_heads, bias=False)
        self.v_proj = nn.Linear(d, d // heads * kv_heads, bias=False)
        self.o_proj = nn.Linear(d, d, bias=False)

    def forward(self, x: Tensor, state: KVCache | None = None) -> tuple[Tensor, KVCache]:
        check(x=(x, f"b t {self.q_proj.in_features}"))
        q, k, v = (f(x).unflatten(2, self.shape) for f in (self.q_proj, self.k_proj, self.v_proj))
        if self.base is not None:
            start = 0 if state is None else state.position
            positions = torch.arange(start, start + x.shape[1], device=x.device)
            q, k = rotate(q, positions, self.base), rotate(k, positions, self.base)
        y, state = attend_cached(q, k, v, state, self.window)
        return self.o_proj(y.flatten(2)), state
