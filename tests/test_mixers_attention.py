"""ssmlib.mixers.attention: against torch's own attention; pieces equal the whole."""

import pytest
import torch
from agreement import assert_close

from ssmlib.attention import RopeScaling, rotary_rates, rotate
from ssmlib.mixers.attention import Attention, AttentionConfig


def test_it_is_scaled_dot_product_attention(seeded):
    layer, x = AttentionConfig(heads=4, base=None).build(16).double(), seeded.normal(2, 9, 16)
    q, k, v = (
        f(x).unflatten(2, (4, 4)).transpose(1, 2)
        for f in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert_close(layer(x)[0], layer.o_proj(y.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("kv_heads", [None, 2, 1])
@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("cuts", [(7,), (1, 5), tuple(range(1, 11))])
def test_pieces_equal_the_whole(kv_heads, window, cuts, seeded):
    layer = AttentionConfig(heads=4, kv_heads=kv_heads, window=window).build(16).double()
    x, state, pieces = seeded.normal(2, 11, 16), None, []
    for piece in x.tensor_split(cuts, dim=1):
        y, state = layer(piece, state)
        pieces.append(y)
    whole, last = layer(x)
    assert_close(torch.cat(pieces, dim=1), whole)
    assert_close(state.k, last.k)
    assert state.position == last.position == 11
    assert state.k.shape == (2, min(11, window or 11), kv_heads or 4, 4)


def test_rotation_tells_order(seeded):
    """Without it, and without the mask's help, the last token cannot tell the others' order."""
    x = seeded.normal(1, 6, 16)
    swapped = x[:, [1, 0, 2, 3, 4, 5]]
    plain = AttentionConfig(heads=2, base=None).build(16).double()
    assert_close(plain(swapped)[0][:, -1], plain(x)[0][:, -1])
    rotary = AttentionConfig(heads=2).build(16).double()
    assert (rotary(swapped)[0][:, -1] - rotary(x)[0][:, -1]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": 3}, "heads: expected a divisor of d_model=16, got 3"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads: expected a divisor of heads=4, got 3"),
        ({"heads": 16}, "rotated: expected an even number of rotated features .*, got 1 of 1"),
        ({"heads": 0}, "heads: expected a whole number >= 1, got 0"),
        ({"window": 0}, "window: expected a whole number >= 1, got 0"),
    ],
)
def test_bad_configurations_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        AttentionConfig(**wrong).build(16)


def test_sizes_biases_and_scale(seeded):
    config = AttentionConfig(
        heads=3, kv_heads=1, head_dim=6, base=None, bias=True, out_bias=True, scale=0.2
    )
    layer, x = Attention(16, config, d_out=5).double(), seeded.normal(2, 9, 16)
    q, k, v = (f(x).unflatten(2, (-1, 6)) for f in (layer.q_proj, layer.k_proj, layer.v_proj))
    scores = 0.2 * torch.einsum("bchk,btk->bhct", q, k.squeeze(2))
    seen = torch.ones(9, 9, dtype=torch.bool).tril()
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    y = torch.einsum("bhct,btv->bchv", weights, v.squeeze(2)).flatten(2)
    assert_close(layer(x)[0], layer.o_proj(y))
    assert layer(x)[0].shape == (2, 9, 5)
    assert sum(p.numel() for p in layer.parameters()) == 16 * 30 + 30 + 18 * 5 + 5


def test_a_part_of_the_features_turns(seeded):
    layer, x = AttentionConfig(heads=2, rotated=0.5).build(16).double(), seeded.normal(1, 7, 16)
    state = layer(x)[1]
    k = layer.k_proj(x).unflatten(2, (2, 8))
    assert_close(state.k[..., 4:], k[..., 4:])
    assert_close(state.k[..., :4], rotate(k[..., :4], torch.arange(7)))


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("linear", {"rope_type": "linear", "factor": 4.0}),
        (
            "llama3",
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
    ],
)
def test_scaled_rates_are_those_of_transformers(kind, given):
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=2, rope_parameters={"rope_theta": 500.0, **given}
    )
    want = LlamaRotaryEmbedding(config).inv_freq
    scaling = RopeScaling(kind, given["factor"], original=64)
    assert_close(rotary_rates(32, 500.0, scaling).float(), want, 1e-6)
    assert (rotary_rates(32, 500.0) > rotary_rates(32, 500.0, scaling) * 1.5).any()


def test_positions_beyond_those_of_the_embedding_are_refused(seeded):
    layer, x = AttentionConfig(heads=2, max_length=5).build(16).double(), seeded.normal(1, 6, 16)
    _, state = layer(x[:, :5])
    with pytest.raises(ValueError, match="x: expected at most max_length=5 tokens with those bef"):
        layer(x)
    with pytest.raises(ValueError, match="x: expected at most max_length=5 tokens with those bef"):
        layer(x[:, 5:], state)


def test_a_window_s_memory_is_constant(seeded):
    layer = AttentionConfig(heads=2, window=4).build(16).double()
    _, state = layer(seeded.normal(2, 3, 16))
    with torch.no_grad():
        place = layer.hold(state, 1000)
        shape, where = place.k.shape, place.k.data_ptr()
        assert shape[1] == 4
        for _ in range(20):
            layer.step_(seeded.normal(2, 1, 16), place)
    assert (place.k.shape, place.k.data_ptr()) == (shape, where)
    assert place.position.tolist() == [23, 23]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rotated": 0.3}, "rotated: expected an even number of rotated features .*, got 1 of 4"),
        ({"rotated": 1.5}, "rotated: expected a finite number >= 1e-09 <= 1, got 1.5"),
        ({"head_dim": 0}, "head_dim: expected a whole number >= 1, got 0"),
        ({"max_length": 0}, "max_length: expected a whole number >= 1, got 0"),
        ({"scale": 0.0}, "scale: expected a finite number >= 1e-09, got 0.0"),
        ({"scaling": RopeScaling("yarn", 2.0)}, "scaling.kind: expected one of linear, llama3, g"),
        ({"scaling": RopeScaling("linear", 0.5)}, "scaling.factor: expected a finite number >= 1"),
        ({"scaling": RopeScaling("llama3", 2.0, 4.0, 1.0)}, "scaling: expected 0 < low < high"),
    ],
)
def test_bad_positions_and_sizes_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        AttentionConfig(heads=4, **wrong).build(16)
