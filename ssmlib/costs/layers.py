"""What each layer of a `ModelConfig` weighs, keeps and does, from its numbers alone.

LAYERS has one entry for each kind of config, by the name of its class, so that nothing here has to
import the layers themselves. Its functions take the config c and d, the features of the model:

    weights(c, d)       -> Weights: all, and those that one token meets
    kept(c, d, length)  -> Kept: numbers of a cache, of a convolution's inputs, of a float32 state
    work(c, d, shape)   -> Cost of one layer over shape.length tokens after shape.past others
"""

from typing import Any

from ssmlib.costs.cost import Cost
from ssmlib.costs.invariant import h3_kept, h3_weights, s4_kept, s4_weights, uncounted
from ssmlib.costs.parts import Kept, Layer, Shape, Weights, linear
from ssmlib.costs.tables import dtype_bytes
from ssmlib.costs.work import (
    attention_layer_cost,
    linear_cost,
    mlp_cost,
    ssm_cost,
)

SSD_FLOPS = 5  # per token, channel and state number: a h, (dt x) B, +, and two for C h
RGLRU_FLOPS = 2  # per token and channel: a h, +


def heads(c: Any, d: int) -> tuple[int, int]:
    """The features of all query heads, and of all key heads, of an attention."""
    size = d // c.heads if c.head_dim is None else c.head_dim
    return c.heads * size, (c.heads if c.kv_heads is None else c.kv_heads) * size


def attention_weights(c: Any, d: int, d_out: int | None = None) -> Weights:
    q, kv = heads(c, d)
    n = linear(d, q + 2 * kv, c.bias) + linear(q, d if d_out is None else d_out, c.out_bias)
    return Weights(n, n)


def attention_kept(c: Any, d: int, length: int) -> Kept:
    seen = length if c.window is None else min(length, c.window)
    return Kept(cache=2 * seen * heads(c, d)[1])


