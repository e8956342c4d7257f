"""Bytes kept: weights, key-value caches, states, score matrices; and how many users fit."""

from collections.abc import Callable
from math import floor

from ssmlib.costs.checks import find, whole
from ssmlib.costs.tables import DTYPES, Device, ModelShape, dtype_bytes, find_device, find_model


def scores_bytes(
    length: int,
    heads: int = 1,
    layers: int = 1,
    batch: int = 1,
    past: int = 0,
    dtype: str = "bfloat16",
) -> int:
    """Bytes of attention's whole score matrix: length times (past + length) numbers for each head.

    The masked half of a causal matrix is counted: a program that stores scores stores it too. One
    that works tile by tile (FlashAttention) never has these bytes.
    """
    whole(length=length, heads=heads, layers=layers, batch=batch)
    whole(low=0, past=past)
    return dtype_bytes(batch * layers * heads * length * (past + length), dtype)


def kv_cache_bytes(
    layers: int,
    kv_heads: int,
    head_dim: int,
    length: int,
    batch: int = 1,
    dtype: str = "bfloat16",
    window: int | None = None,
) -> int:
    """Bytes of the keys and values of `length` tokens in `layers` attention layers.

    kv_heads: all the heads in multi-head attention, 1 in multi-query, between in grouped-query.
    With a window only the last `window` tokens are kept. Scales of a quantized cache are left out.
    """
    whole(layers=layers, kv_heads=kv_heads, head_dim=head_dim, batch=batch, window=window)
    whole(low=0, length=length)
    kept = length if window is None else min(length, window)
    return dtype_bytes(2 * batch * layers * kv_heads * head_dim * kept, dtype)


def state_bytes(
    layers: int,
    channels: int,
    state: int,
    conv: int = 4,
    groups: int = 0,
    batch: int = 1,
    dtype: str = "float32",
) -> int:
    """Bytes of the states of `layers` Mamba layers, which no length changes.

    Each channel keeps `state` numbers, and the convolution its last conv - 1 inputs (conv=1: none).
    In Mamba-2 channels = heads * head_dim, and the convolution runs over B and C as well, which are
    `groups` vectors of `state` numbers each; Mamba-1 convolves the channels alone (groups=0).
    """
    whole(layers=layers, channels=channels, state=state, conv=conv, batch=batch)
    whole(low=0, groups=groups)
    convolved = channels + 2 * groups * state
    return dtype_bytes(batch * layers * (channels * state + convolved * (conv - 1)), dtype)


def _attention_parameters(m: ModelShape, active: bool) -> int:
    return 2 * m.d_model * m.head_dim * (m.heads + m.kv_heads)


def _mamba_parameters(m: ModelShape, active: bool) -> int:
    c, read = m.channels, m.dt_rank + 2 * m.state
    projections = 2 * m.d_model * c + c * read + m.dt_rank * c + c * m.d_model
    conv, dt_bias, A_log, D = c * (m.conv + 1), c, c * m.state, c
    return projections + conv + dt_bias + A_log + D + (read if m.mixer_norms else 0)


def _mlp_parameters(m: ModelShape, active: bool) -> int:
    return 3 * m.d_model * m.hidden


def _expert_parameters(m: ModelShape, active: bool) -> int:
    router = m.d_model * m.experts
    return router + (m.active if active else m.experts) * _mlp_parameters(m, active)


PARAMETERS: dict[str, Callable[[ModelShape, bool], int]] = {
    "*": _attention_parameters,
    "M": _mamba_parameters,
    "-": _mlp_parameters,
    "E": _expert_parameters,
}


def parameters(model: str | ModelShape, active: bool = False) -> int:
    """Every weight of a model: embeddings, one norm per sub-layer and the final one, biases, all.

    active=True: those that one token meets, that is `active` of a layer's experts.
    """
    m = find_model(model)
    layers = sum(PARAMETERS[glyph](m, active) + m.d_model for glyph in m.pattern)
    return layers + m.d_model + (1 if m.tied else 2) * m.vocab_size * m.d_model


def parameter_bytes(model: str | ModelShape, dtype: str = "bfloat16") -> int:
    """Bytes of all weights in one dtype; a quantized model's scales are not counted."""
    return dtype_bytes(parameters(model), dtype)


def context_bytes(
    model: str | ModelShape,
    length: int,
    batch: int = 1,
    dtype: str = "bfloat16",
    state_dtype: str = "float32",
) -> int:
    """Bytes a model keeps between two tokens after `length` of them: caches, states or both.

    dtype is that of keys and values, state_dtype that of Mamba's and its convolution's states.
    """
    m = find_model(model)
    find("dtype", dtype, DTYPES)
    find("state_dtype", state_dtype, DTYPES)
    whole(batch=batch)
    whole(low=0, length=length)
    attention, mamba = m.pattern.count("*"), m.pattern.count("M")
    total = 0
    if attention:
        total += kv_cache_bytes(attention, m.kv_heads, m.head_dim, length, batch, dtype)
    if mamba:
        total += state_bytes(mamba, m.channels, m.state, m.conv, 0, batch, state_dtype)
    return total


def users_that_fit(
    model: str | ModelShape,
    length: int,
    device: str | Device,
    devices: int = 1,
    dtype: str = "bfloat16",
    weights: str = "bfloat16",
    state_dtype: str = "float32",
) -> int:
    """How many users, each with `length` tokens behind them, fit beside one copy of the weights.

    Weights and caches are spread evenly over `devices`. Activations, the allocator's waste and what
    the driver takes are not counted, so a real server fits fewer. 0 if not even one fits.
    """
    find("weights", weights, DTYPES)
    whole(devices=devices)
    free = devices * find_device(device).memory - parameter_bytes(model, weights)
    each = context_bytes(model, length, 1, dtype, state_dtype)
    if each == 0:
        raise ValueError(f"length: expected >= 1 for a model without a state, got {length}")
    return max(0, floor(free / each))
