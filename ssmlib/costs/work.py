"""FLOPs and bytes moved, layer by layer and for whole models.

Bytes moved are the floor of each operation taken alone: every input, weight and state is read once,
every output written once, nothing stays on chip in between. FLOPs are those of matrix products,
convolutions and scans. Softmax, norms, activations, rotations and residual sums are taken as fused
into their neighbours: neither their few FLOPs per element nor their bytes are counted. One dtype is
that of weights, activations and caches; Mamba's states are float32.
"""

from collections.abc import Callable

from ssmlib.costs.checks import divides, whole
from ssmlib.costs.cost import Cost
from ssmlib.costs.memory import scores_bytes
from ssmlib.costs.tables import ModelShape, dtype_bytes, find_model

SCAN_FLOPS = 9  # per token, channel and state number; `ssm_cost` says where it comes from
TRAINING = 3  # TRAINING * forward: the backward pass multiplies twice for each multiplication


def linear_cost(
    rows: int, inputs: int, outputs: int, dtype: str = "bfloat16", matrices: int = 1
) -> Cost:
    """One linear map of `rows` vectors, without bias: 2 * rows * inputs * outputs FLOPs.

    matrices: how many weight matrices the rows are spread over, each read once (experts).
    """
    whole(rows=rows, inputs=inputs, outputs=outputs, matrices=matrices)
    moved = rows * inputs + matrices * inputs * outputs + rows * outputs
    return Cost(2 * rows * inputs * outputs, dtype_bytes(moved, dtype))


def pairs(length: int, past: int = 0, causal: bool = True, window: int | None = None) -> int:
    """How many (query, key) pairs see each other, of `length` queries after `past` earlier tokens.

    Causal, a query sees itself and what came before it: exactly n (n + 1) / 2 pairs for n tokens
    from the start. With a window it sees itself and the window - 1 tokens before it. Not causal,
    every query sees every key.
    """
    whole(length=length, window=window)
    whole(low=0, past=past)
    if not causal:
        if window is not None:
            raise ValueError(f"window: expected None when causal=False, got {window}")
        return length * (past + length)
    growing = length if window is None else min(max(window - past, 0), length)
    full = length - growing  # queries that see a whole window
    return growing * past + growing * (growing + 1) // 2 + full * (window or 0)


def attention_cost(
    length: int,
    heads: int,
    head_dim: int,
    *,
    kv_heads: int | None = None,
    batch: int = 1,
    past: int = 0,
    causal: bool = True,
    window: int | None = None,
    materialized: bool = False,
    dtype: str = "bfloat16",
) -> Cost:
    """Attention's core, Q Kᵀ and the product with V; no projections, no softmax.

    `length` new tokens after `past` cached ones: past=0 is a prefill, length=1 a decoding step.
    FLOPs: 4 * head_dim for each visible pair (`pairs`) and head. Softmax would add a few per pair.
    Bytes: Q, K, V in and Y out, once; kv_heads (default: heads) of K and V, of each token that some
    query sees. This is the floor of tiled attention, which may read K and V once per tile instead.
    materialized: scores go through memory. All of them are computed, masked ones too, and their
    matrix moves four times: written, read and rewritten by softmax, read for the product with V.
    """
    kv_heads = heads if kv_heads is None else kv_heads
    whole(heads=heads, head_dim=head_dim, kv_heads=kv_heads, batch=batch)
    divides("kv_heads", "heads", kv_heads=kv_heads, heads=heads)
    seen = pairs(length, past, causal, window)
    keys = length + (past if window is None else min(past, window - 1))
    moved = 2 * batch * head_dim * (length * heads + keys * kv_heads)
    scores = 0
    if materialized:
        seen = length * keys
        scores = 4 * scores_bytes(length, heads, 1, batch, keys - length, dtype)
    return Cost(4 * batch * heads * head_dim * seen, dtype_bytes(moved, dtype) + scores)


def attention_layer_cost(
    length: int,
    d_model: int,
    heads: int,
    *,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    batch: int = 1,
    past: int = 0,
    causal: bool = True,
    window: int | None = None,
    materialized: bool = False,
    dtype: str = "bfloat16",
) -> Cost:
    """A whole attention layer: one projection to Q, K and V, `attention_cost`, one back to d_model.

    head_dim defaults to d_model / heads. Writing the new keys and values to the cache is the first
    projection's output, and is counted there.
    """
    whole(length=length, d_model=d_model, heads=heads, batch=batch)
    if head_dim is None:
        divides("heads", "d_model", heads=heads, d_model=d_model)
        head_dim = d_model // heads
    seen = {"past": past, "causal": causal, "window": window, "materialized": materialized}
    kept = {"kv_heads": kv_heads, "batch": batch, "dtype": dtype}
    core = attention_cost(length, heads, head_dim, **seen, **kept)
    q, kv = heads * head_dim, (kv_heads or heads) * head_dim
    project = linear_cost(batch * length, d_model, q + 2 * kv, dtype)
    return project + core + linear_cost(batch * length, q, d_model, dtype)


def mlp_cost(
    length: int,
    d_model: int,
    hidden: int,
    *,
    gated: bool = True,
    batch: int = 1,
    dtype: str = "bfloat16",
) -> Cost:
    """An MLP, d_model to hidden and back; gated (SwiGLU), the first map is twice as wide."""
    whole(length=length, d_model=d_model, hidden=hidden, batch=batch)
    return _mlp(batch * length, d_model, hidden, gated, dtype)


