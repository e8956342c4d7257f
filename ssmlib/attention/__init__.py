r"""Softmax attention $y_i = \sum_j \mathrm{softmax}_j(q_i \cdot k_j / \sqrt{k})\, v_j$, three ways.

- `softmax`: `attention`, its definition, PyTorch's fused kernels, and the online softmax.
- `cache`: `attend_cached`, the same attention with a memory of past keys and values.
- `ring`: `attend_ring_`, one token with a cache of constant memory that is written over.
- `rotary`: `rotate` tells positions apart (RoPE).
"""

from ssmlib.attention.cache import KVCache, attend_cached
from ssmlib.attention.ring import RingCache, attend_ring_, attend_slots, to_ring
from ssmlib.attention.rotary import RopeScaling, rotary_rates, rotate
from ssmlib.attention.softmax import (
    BACKENDS,
    attention,
    attention_reference,
    attention_tiled,
    attention_torch,
    visible,
)

__all__ = [
    "BACKENDS",
    "KVCache",
    "RingCache",
    "RopeScaling",
    "attend_cached",
    "attend_ring_",
    "attend_slots",
    "attention",
    "attention_reference",
    "attention_tiled",
    "attention_torch",
    "rotary_rates",
    "rotate",
    "to_ring",
    "visible",
]
