"""ssmlib.layers.once: made once, and again after training or a write to the parameter."""

import copy

import torch
from agreement import assert_close

from ssmlib.layers.once import Keeper, once
from ssmlib.mixers.mamba import MambaConfig
from ssmlib.mixers.mamba2 import Mamba2Config


class Owner(Keeper):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(2, 2))
        self.bias = torch.nn.Parameter(torch.randn(2))


class Counter:
    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return x.exp()


def test_it_is_made_once_until_it_is_written_to():
    owner, make = Owner().eval(), Counter()
    with torch.no_grad():
        first = once(owner, owner.weight, make)
        assert once(owner, owner.weight, make) is first
        owner.weight.add_(1)
        assert_close(once(owner, owner.weight, make), owner.weight.exp())
        assert make.calls == 2
        owner.weight.data = owner.weight.data.clone() * 2
        assert_close(once(owner, owner.weight, make), owner.weight.exp())
        owner.load_state_dict(Owner().state_dict())
        assert_close(once(owner, owner.weight, make), owner.weight.exp())
        assert_close(once(owner.double(), owner.weight, make), owner.weight.exp())
    assert set(owner.state_dict()) == {"weight", "bias"}
    copy.deepcopy(owner)


def test_training_that_leaves_no_trace_is_followed():
    owner, make = Owner().eval(), Counter()
    with torch.no_grad():
        once(owner, owner.weight, make)
        owner.train()
        owner.weight.data.add_(1)  # as a fused optimizer does, or a replayed graph
        assert_close(once(owner, owner.weight, make), owner.weight.exp())
        owner.weight.data.add_(1)
        assert_close(once(owner, owner.weight, make), owner.weight.exp())
        owner.eval()
        assert_close(once(owner, owner.weight, make), owner.weight.exp())


def test_gradients_and_inference_tensors_are_made_anew():
    owner, make = Owner().eval(), Counter()
    once(owner, owner.weight, make).sum().backward()
    assert_close(owner.weight.grad, owner.weight.exp())
    with torch.inference_mode():
        once(owner, owner.weight, make)
        apart = Owner().eval()
        before = make.calls
        for _ in range(2):
            once(apart, apart.weight, make)
        assert make.calls == before + 2


def test_transforms_go_through():
    owner, make = Owner().eval(), Counter()
    many = torch.randn(3, 2, 2)

    def call(weight):
        return torch.func.functional_call(Caller(owner, make), {"owner.weight": weight}, ())

    with torch.no_grad():
        assert_close(torch.func.vmap(call)(many), many.exp())


class Caller(torch.nn.Module):
    def __init__(self, owner, make):
        super().__init__()
        self.owner, self.make = owner, make

    def forward(self):
        return once(self.owner, self.owner.weight, self.make)


def test_a_trained_mamba_steps_by_its_new_decays(seeded):
    for config in (MambaConfig(state_size=3), Mamba2Config(state_size=3, head_dim=4)):
        layer, x = config.build(8).double(), seeded.normal(1, 5, 8)
        with torch.no_grad():
            before, _ = layer(x)
            layer.A_log.add_(1)
            after, state = layer(x)
        assert (after - before).abs().max() > 1e-6
        with torch.no_grad():
            got = layer(x[:, :1], state)[0]
        assert_close(got, layer(x[:, :1], state)[0])  # with gradients: made anew


def test_what_is_made_in_inference_mode_serves_outside_of_it():
    owner = Owner().eval().requires_grad_(False)
    with torch.inference_mode():
        first = once(owner, owner.weight, torch.exp)
    x = torch.ones(2, 2, requires_grad=True)
    (x * once(owner, owner.weight, torch.exp)).sum().backward()
    assert once(owner, owner.weight, torch.exp) is first
    assert_close(x.grad, owner.weight.exp())
