"""ssmlib.mixers.attention: against torch's own attention; pieces equal the whole."""

import pytest
import torch
from agreement import assert_close

from ssmlib.mixers.attention import AttentionConfig


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
