"""The same counts for a `ModelConfig`: any pattern, whatever its legend says, places that share.

`count_parameters`, `count_kept` and `count_work` read a config's fields, and build nothing. What
they count is what the built model has, which the tests see to.
"""

from dataclasses import dataclass
from typing import Any

from ssmlib.costs.checks import whole
from ssmlib.costs.cost import Cost
from ssmlib.costs.layers import (
    attention_kept,
    attention_weights,
    attention_work,
    heads,
    layer_of,
    mlp_weights,
    mlp_work,
    width,
)
from ssmlib.costs.parts import Kept, Shape, Weights
from ssmlib.costs.tables import dtype_bytes
from ssmlib.costs.work import linear_cost


def count_parameters(config: Any, active: bool = False) -> int:
    """Every weight of a model, shared ones once; active=True: those that one token meets.

    Raises ValueError, as the others do, for a legend with layers that `ssmlib.costs.layers` lacks.
    """
    d, norms = config.d_model, 2 if config.norm.place == "both" else 1
    total = Weights(d, d)  # the last norm
    for glyph in config.legend:
        total += _weights(config.legend[glyph], d, config.pattern.count(glyph), norms)
    embeddings = (1 if config.tied else 2) * config.vocab_size * d
    return embeddings + (total.active if active else total.total)


def count_kept(
    config: Any, length: int, batch: int = 1, dtype: str = "bfloat16", state_dtype: str = "float32"
) -> Kept:
    """Bytes that a model keeps after `length` tokens, as its states hold them.

    dtype: of keys and values and of convolutions' inputs; state_dtype: of recurrent states.
    """
    whole(batch=batch)
    whole(low=0, length=length)
    numbers = Kept()
    for glyph in config.pattern:
        numbers += _kept(config.legend[glyph], config.d_model, length)
    widths = (dtype, dtype, state_dtype)
    kept = (dtype_bytes(batch * n, w) for n, w in zip(numbers, widths, strict=True))
    return Kept(*kept)


def count_work(
    config: Any, length: int, *, batch: int = 1, past: int = 0, dtype: str = "bfloat16"
) -> Cost:
    """One forward pass over `length` tokens after `past` others; see `model_cost`.

    Shared weights are read at each of their places, and counted as often.
    """
    whole(length=length, batch=batch)
    whole(low=0, past=past)
    s, d = Shape(length, batch, past, dtype), config.d_model
    embed = Cost(0, dtype_bytes(2 * s.tokens * d, dtype))
    total = embed + linear_cost(s.tokens, d, config.vocab_size, dtype)
    for glyph in config.legend:
        total += config.pattern.count(glyph) * _work(config.legend[glyph], d, s)
    return total


def _weights(c: Any, d: int, count: int, norms: int) -> Weights:
    kind, norm = type(c).__name__, Weights(norms * d, norms * d)
    if kind == "SharedConfig":
        return layer_of(c.mixer).weights(c.mixer, d) + norm
    if kind == "ZambaConfig":
        block = attention_weights(c.attention, 2 * d, d) + mlp_weights(c.mlp, d)
        shared = block + Weights(3 * d, 3 * d)  # norms of [x, x0] and before the MLP
        own = layer_of(c.mixer).weights(c.mixer, d) + Weights(d + d * d, d + d * d)
        n = sum(a.inputs * a.rank + a.rank * a.outputs for a in _adapters(c, d))
        return shared * min(count, c.blocks) + (own + Weights(n, n)) * count
    return (layer_of(c).weights(c, d) + norm) * count


def _kept(c: Any, d: int, length: int) -> Kept:
    kind = type(c).__name__
    if kind == "SharedConfig":
        return layer_of(c.mixer).kept(c.mixer, d, length)
    if kind == "ZambaConfig":
        own = layer_of(c.mixer).kept(c.mixer, d, length)
        return own + attention_kept(c.attention, 2 * d, length)
    return layer_of(c).kept(c, d, length)


def _work(c: Any, d: int, s: Shape) -> Cost:
    kind = type(c).__name__
    if kind == "SharedConfig":
        return layer_of(c.mixer).work(c.mixer, d, s)
    if kind == "ZambaConfig":
        block = attention_work(c.attention, 2 * d, s, d) + mlp_work(c.mlp, d, s)
        thin = (
            linear_cost(s.tokens, *ends, s.dtype)
            for a in _adapters(c, d)
            for ends in ((a.inputs, a.rank), (a.rank, a.outputs))
        )
        own = layer_of(c.mixer).work(c.mixer, d, s) + linear_cost(s.tokens, d, d, s.dtype)
        return sum(thin, own + block)
    return layer_of(c).work(c, d, s)


@dataclass(frozen=True)
class _Adapter:
    """Two thin matrices, inputs to rank to outputs."""

    inputs: int
    rank: int
    outputs: int


def _adapters(c: Any, d: int) -> list[_Adapter]:
    """What a layer of Zamba2 adds to the shared block's first matrices."""
    if c.adapter_rank is None:
        return []
    made = [_Adapter(d, c.adapter_rank, 2 * width(c.mlp, d))]
    if c.attention_adapters:
        q, kv = heads(c.attention, 2 * d)
        made += [_Adapter(2 * d, c.adapter_rank, n) for n in (q, kv, kv)]
    return made
