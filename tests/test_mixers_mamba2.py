"""ssmlib.mixers.mamba2: as transformers' Mamba2, in pieces, by its equations, and as it starts."""

import pytest
import torch
from agreement import assert_close, tensors

from ssmlib.mixers.mamba2 import Mamba2Config, Mamba2State
from ssmlib.model import ModelConfig
from ssmlib.train import TrainConfig, param_groups

KINDS = {
    "as published": {},
    "groups": {"groups": 2},
    "norm before gate": {"groups": 2, "norm_before_gate": True},
    "wide skip, biases": {"wide_skip": True, "bias": True},
    "limited steps": {"dt_limit": (0.02, 0.05)},
    "no bias at all": {"conv_bias": False, "conv_width": 2},
}
TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "state_size": 16,
    "num_hidden_layers": 2,
    "num_heads": 8,
    "head_dim": 8,
    "expand": 2,
    "n_groups": 2,
    "chunk_size": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def layer(d=6, seed=0, **changes):
    torch.manual_seed(seed)
    mixer = Mamba2Config(**{"state_size": 5, "head_dim": 3} | changes).build(d).double()
    with torch.no_grad():  # so that nothing is 1 or 0 by its start alone
        for p in (mixer.D, mixer.norm.weight):
            p.add_(0.2 * torch.randn_like(p))
    return mixer


