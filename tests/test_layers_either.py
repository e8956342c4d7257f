"""ssmlib.layers.either: a mean of two mixers, by place or by token, in pieces as in one."""

import pytest
import torch
from agreement import assert_close

from ssmlib.layers import EitherConfig, MLPConfig, hold, shares, step_
from ssmlib.mixers.attention import AttentionConfig
from ssmlib.mixers.mamba import MambaConfig
from ssmlib.model import ModelConfig


def either(by="token", **changes):
    torch.manual_seed(0)
    layer = EitherConfig(AttentionConfig(2), MambaConfig(4), by, **changes).build(8).double()
    with torch.no_grad():
        for p in (layer.bias, *(() if layer.choose is None else layer.choose.parameters())):
            p.copy_(torch.linspace(-0.5, 0.5, p.numel()).view_as(p) + 0.1)
    return layer


@pytest.mark.parametrize("by", ["place", "token"])
def test_the_definition_and_its_gradients(by, seeded):
    """eq-either."""
    layer, x = either(by), seeded.normal(2, 9, 8).requires_grad_()

    def defined(x):
        asked = layer.bias + (x @ layer.choose.weight[0] if by == "token" else 0 * x[..., 0])
        s = (1 / (1 + torch.exp(-asked / 0.2)))[..., None]
        return s * layer.first(x)[0] + (1 - s) * layer.second(x)[0]

    results = []
    for f in (lambda x: layer(x)[0], defined):
        y = f(x)
        loss = (y * torch.arange(y.numel()).view_as(y)).sum()
        results.append((y, *torch.autograd.grad(loss, [x, *layer.parameters()])))
    for got, want in zip(*results, strict=True):
        assert_close(got, want)


@pytest.mark.parametrize("by", ["place", "token"])
def test_pieces_and_steps_are_the_whole(by, seeded):
    layer, x = either(by), seeded.normal(2, 9, 8)
    whole, _ = layer(x)
    first, state = layer(x[:, :4])
    rest, _ = layer(x[:, 4:], state)
    assert_close(torch.cat([first, rest], dim=1), whole)
    with torch.no_grad():
        place = hold(layer, state, 5)
        for t in range(4, 9):
            assert_close(step_(layer, x[:, t : t + 1], place), whole[:, t : t + 1])


def test_shares_are_those_of_the_last_call():
    torch.manual_seed(0)
    legend = {"?": EitherConfig(AttentionConfig(2), MambaConfig(4)), "-": MLPConfig(8)}
    model = ModelConfig(5, 8, "?-?", legend).build()
    with pytest.raises(ValueError, match="a model that was called"):
        shares(model)
    model(torch.tensor([[1, 2, 3]]))
    told = shares(model)
    assert told.shape == (2, 1, 3)
    assert (told == 0.5).all()
    told.mean().backward()
    assert model.backbone.layers[0].mixer.bias.grad > 0


def test_bad_input_is_named(seeded):
    with pytest.raises(ValueError, match=r"by: expected one of place, token, got 'layer'"):
        either("layer")
    with pytest.raises(ValueError, match="temperature"):
        either(temperature=0)
    with pytest.raises(ValueError, match="state: expected two states or None, got int"):
        either()(seeded.normal(1, 2, 8), 3)
    with pytest.raises(ValueError, match="expected places of two mixers"):
        shares(MLPConfig().build(8))