def _mlp(rows: int, d_model: int, hidden: int, gated: bool, dtype: str, matrices: int = 1) -> Cost:
    up = linear_cost(rows, d_model, (2 if gated else 1) * hidden, dtype, matrices)
    return up + linear_cost(rows, hidden, d_model, dtype, matrices)


def ssm_cost(
    length: int, channels: int, state: int, *, batch: int = 1, dtype: str = "bfloat16"
) -> Cost:
    """Mamba's selective scan alone, fused: no projections, no convolution.

    FLOPs: 9 per token, channel and state number, the usual convention (state-spaces/mamba, issue
    110). A parallel scan makes about two combinations (a, x) (a', x') = (a a', a' x + x') for each
    element, which is 6; making a and x and reading h out are counted as 3. One step after another
    the same takes 7: dt A, exp, (dt x) B, a h, +, and 2 for C h. A decoding step (length=1) is
    counted by the convention too. Skip, gate and softplus, once per channel, are not counted.
    Bytes: x, dt, z in and y out per channel, B and C per token; A, D and the bias of dt once; the
    state read and written once. Parameters and state are float32; no other h goes through memory.
    """
    whole(length=length, channels=channels, state=state, batch=batch)
    tokens = batch * length
    kept = channels * (state + 2) + 2 * batch * channels * state
    moved = dtype_bytes(tokens * (4 * channels + 2 * state), dtype) + dtype_bytes(kept, "float32")
    return Cost(SCAN_FLOPS * tokens * channels * state, moved)


def ssm_layer_cost(
    length: int,
    d_model: int,
    *,
    state: int = 16,
    expand: int = 2,
    conv: int = 4,
    dt_rank: int | None = None,
    batch: int = 1,
    dtype: str = "bfloat16",
) -> Cost:
    """A whole Mamba-1 layer of expand * d_model channels: projections, convolution, `ssm_cost`.

    The projections go from d_model to x and z, from x to (dt, B, C), from dt_rank to dt, and back
    to d_model; dt_rank defaults to d_model / 16, rounded up. The convolution of `conv` taps does
    2 * conv FLOPs per token and channel, and reads and writes its conv - 1 last inputs in float32.
    """
    whole(length=length, d_model=d_model, state=state, expand=expand, conv=conv, dt_rank=dt_rank)
    whole(batch=batch)
    channels, tokens = expand * d_model, batch * length
    rank = -(-d_model // 16) if dt_rank is None else dt_rank
    weights = dtype_bytes(2 * tokens * channels + channels * (conv + 1), dtype)
    last = dtype_bytes(2 * batch * channels * (conv - 1), "float32")
    parts = [
        linear_cost(tokens, d_model, 2 * channels, dtype),
        Cost(2 * conv * tokens * channels, weights + last),
        linear_cost(tokens, channels, rank + 2 * state, dtype),
        linear_cost(tokens, rank, channels, dtype),
        ssm_cost(length, channels, state, batch=batch, dtype=dtype),
        linear_cost(tokens, channels, d_model, dtype),
    ]
    return sum(parts, Cost())


def _attention(m: ModelShape, length: int, batch: int, past: int, dtype: str) -> Cost:
    sizes = {"kv_heads": m.kv_heads, "head_dim": m.head_dim, "batch": batch, "past": past}
    return attention_layer_cost(length, m.d_model, m.heads, dtype=dtype, **sizes)


def _mamba(m: ModelShape, length: int, batch: int, past: int, dtype: str) -> Cost:
    sizes = {"state": m.state, "expand": m.expand, "conv": m.conv, "dt_rank": m.dt_rank}
    return ssm_layer_cost(length, m.d_model, batch=batch, dtype=dtype, **sizes)


def _dense(m: ModelShape, length: int, batch: int, past: int, dtype: str) -> Cost:
    return mlp_cost(length, m.d_model, m.hidden, batch=batch, dtype=dtype)


def _experts(m: ModelShape, length: int, batch: int, past: int, dtype: str) -> Cost:
    visits = batch * length * m.active
    router = linear_cost(batch * length, m.d_model, m.experts, dtype)
    return router + _mlp(visits, m.d_model, m.hidden, True, dtype, min(m.experts, visits))


LAYERS: dict[str, Callable[[ModelShape, int, int, int, str], Cost]] = {
    "*": _attention,
    "M": _mamba,
    "-": _dense,
    "E": _experts,
}


def model_cost(
    model: str | ModelShape,
    length: int,
    *,
    batch: int = 1,
    past: int = 0,
    dtype: str = "bfloat16",
) -> Cost:
    """One forward pass of a whole model over `length` tokens after `past` others.

    past=0 is a prefill, length=1 a decoding step; TRAINING times it is a training step whose
    backward pass recomputes nothing. Logits are counted for every token; looking up an embedding
    is bytes alone. Routed tokens are taken to visit as many different experts as there can be.
    """
    m = find_model(model)
    whole(length=length, batch=batch)
    whole(low=0, past=past)
    tokens = batch * length
    embed = Cost(0, dtype_bytes(2 * tokens * m.d_model, dtype))
    unembed = linear_cost(tokens, m.d_model, m.vocab_size, dtype)
    glyphs = {glyph: m.pattern.count(glyph) for glyph in m.pattern}
    layers = (n * LAYERS[glyph](m, length, batch, past, dtype) for glyph, n in glyphs.items())
    return sum(layers, embed + unembed)