@pytest.mark.parametrize("cuts", [(4,), tuple(range(1, 9))])
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_equal_the_whole(kind, cuts, seeded):
    mixer, x = layer(**KINDS[kind]), seeded.normal(2, 9, 6)
    state, pieces = None, []
    for piece in x.tensor_split(cuts, dim=1):
        y, state = mixer(piece, state)
        pieces.append(y)
    whole, last = mixer(x)
    assert_close(torch.cat(pieces, dim=1), whole)
    for got, want in zip(state, last, strict=True):
        assert_close(got, want)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns_and_no_token_sees_the_future(kind, seeded):
    mixer, x = layer(**KINDS[kind]), seeded.normal(1, 7, 6)
    y, _ = mixer(x)
    other = x.clone()
    other[:, 4:] += 1
    assert_close(mixer(other)[0][:, :4], y[:, :4], 1e-14)
    y.square().sum().backward()
    silent = [n for n, p in mixer.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_one_token_goes_by_a_step_of_its_own(seeded, monkeypatch):
    mixer, x = layer(), seeded.normal(2, 6, 6)
    whole, last = mixer(x)
    _, state = mixer(x[:, :5])
    monkeypatch.delattr("ssmlib.mixers.mamba2.ssd")
    y, after = mixer(x[:, 5:], state)
    assert_close(y, whole[:, 5:])
    for got, want in zip(after, last, strict=True):
        assert_close(got, want)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_go_through_tokens_one_by_one(kind, seeded):
    mixer, x = layer(**KINDS[kind]), seeded.normal(2, 5, 6).requires_grad_()
    found = []
    for cuts in ((), (1, 2, 3, 4)):
        state, ys = None, []
        for piece in x.tensor_split(cuts, dim=1):
            y, state = mixer(piece, state)
            ys.append(y)
        loss = torch.cat(ys, 1).square().sum() + state.ssm.square().sum()
        found.append(torch.autograd.grad(loss, [x, *mixer.parameters()]))
    for got, want in zip(*found, strict=True):
        assert_close(got, want)


def by_the_book(mixer, x):
    """The published layer, token by token, from its parameters alone."""
    p, (b, t, _), c = dict(mixer.named_parameters()), x.shape, mixer.config
    h, g, n, e = len(p["A_log"]), c.groups, c.state_size, p["norm.weight"].numel()
    weight = p["conv1d.weight"][:, 0]
    past, S, ys = x.new_zeros(b, *weight.shape), x.new_zeros(b, h, c.head_dim, n), []
    for i in range(t):
        z, u, dt = torch.nn.functional.linear(
            x[:, i], p["in_proj.weight"], p.get("in_proj.bias")
        ).split([e, len(weight), h], dim=1)
        past = torch.cat([past[..., 1:], u[..., None]], dim=2)
        u = (past * weight).sum(2) + p.get("conv1d.bias", 0)
        u, B, C = (u * torch.sigmoid(u)).split([e, g * n, g * n], dim=1)
        u = u.view(b, h, -1)
        B, C = (M.view(b, g, n).repeat_interleave(h // g, 1) for M in (B, C))
        dt = torch.log1p(torch.exp(dt + p["dt_bias"]))[..., None]
        dt = dt if c.dt_limit is None else dt.clamp(*c.dt_limit)
        decay = torch.exp(-dt * p["A_log"].exp()[:, None])
        S = decay[..., None] * S + (dt * u)[..., None] * B[:, :, None]
        skip = p["D"] if p["D"].ndim == 2 else p["D"][:, None]
        y, gate = ((S * C[:, :, None]).sum(3) + skip * u).flatten(1), z * torch.sigmoid(z)
        y = y if c.norm_before_gate else y * gate
        y = y.view(b, g, -1)
        y = (y / (y.square().mean(2, True) + c.norm_eps).sqrt()).flatten(1) * p["norm.weight"]
        y = y * gate if c.norm_before_gate else y
        ys.append(torch.nn.functional.linear(y, p["out_proj.weight"], p.get("out_proj.bias")))
    return torch.stack(ys, dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_is_its_equations(kind, seeded):
    mixer, x = layer(**KINDS[kind]), seeded.normal(2, 9, 6)
    assert_close(mixer(x)[0], by_the_book(mixer, x))


class TestStart:
    def test_steps_are_log_uniform_between_their_bounds(self):
        mixer = layer(d=2048, state_size=1, head_dim=1)
        steps = torch.nn.functional.softplus(mixer.dt_bias)
        assert 1e-3 * (1 - 1e-5) <= steps.min() <= 1.1e-3
        assert 0.09 <= steps.max() <= 0.1 * (1 + 1e-5)
        quartiles = steps.log10().quantile(torch.tensor([0.25, 0.5, 0.75]).double())
        assert torch.allclose(quartiles, torch.tensor([-2.5, -2.0, -1.5]).double(), atol=0.06)

    def test_decays_are_uniform_between_their_bounds(self):
        decays = layer(d=2048, state_size=1, head_dim=1).A_log.exp()
        assert 1 - 1e-5 <= decays.min() <= 1.1
        assert 15.9 <= decays.max() <= 16 * (1 + 1e-5)
        assert abs(decays.mean() - 8.5) < 0.3

    def test_skip_and_norm_are_one(self):
        mixer = Mamba2Config(head_dim=4, state_size=3).build(8)
        assert torch.equal(mixer.D, torch.ones(4))
        assert torch.equal(mixer.norm.weight, torch.ones(16))

    def test_time_scales_are_slow_and_nothing_of_them_decays(self):
        glyph = Mamba2Config(state_size=3, head_dim=4)
        model = ModelConfig(7, 8, "M", {"M": glyph}).build()
        groups = param_groups(model, TrainConfig(steps=1, lr=1e-2, weight_decay=0.1))
        names = {id(p): n.removeprefix("backbone.layers.0.") for n, p in model.named_parameters()}
        _, _, slow = ({names[id(p)] for p in group["params"]} for group in groups)
        assert slow == {"mixer.A_log", "mixer.dt_bias"}
        assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.0]


def test_a_model_is_one_graph_for_the_compiler(seeded):
    glyph = Mamba2Config(state_size=3, head_dim=4)
    model = ModelConfig(50, 8, "M", {"M": glyph}).build()
    tokens = seeded.integers(0, 50, 2, 7)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        want, state = model(tokens)
    got, last = compiled(tokens)
    assert_close(got, want)
    for one, other in zip(tensors(last), tensors(state), strict=True):
        assert_close(one, other)
    got.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_trains_in_bfloat16(seeded):
    mixer = Mamba2Config(state_size=16, head_dim=16).build(32)
    x = seeded.normal(2, 70, 32).float()
    exact, _ = mixer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = mixer(x)
    y.float().square().mean().backward()
    assert state.ssm.dtype == torch.float32
    assert_close(y.float(), exact, 2e-2)
    assert all(p.grad.isfinite().all() for p in mixer.parameters())


@pytest.fixture(scope="module")
def twins():
    """A random Mamba2 of transformers, and ours with its weights, drawn so that all matter."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**TINY)).eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if not name.endswith(("A_log", "dt_bias")):
                p.add_(0.1 * torch.randn_like(p))
    glyph = Mamba2Config(state_size=16, head_dim=8, groups=2, chunk_size=16)
    ours = ModelConfig(64, 32, "MM", {"M": glyph}, tied=False).build()
    renamed = {
        n.replace("backbone.embeddings.", "embedding."): p for n, p in theirs.named_parameters()
    }
    ours.load_state_dict(renamed, strict=True)
    return theirs, ours, renamed


class TestAgainstTransformers:
    def test_logits_and_gradients_are_equal(self, twins, seeded):
        theirs, ours, renamed = twins
        tokens = seeded.integers(0, 64, 2, 33)
        weights = seeded.normal(2, 33, 64).float()
        want, (got, _) = theirs(tokens).logits, ours(tokens)
        assert_close(got, want, 1e-5)
        (want * weights).sum().backward()
        (got * weights).sum().backward()
        for name, p in ours.named_parameters():
            assert_close(p.grad, renamed[name].grad, 1e-5, name)

    def test_decoding_is_equal(self, twins, seeded):
        theirs, ours, _ = twins
        tokens = seeded.integers(0, 64, 2, 13)
        with torch.no_grad():
            want, state = theirs(tokens).logits, None
            for i, token in enumerate(tokens.split(1, dim=1)):
                got, state = ours(token, state)
                assert_close(got[:, 0], want[:, i], 1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state_size": 0}, "state_size: expected a whole number >= 1, got 0"),
        ({"head_dim": 5}, r"head_dim: expected a divisor of 16 = expand \* d_model, got 5"),
        ({"groups": 3}, r"groups: expected a divisor of h=4 heads \(from expand \* d_model"),
        ({"groups": 0}, "groups: expected a whole number >= 1, got 0"),
        ({"conv_width": 1}, "conv_width: expected a whole number >= 2 <= 16, got 1"),
        ({"dt_min": 1e-5}, "dt_min: expected a finite number >= 0.0001, got 1e-05"),
        ({"dt_max": 1e-4}, "dt_max: expected a finite number >= 0.001, got 0.0001"),
        ({"dt_limit": (0.2, 0.1)}, r"dt_limit: expected 0 <= low < high, got \(0.2, 0.1\)"),
        ({"A_min": 0.0}, "A_min: expected a finite number >= 1e-06, got 0.0"),
        ({"A_max": 0.5}, "A_max: expected a finite number >= 1, got 0.5"),
    ],
)
def test_bad_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Mamba2Config(**{"head_dim": 4} | changes).build(8)


@pytest.mark.parametrize(
    ("x", "state", "message"),
    [
        ((1, 3, 5), None, r"x: expected \(b, t, 6\), got shape \(1, 3, 5\)"),
        ((1, 3, 6), (), "state: expected a Mamba2State or None, got tuple"),
        ((1, 3, 6), ((2, 22, 3), (1, 4, 3, 5)), r"state.conv: expected \(b, 22, 3\) with b=1"),
        ((1, 3, 6), ((1, 22, 3), (1, 4, 5, 3)), r"state.ssm: expected \(b, 4, 3, 5\), got shape"),
        ((1, 3, 6), (None, (1, 4, 3, 5)), "state.conv: expected a tensor, got None"),
    ],
)
def test_bad_inputs_and_states_are_named(x, state, message):
    if state:
        state = Mamba2State(*(s and torch.zeros(s).double() for s in state))
    with pytest.raises(ValueError, match=message):
        layer()(torch.zeros(x).double(), state)