def attention_work(c: Any, d: int, s: Shape, d_out: int | None = None) -> Cost:
    q, kv = heads(c, d)
    sizes = {"kv_heads": c.heads * kv // q, "head_dim": q // c.heads, "window": c.window}
    given = {"batch": s.batch, "past": s.past, "dtype": s.dtype}
    whole = attention_layer_cost(s.length, d, c.heads, **sizes, **given)
    if d_out in (None, d):
        return whole
    wide, narrow = (linear_cost(s.tokens, q, out, s.dtype) for out in (d, d_out))
    return Cost(whole.flops - wide.flops + narrow.flops, whole.bytes - wide.bytes + narrow.bytes)


def width(c: Any, d: int) -> int:
    """An MLP's hidden features; see `ssmlib.layers.mlp.usual_width`."""
    if c.hidden is not None:
        return c.hidden
    return -(-8 * d // 192) * 64 if getattr(c, "gated", True) else 4 * d


def mlp_weights(c: Any, d: int) -> Weights:
    hidden = width(c, d)
    n = (1 + c.gated) * linear(d, hidden, c.bias) + linear(hidden, d, c.bias)
    return Weights(n, n)


def mlp_work(c: Any, d: int, s: Shape) -> Cost:
    return mlp_cost(s.length, d, width(c, d), gated=c.gated, batch=s.batch, dtype=s.dtype)


def moe_weights(c: Any, d: int) -> Weights:
    router, expert = linear(d, c.experts), 3 * d * width(c, d)
    return Weights(router + c.experts * expert, router + c.active * expert)


def moe_work(c: Any, d: int, s: Shape) -> Cost:
    """As many different experts are visited as can be; see `model_cost`."""
    visits, hidden = s.tokens * c.active, width(c, d)
    spread = (s.dtype, min(c.experts, visits))
    experts = linear_cost(visits, d, 2 * hidden, *spread) + linear_cost(visits, hidden, d, *spread)
    return linear_cost(s.tokens, d, c.experts, s.dtype) + experts


def nothing(c: Any, d: int, length: int) -> Kept:
    return Kept()


def mamba_sizes(c: Any, d: int) -> tuple[int, int, int]:
    """Channels, dt's rank, and what x_proj makes of a token."""
    rank = -(-d // 16) if c.dt_rank is None else c.dt_rank
    sizes = {"dt": rank, "B": c.state_size, "C": c.state_size}
    return c.expand * d, rank, sum(sizes[name] for name in c.selective)


def mamba_weights(c: Any, d: int) -> Weights:
    e, rank, made = mamba_sizes(c, d)
    n = linear(d, (1 + c.gated) * e, c.bias) + linear(e, d, c.bias) + e * made
    n += 0 if c.conv_width is None else e * (c.conv_width + c.conv_bias)
    n += e + (rank * e if "dt" in c.selective else 0)  # dt's bias, and its matrix
    n += c.state_size * sum(name not in c.selective for name in "BC")
    n += e * c.state_size + e  # A and D
    n += made if c.norms == "learned" else 0
    return Weights(n, n)


def mamba_kept(c: Any, d: int, length: int) -> Kept:
    e = c.expand * d
    return Kept(conv=0 if c.conv_width is None else e * (c.conv_width - 1), state=e * c.state_size)


def mamba_work(c: Any, d: int, s: Shape) -> Cost:
    e, rank, made = mamba_sizes(c, d)
    parts = [
        linear_cost(s.tokens, d, (1 + c.gated) * e, s.dtype),
        ssm_cost(s.length, e, c.state_size, batch=s.batch, dtype=s.dtype),
        linear_cost(s.tokens, e, d, s.dtype),
    ]
    if c.conv_width is not None:
        parts.append(conv_work(e, c.conv_width, s))
    if made:
        parts.append(linear_cost(s.tokens, e, made, s.dtype))
    if "dt" in c.selective:
        parts.append(linear_cost(s.tokens, rank, e, s.dtype))
    return sum(parts, Cost())


def conv_work(channels: int, taps: int, s: Shape) -> Cost:
    """2 FLOPs a tap; inputs, outputs, weights and the last inputs, all of one dtype, move once."""
    last = 2 * s.batch * channels * (taps - 1)
    moved = 2 * s.tokens * channels + channels * (taps + 1) + last
    return Cost(2 * taps * s.tokens * channels, dtype_bytes(moved, s.dtype))


def mamba2_sizes(c: Any, d: int) -> tuple[int, int, int]:
    """Channels, heads, and what is convolved."""
    e = c.expand * d
    return e, e // c.head_dim, e + 2 * c.groups * c.state_size


def mamba2_weights(c: Any, d: int) -> Weights:
    e, h, mixed = mamba2_sizes(c, d)
    n = (
        linear(d, e + mixed + h, c.bias)
        + linear(e, d, c.bias)
        + mixed * (c.conv_width + c.conv_bias)
    )
    n += 2 * h + (e if c.wide_skip else h) + e  # dt's bias and A, D, the norm
    return Weights(n, n)


def mamba2_kept(c: Any, d: int, length: int) -> Kept:
    e, _, mixed = mamba2_sizes(c, d)
    return Kept(conv=mixed * (c.conv_width - 1), state=e * c.state_size)


def mamba2_work(c: Any, d: int, s: Shape) -> Cost:
    """SSD is counted as its recurrence, which is the least work; chunks multiply more, but faster.

    Bytes: x, z, B, C, dt in and y out, per token; the float32 state read and written once.
    """
    e, h, mixed = mamba2_sizes(c, d)
    moved = dtype_bytes(s.tokens * (e + mixed + e + h), s.dtype)
    state = dtype_bytes(2 * s.batch * e * c.state_size, "float32")
    return sum(
        [
            linear_cost(s.tokens, d, e + mixed + h, s.dtype),
            conv_work(mixed, c.conv_width, s),
            Cost(SSD_FLOPS * s.tokens * e * c.state_size, moved + state),
            linear_cost(s.tokens, e, d, s.dtype),
        ],
        Cost(),
    )


def rglru_weights(c: Any, d: int) -> Weights:
    e = d if c.width is None else c.width
    gates = 2 * (e * (e // c.heads) + e) + e
    n = 2 * linear(d, e, True) + e * (c.conv_width + 1) + gates + linear(e, d, True)
    return Weights(n, n)


def rglru_kept(c: Any, d: int, length: int) -> Kept:
    e = d if c.width is None else c.width
    return Kept(conv=e * (c.conv_width - 1), state=e)


def rglru_work(c: Any, d: int, s: Shape) -> Cost:
    """The gates are products with blocks; the scan reads a and x and writes h, in float32."""
    e = d if c.width is None else c.width
    block = linear_cost(s.tokens, e // c.heads, e // c.heads, s.dtype)
    scan = dtype_bytes(3 * s.tokens * e + 2 * s.batch * e, "float32")
    parts = [linear_cost(s.tokens, d, e, s.dtype)] * 2 + [block] * (2 * c.heads)
    parts += [conv_work(e, c.conv_width, s), Cost(RGLRU_FLOPS * s.tokens * e, scan)]
    return sum(parts, linear_cost(s.tokens, e, d, s.dtype))


def linear_attention_sizes(c: Any, d: int) -> tuple[int, int]:
    """Features of all heads before the feature map, and numbers of state."""
    f = c.features
    n = 1 + f + f * (f + 1) // 2 if c.feature_map == "taylor" else f
    return c.heads * f, c.heads * n * (d // c.heads + 1)


def linear_attention_weights(c: Any, d: int) -> Weights:
    n = 2 * linear(d, c.heads * c.features) + 2 * linear(d, d)
    return Weights(n, n)


def linear_attention_kept(c: Any, d: int, length: int) -> Kept:
    return Kept(state=linear_attention_sizes(c, d)[1])


def linear_attention_work(c: Any, d: int, s: Shape) -> Cost:
    """The sums are counted as SSD is; making the features is not."""
    wide, state = linear_attention_sizes(c, d)
    moved = dtype_bytes(s.tokens * (2 * wide + 2 * d), s.dtype)
    sums = Cost(SSD_FLOPS * s.tokens * state, moved + dtype_bytes(2 * s.batch * state, "float32"))
    maps = [linear_cost(s.tokens, d, n, s.dtype) for n in (wide, wide, d, d)]
    return sum(maps, sums)


LAYERS: dict[str, Layer] = {
    "AttentionConfig": Layer(attention_weights, attention_kept, attention_work),
    "MLPConfig": Layer(mlp_weights, nothing, mlp_work),
    "MoEConfig": Layer(moe_weights, nothing, moe_work),
    "MambaConfig": Layer(mamba_weights, mamba_kept, mamba_work),
    "Mamba2Config": Layer(mamba2_weights, mamba2_kept, mamba2_work),
    "RGLRUConfig": Layer(rglru_weights, rglru_kept, rglru_work),
    "LinearAttentionConfig": Layer(
        linear_attention_weights, linear_attention_kept, linear_attention_work
    ),
    "S4Config": Layer(s4_weights, s4_kept, uncounted),
    "S4DConfig": Layer(s4_weights, s4_kept, uncounted),
    "H3Config": Layer(h3_weights, h3_kept, uncounted),
}


def layer_of(config: Any) -> Layer:
    """The entry of LAYERS for a config, or a ValueError that names those there are."""
    name = type(config).__name__
    if name not in LAYERS:
        raise ValueError(f"legend: expected configs of {', '.join(LAYERS)}, got {name}")
    return LAYERS[name]
