"""ssmlib.layers.depths: who is chosen goes through the mixer, the others past it or elsewhere."""

import pytest
import torch
from agreement import assert_close

from ssmlib.layers import DepthsConfig, MLPConfig
from ssmlib.mixers.attention import AttentionConfig
from ssmlib.mixers.mamba import MambaConfig


def depths(capacity=0.5, other=None, mixer=None):
    torch.manual_seed(0)
    mixer = AttentionConfig(2, base=None) if mixer is None else mixer
    return DepthsConfig(mixer, capacity, other).build(8).double()


@pytest.mark.parametrize("other", [None, MambaConfig(4)])
@pytest.mark.parametrize("capacity", [0.1, 0.5, 1.0])
def test_the_definition_and_its_gradients(capacity, other, seeded):
    """eq-depths."""
    layer, x = depths(capacity, other), seeded.normal(2, 9, 8).requires_grad_()

    def defined(x):
        out = []
        for row in x:
            r = (row @ layer.router.weight[0]).detach()
            k = -(-int(10 * capacity) * 9 // 10)
            chosen = sorted(sorted(range(9), key=lambda i: -r[i])[:k])
            rest = [i for i in range(9) if i not in chosen]
            gate = torch.sigmoid(row[chosen] @ layer.router.weight[0])[:, None]
            y = torch.zeros(9, 8).double()
            y = y.index_add(0, torch.tensor(chosen), gate * layer.mixer(row[None, chosen])[0][0])
            if other is not None and rest:
                y = y.index_add(0, torch.tensor(rest), layer.other(row[None, rest])[0][0])
            out.append(y)
        return torch.stack(out)

    results = []
    for f in (lambda x: layer(x)[0], defined):
        y = f(x)
        loss = (y * torch.arange(y.numel()).view_as(y)).sum()
        parameters = [x, *layer.router.parameters(), *layer.mixer.parameters()]
        results.append((y, *torch.autograd.grad(loss, parameters)))
    for got, want in zip(*results, strict=True):
        assert_close(got, want)


def test_the_choice_is_kept_in_order_and_looks_ahead(seeded):
    layer, x = depths(0.3, mixer=MLPConfig(4)), seeded.normal(1, 10, 8)
    y, state = layer(x)
    assert state is None
    assert layer.chosen.shape == (1, 3)
    assert (layer.chosen.diff(dim=1) > 0).all()
    assert (y[0].abs().sum(1) > 0).nonzero()[:, 0].tolist() == layer.chosen[0].tolist()
    early = int(layer.chosen[0, 0])
    later = x.clone()
    later[:, early + 1 :] = 5 * layer.router.weight  # all of them are wanted more
    layer(later)
    assert early < 7
    assert early not in layer.chosen


def test_capacity_may_fall_while_training(seeded):
    layer, x = depths(1.0), seeded.normal(1, 10, 8)
    layer(x)
    assert layer.chosen.shape == (1, 10)
    layer.capacity = 0.2
    layer(x)
    assert layer.chosen.shape == (1, 2)


def test_bad_input_is_named(seeded):
    for capacity in (0.0, 1.5):
        with pytest.raises(ValueError, match="capacity"):
            depths(capacity)
    with pytest.raises(ValueError, match="state: expected None, as the choice needs the whole"):
        depths()(seeded.normal(1, 2, 8), 3)
