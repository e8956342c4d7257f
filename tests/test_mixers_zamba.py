"""ssmlib.mixers.zamba: the figure of the paper, weights that layers share, what each has itself."""

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_close

from ssmlib.attention import rotate
from ssmlib.layers import MLPConfig, NormConfig
from ssmlib.mixers.attention import AttentionConfig
from ssmlib.mixers.mamba2 import Mamba2Config
from ssmlib.mixers.zamba import ZambaConfig
from ssmlib.model import ModelConfig

MAMBA2 = Mamba2Config(head_dim=4, state_size=4)
CONFIG = ZambaConfig(AttentionConfig(heads=2, scale=0.3), MLPConfig(12), MAMBA2, blocks=2)


def model(pattern="MZZMZ", **changes):
    torch.manual_seed(0)
    settings = {f: getattr(CONFIG, f) for f in CONFIG.__dataclass_fields__}
    legend = {"M": MAMBA2, "Z": ZambaConfig(**settings | changes)}
    legend = {glyph: legend[glyph] for glyph in pattern}
    return ModelConfig(11, 8, pattern, legend, norm=NormConfig(eps=1e-3)).build().double()


def by_the_figure(layer, x, first):
    block = layer.shared_transformer
    attention, mlp = block.self_attn, block.feed_forward
    both = block.input_layernorm(torch.cat([x, first], dim=-1))
    q, k, v = (
        (getattr(attention, n)(both) + (layer.adapters[n](both) if n in layer.adapters else 0))
        for n in ("q_proj", "k_proj", "v_proj")
    )
    q, k, v = (part.unflatten(2, (2, -1)) for part in (q, k, v))
    q, k = (rotate(part, torch.arange(x.shape[1])) for part in (q, k))
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
    y = block.pre_ff_layernorm(attention.o_proj(y.transpose(1, 2).flatten(2)))
    gate, up = mlp.gate_proj(y), mlp.up_proj(y)
    if "gate_up_proj" in layer.adapters:
        more = layer.adapters["gate_up_proj"](y).chunk(2, dim=-1)
        gate, up = gate + more[0], up + more[1]
    told = layer.linear(mlp.down_proj(F.silu(gate) * up))
    return x + layer.mixer(layer.norm(x + told))[0]


@pytest.mark.parametrize(
    "changes", [{}, {"adapter_rank": 3}, {"adapter_rank": 3, "attention_adapters": True}]
)
def test_it_is_the_figure(changes, seeded):
    made, first = model(**changes), seeded.normal(2, 7, 8)
    x = first
    for layer in made.backbone.layers:
        x = by_the_figure(layer, x, first) if hasattr(layer, "linear") else layer(x)[0]
    assert_close(made.backbone(first)[0], made.backbone.norm_f(x))


def test_blocks_take_turns_and_are_counted_once():
    layers = list(model("ZZZ").backbone.layers)
    blocks = [x.shared_transformer for x in layers]
    assert blocks[0] is blocks[2]
    assert blocks[0] is not blocks[1]
    assert len({id(x.linear.weight) for x in layers}) == 3
    count = {n: sum(p.numel() for p in model("Z" * n).parameters()) for n in (2, 3, 4)}
    block = sum(p.numel() for p in blocks[0].parameters())
    assert count[4] - count[3] == count[3] - count[2]  # a layer's own; no block
    assert count[3] - count[2] + block == sum(p.numel() for p in layers[0].parameters())


def test_each_layer_has_a_cache_of_its_own(seeded):
    _, state = model("ZZZ")(seeded.integers(0, 11, 1, 5))
    assert state[0].cache.k.data_ptr() != state[2].cache.k.data_ptr()
    assert (state[0].cache.k - state[2].cache.k).abs().max() > 1e-3


def test_gradients_of_a_shared_block_are_sums(seeded):
    made, tokens = model("ZZ", blocks=1), seeded.integers(0, 11, 2, 6)
    made(tokens)[0].square().sum().backward()
    weight = made.backbone.layers[0].shared_transformer.self_attn.q_proj.weight
    grad, step = weight.grad.clone(), 1e-6
    at = (2, 5)
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[at] += sign * step
            ends.append(made(tokens)[0].square().sum())
            weight[at] -= sign * step
    assert_close((ends[0] - ends[1]) / (2 * step), grad[at], 1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": 0}, "blocks: expected a whole number >= 1, got 0"),
        ({"adapter_rank": 0}, "adapter_rank: expected a whole number >= 1, got 0"),
        ({"attention_adapters": True}, "adapter_rank: expected a number for attention_adapters"),
        ({"mlp": MLPConfig(gated=False)}, "mlp: expected a gated one in Zamba's block"),
    ],
)
def test_bad_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        model(**changes)


def test_states_of_another_layer_are_refused(seeded):
    made, tokens = model("Z"), seeded.integers(0, 11, 1, 3)
    _, state = made(tokens)
    with pytest.raises(ValueError, match="state: expected a ZambaState or None, got tuple"):
        made(tokens, (tuple(state[0]),))
    with pytest.raises(ValueError, match="legend: expected a model to build Zamba's layers"):
        CONFIG.build(8)
