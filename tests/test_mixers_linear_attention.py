"""ssmlib.mixers.linear_attention: the sums it stands for, in pieces too, and what it refuses."""

import math

import pytest
import torch
from agreement import assert_close

from ssmlib.mixers.linear_attention import (
    FEATURE_MAPS,
    LinearAttentionConfig,
    elu,
    taylor,
)


def made(feature_map: str, heads: int = 2, features: int = 3, d: int = 6):
    torch.manual_seed(0)
    return LinearAttentionConfig(features, heads, feature_map).build(d).double()


def weight(feature_map: str, q, k):
    """w between each query and key of (... t f)."""
    if feature_map == "elu":
        return elu(q) @ elu(k).mT
    s = q @ k.mT / math.sqrt(q.shape[-1])
    return 1 + s + s**2 / 2


def by_definition(layer, x):
    heads = (layer.config.heads, -1)
    q, k, v = (
        f(x).unflatten(2, heads).transpose(1, 2) for f in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    w = weight(layer.config.feature_map, q, k).tril()
    return layer.o_proj((w @ v / w.sum(-1, keepdim=True)).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("t", [1, 2, 70])
@pytest.mark.parametrize("feature_map", FEATURE_MAPS)
def test_it_is_the_normalised_sum_with_its_gradients(feature_map, t, seeded):
    layer, x = made(feature_map), seeded.normal(2, t, 6).requires_grad_()
    inputs = (x, *layer.parameters())
    y, wanted = layer(x)[0], by_definition(layer, x)
    assert_close(y, wanted)
    dy = seeded.normal(*y.shape)
    got = torch.autograd.grad(y, inputs, dy, materialize_grads=True)
    want = torch.autograd.grad(wanted, inputs, dy, materialize_grads=True)
    for a, b in zip(got[0 if t > 1 else 3 :], want[0 if t > 1 else 3 :], strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("feature_map", FEATURE_MAPS)
def test_pieces_are_the_whole(feature_map, seeded):
    layer, x = made(feature_map), seeded.normal(2, 20, 6)
    whole, last = layer(x)
    state, pieces = None, []
    for piece in x.split([7, 1, 12], dim=1):
        y, state = layer(piece, state)
        pieces.append(y)
    assert_close(torch.cat(pieces, 1), whole)
    assert_close(state, last)


def test_taylor_has_a_feature_for_every_product_of_two(seeded):
    q, k = seeded.normal(5, 4), seeded.normal(5, 4)
    assert taylor(q).shape == (5, 1 + 4 + 10)
    s = (q * k).sum(-1) / 2
    assert_close((taylor(q) * taylor(k)).sum(-1), 1 + s + s**2 / 2)


def test_the_state_has_the_size_that_is_said(seeded):
    x = seeded.normal(2, 5, 6)
    assert made("elu")(x)[1].shape == (2, 2, 4, 3)
    assert made("taylor")(x)[1].shape == (2, 2, 4, 1 + 3 + 6)


def test_what_does_not_fit_is_refused(seeded):
    with pytest.raises(ValueError, match="heads: expected a divisor of d_model=6, got 4"):
        LinearAttentionConfig(heads=4).build(6)
    with pytest.raises(ValueError, match="feature_map: expected one of elu, taylor, got 'relu'"):
        LinearAttentionConfig(feature_map="relu").build(6)
    with pytest.raises(ValueError, match="features"):
        LinearAttentionConfig(features=0).build(6)
    with pytest.raises(ValueError, match=r"x: expected \(b, t, 6\)"):
        made("elu")(seeded.normal(1, 3, 5))
    with pytest.raises(ValueError, match="state"):
        made("elu")(seeded.normal(1, 3, 6), seeded.normal(1, 2, 4, 5))
