"""ssmlib.layers.moe: every dispatch is the definition, the loss the paper's, capacity is kept."""

import pytest
import torch
import torch.nn.functional as F
from agreement import TOLERANCE, assert_close

from ssmlib.layers import MoEConfig, balance_loss, load_balance, moe

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def mixture(d=8, **changes):
    torch.manual_seed(0)
    return MoEConfig(**{"experts": 5, "active": 2, "hidden": 6} | changes).build(d).double()


def by_definition(layer, x):
    """One token at a time, one expert at a time."""
    weights, out = layer.experts, []
    for token in x.flatten(0, 1):
        share, chosen = layer.router(token).softmax(-1).topk(layer.config.active)
        if layer.config.normalize:
            share = share / share.sum()
        y = torch.zeros_like(token)
        for p, e in zip(share, chosen, strict=True):
            gate, up = (weights.gate_up_proj[e] @ token).chunk(2)
            y = y + p * (weights.down_proj[e] @ (F.silu(gate) * up))
        out.append(y)
    return torch.stack(out).view_as(x)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize(
    "changes", [{}, {"normalize": True}, {"active": 1}, {"active": 5}, {"experts": 1, "active": 1}]
)
@pytest.mark.parametrize("t", [1, 2, 65])
def test_a_token_visits_its_experts(t, changes, backend, seeded):
    layer, x = mixture(backend=backend, **changes), seeded.normal(2, t, 8).requires_grad_()
    results = []
    for f in (lambda x: layer(x)[0], lambda x: by_definition(layer, x)):
        y = f(x)
        loss = (y * torch.arange(y.numel()).view_as(y)).sum()
        grads = torch.autograd.grad(loss, [x, *layer.parameters()])
        results.append((y, *grads))
    for got, want in zip(*results, strict=True):
        assert_close(got, want)


def test_no_token_minds_another(seeded):
    layer, x = mixture(capacity=0.5).eval(), seeded.normal(2, 9, 8)
    whole, state = layer(x)
    assert state is None
    assert_close(torch.cat([layer(x[:, :4])[0], layer(x[:, 4:])[0]], dim=1), whole)
    assert_close(layer(x[1:])[0], whole[1:])


def test_what_exceeds_the_capacity_is_dropped(seeded):
    """First choices before second ones, earlier tokens before later ones."""
    layer, x = mixture(capacity=0.7), seeded.normal(1, 12, 8)
    logits = layer.router(x[0])
    share, chosen = logits.softmax(-1).topk(2)
    limit, taken = 4, [0] * 5  # .7 * 2 * 12 / 5 = 3.36
    want = torch.zeros_like(x[0])
    weights = layer.experts
    dropped = 0
    for choice in range(2):
        for t in range(12):
            e = chosen[t, choice].item()
            if taken[e] == limit:
                dropped += 1
                continue
            taken[e] += 1
            gate, up = (weights.gate_up_proj[e] @ x[0, t]).chunk(2)
            want[t] += share[t, choice] * (weights.down_proj[e] @ (F.silu(gate) * up))
    assert dropped > 0
    assert_close(layer.train()(x)[0][0], want)


def test_enough_capacity_drops_nothing(seeded):
    layer, x = mixture(capacity=5 / 2), seeded.normal(3, 7, 8)
    assert_close(layer.train()(x)[0], layer.eval()(x)[0])


def test_the_loss_is_least_in_balance(seeded):
    even = torch.eye(4).repeat(5, 1) * 3  # 20 tokens, five for each of four experts
    assert_close(load_balance(even, 1), torch.tensor(1.0), 1e-6)
    assert load_balance(torch.eye(4)[0].expand(20, 4) * 3, 1) > 2
    assert_close(load_balance(torch.zeros(6, 4), 4), torch.tensor(4.0), 1e-6)


def test_the_loss_is_that_of_transformers(seeded):
    jamba = pytest.importorskip("transformers.models.jamba.modeling_jamba")
    logits = seeded.normal(50, 6).requires_grad_()
    want = jamba.load_balancing_loss_func((logits,), num_experts=6, top_k=2)
    got = load_balance(logits, 2)
    assert_close(got, want, 1e-6)
    grads = (torch.autograd.grad(loss, logits)[0] for loss in (got, want))
    assert_close(*grads, 1e-5)


def test_a_model_s_loss_is_collected_once(seeded):
    layer = torch.nn.Sequential(mixture(), mixture())
    x = seeded.normal(1, 6, 8)
    layer[0](x)
    layer[1](2 * x)
    want = [load_balance(m.router(f * x[0]), 2) for m, f in zip(layer, (1, 2), strict=True)]
    assert_close(balance_loss(layer), sum(want) / 2)
    with pytest.raises(ValueError, match="model: expected a mixture of experts that was called"):
        balance_loss(layer)


def test_half_precision_routes_in_float32(seeded):
    logits = torch.tensor([[4.0, 4.01, 0.0]])
    share, chosen = moe.route(logits.bfloat16(), 2)
    assert share.dtype == torch.bfloat16
    assert chosen.shape == (1, 2)


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="a grouped product came with torch 2.10")
@pytest.mark.parametrize("t", [1, 3, 300])
def test_the_grouped_product_is_the_loop(t, seeded):
    """Values and gradients, on a GPU in bfloat16."""
    dtype = torch.float32 if DEVICE == "cpu" else torch.bfloat16
    layer = mixture(d=64, experts=16, hidden=96).to(DEVICE, dtype)
    x = seeded.normal(1, t, 64).to(DEVICE, dtype).requires_grad_()
    weights = (layer.experts.gate_up_proj, layer.experts.down_proj)
    share, chosen = moe.route(layer.router(x[0]), 2)
    results = []
    for name in ("torch", "grouped"):
        y = moe.DISPATCH[name](x[0], share, chosen, *weights, F.silu)
        results.append((y, *torch.autograd.grad(y.float().sum(), [x, *weights], retain_graph=True)))
    for got, want in zip(*results, strict=True):
        assert_close(got, want, TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"active": 6}, "active: expected at most experts=5, got 6"),
        ({"active": 0}, "active: expected a whole number >= 1, got 0"),
        ({"experts": 0}, "experts: expected a whole number >= 1, got 0"),
        ({"capacity": 0.0}, "capacity: expected a finite number >= 1e-09, got 0.0"),
        (
            {"backend": "fast"},
            "backend: expected one of auto, reference, .*, got 'fast'",
        ),
        ({"activation": "tanh"}, "activation: expected one of silu, .*, got 'tanh'"),
    ],
)
def test_bad_configurations_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        mixture(**wrong)


def test_bad_inputs_are_refused():
    with pytest.raises(ValueError, match="state: expected None, experts have none, got Tensor"):
        mixture()(torch.zeros(1, 2, 8).double(), torch.zeros(1))
    with pytest.raises(ValueError, match=r"x: expected \(b, t, 8\), got shape \(1, 2, 7\)"):
        mixture()(torch.zeros(1, 2, 7).double())
