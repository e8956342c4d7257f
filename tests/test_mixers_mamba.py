"""ssmlib.mixers.mamba: as transformers' Mamba, in pieces, without its pieces, and as it starts."""

import pytest
import torch
from agreement import assert_close, tensors

from ssmlib.costs import ModelShape, parameters, state_bytes
from ssmlib.mixers.mamba import Mamba, MambaConfig, MambaState, inverse_softplus
from ssmlib.model import ModelConfig
from ssmlib.train import TrainConfig, param_groups

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ABLATIONS = {
    "whole": {},
    "no convolution": {"conv_width": None},
    "wide convolution": {"conv_width": 7},
    "no gate": {"gated": False},
    "only dt": {"selective": ("dt",)},
    "only B": {"selective": ("B",)},
    "only C": {"selective": ("C",)},
    "constant dt": {"selective": ("B", "C")},
    "time invariant": {"selective": ()},
    "learned norms": {"norms": "learned", "bias": True},
    "plain norms": {"norms": "plain", "conv_bias": False},
    "bare": {"conv_width": None, "gated": False, "selective": (), "expand": 1, "state_size": 1},
}


def layer(d=6, seed=0, **changes):
    torch.manual_seed(seed)
    return MambaConfig(**{"state_size": 3} | changes).build(d).double()


@pytest.mark.parametrize("cuts", [(4,), (1, 6), tuple(range(1, 9))])
@pytest.mark.parametrize("name", ABLATIONS)
def test_pieces_equal_the_whole(name, cuts, seeded):
    mixer, x = layer(**ABLATIONS[name]), seeded.normal(2, 9, 6)
    state, pieces = None, []
    for piece in x.tensor_split(cuts, dim=1):
        y, state = mixer(piece, state)
        pieces.append(y)
    whole, last = mixer(x)
    assert_close(torch.cat(pieces, dim=1), whole)
    assert len(tensors(state)) == len(tensors(last))
    for got, want in zip(tensors(state), tensors(last), strict=True):
        assert_close(got, want)


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_parameter_learns_and_no_token_sees_the_future(name, seeded):
    mixer, x = layer(**ABLATIONS[name]), seeded.normal(1, 7, 6)
    y, _ = mixer(x)
    other = x.clone()
    other[:, 4:] += 1
    assert torch.equal(mixer(other)[0][:, :4], y[:, :4])
    y.square().sum().backward()
    silent = [n for n, p in mixer.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("name", ABLATIONS)
def test_the_kernels_take_what_the_layer_gives_them(name, seeded):
    """Constants expanded over time, halves of a projection: strides that only a layer makes."""
    changes = ABLATIONS[name] | ({"state_size": 4} if "state_size" not in ABLATIONS[name] else {})
    fast, slow = (layer(**changes, backend=b).to(DEVICE).float() for b in ("triton", "reference"))
    x = seeded.normal(2, 19, 6).float().to(DEVICE)
    results = []
    for mixer in (fast, slow):
        y, state = mixer(x)
        again, _ = mixer(x[:, :3], state)
        (y.square().sum() + again.square().sum()).backward()
        results.append([y, again, *tensors(state), *(p.grad for p in mixer.parameters())])
    for got, want in zip(*results, strict=True):
        assert_close(got, want, 1e-5)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_one_token_goes_by_a_step_of_its_own(backend, seeded, monkeypatch):
    mixer = layer(state_size=4, backend=backend).to(DEVICE).float()
    x = seeded.normal(2, 6, 6).float().to(DEVICE)
    with torch.no_grad():
        whole, last = mixer(x)
        _, state = mixer(x[:, :5])
        monkeypatch.delattr("ssmlib.mixers.mamba.selective_scan")
        y, after = mixer(x[:, 5:], state)
    assert_close(y, whole[:, 5:], 1e-6)
    for got, want in zip(after, last, strict=True):
        assert_close(got, want, 1e-6)


def test_gradients_go_through_tokens_one_by_one(seeded):
    mixer, x = layer(), seeded.normal(2, 5, 6).requires_grad_()
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
    p, (b, t, _) = dict(mixer.named_parameters()), x.shape
    e, n = p["A_log"].shape
    rank = p["dt_proj.weight"].shape[1]
    past, h, ys = x.new_zeros(b, e, p["conv1d.weight"].shape[-1]), x.new_zeros(b, e, n), []
    for i in range(t):
        u = (p["in_proj.weight"] @ x[:, i, :, None])[..., 0] + p.get("in_proj.bias", 0)
        u, z = u.tensor_split(2, dim=1)
        past = torch.cat([past[..., 1:], u[..., None]], dim=2)
        u = (past * p["conv1d.weight"][:, 0]).sum(2) + p.get("conv1d.bias", 0)
        u = u * torch.sigmoid(u)
        low, B, C = (u @ p["x_proj.weight"].T).split([rank, n, n], dim=1)
        if mixer.config.norms is not None:
            low, B, C = (v / (v.square().mean(1, True) + 1e-6).sqrt() for v in (low, B, C))
        if mixer.config.norms == "learned":
            low, B, C = (
                v * p[f"{name}_layernorm.weight"]
                for v, name in zip((low, B, C), ("dt", "b", "c"), strict=True)
            )
        dt = torch.log1p(torch.exp(low @ p["dt_proj.weight"].T + p["dt_proj.bias"]))
        decay = torch.exp(-dt[..., None] * p["A_log"].exp())
        h = decay * h + (dt * u)[..., None] * B[:, None]
        y = (h * C[:, None]).sum(2) + p["D"] * u
        y = (y * z * torch.sigmoid(z)) @ p["out_proj.weight"].T
        ys.append(y + p.get("out_proj.bias", 0))
    return torch.stack(ys, dim=1)


@pytest.mark.parametrize("name", ["whole", "learned norms", "plain norms"])
def test_the_layer_is_its_equations(name, seeded):
    mixer, x = layer(**ABLATIONS[name]), seeded.normal(2, 9, 6)
    with torch.no_grad():  # so that no weight is 1 by its start alone
        for p in mixer.parameters():
            p.add_(0.2 * torch.randn_like(p))
    assert_close(mixer(x)[0], by_the_book(mixer, x))


def test_without_selection_the_layer_is_a_convolution(seeded):
    mixer = layer(conv_width=None, gated=False, selective=())
    x = seeded.normal(1, 8, 6)
    u = torch.nn.functional.silu(mixer.in_proj(x))
    dt = torch.nn.functional.softplus(mixer.dt_bias)[:, None]
    ages = torch.arange(8).double()[:, None, None]
    kernel = (mixer.C * mixer.B * dt * torch.exp(-ages * dt * mixer.A_log.exp())).sum(-1)  # (t e)
    y = torch.stack([(kernel[: i + 1].flip(0) * u[:, : i + 1]).sum(1) for i in range(8)], dim=1)
    assert_close(mixer(x)[0], mixer.out_proj(y + mixer.D * u))


def test_delta_is_the_step_of_the_scan(seeded):
    x = seeded.normal(2, 5, 6)
    mixer = layer()
    delta = mixer.delta(x)
    assert delta.shape == (2, 5, 12)
    _, state = mixer(x[:, :3])
    assert_close(mixer.delta(x[:, 3:], state), delta[:, 3:])
    constant = layer(selective=("B", "C"))
    steps = torch.nn.functional.softplus(constant.dt_bias)
    assert_close(constant.delta(x), steps.expand(2, 5, -1))


class TestStart:
    def test_poles_are_minus_one_to_minus_n(self):
        poles = -torch.exp(layer(state_size=5).A_log)
        assert_close(poles, -torch.arange(1.0, 6).expand(12, 5), 1e-6)

    @pytest.mark.parametrize("selective", [("dt", "B", "C"), ()])
    def test_steps_are_log_uniform_between_their_bounds(self, selective):
        mixer = layer(d=2048, state_size=1, dt_min=1e-3, dt_max=0.1, selective=selective)
        steps = torch.nn.functional.softplus(mixer._dt_bias())
        assert 1e-3 * (1 - 1e-5) <= steps.min() <= 1.1e-3
        assert 0.09 <= steps.max() <= 0.1 * (1 + 1e-5)
        quartiles = steps.log10().quantile(torch.tensor([0.25, 0.5, 0.75]).double())
        assert torch.allclose(quartiles, torch.tensor([-2.5, -2.0, -1.5]).double(), atol=0.06)

    def test_steps_depend_on_the_token_a_little(self):
        mixer = layer(d=64, dt_rank=16)
        weight = mixer.dt_proj.weight
        assert weight.abs().max() <= 16**-0.5
        assert weight.abs().max() >= 0.99 * 16**-0.5
        assert torch.equal(mixer.D, torch.ones(128).double())

    @pytest.mark.parametrize(("d", "rank"), [(1, 1), (16, 1), (17, 2), (768, 48)])
    def test_rank_is_a_sixteenth_rounded_up(self, d, rank):
        assert MambaConfig(expand=1, state_size=1).build(d).dt_proj.in_features == rank

    def test_inverse_softplus_where_it_is_hard(self):
        y = torch.logspace(-12, 2, 50, dtype=torch.float64)
        back = torch.nn.functional.softplus(inverse_softplus(y))
        assert ((back - y).abs() / y).max() < 1e-12

    def test_time_scales_are_slow_and_nothing_of_them_decays(self):
        model = ModelConfig(7, 8, "M", {"M": MambaConfig(state_size=3)}).build()
        groups = param_groups(model, TrainConfig(steps=1, lr=1e-2, weight_decay=0.1))
        names = {id(p): n.removeprefix("backbone.layers.0.") for n, p in model.named_parameters()}
        matrices, vectors, slow = ({names[id(p)] for p in g["params"]} for g in groups)
        assert slow == {"mixer.A_log", "mixer.dt_proj.bias"}
        assert vectors == {"mixer.D", "mixer.conv1d.bias", "norm.weight", "backbone.norm_f.weight"}
        assert matrices == {"embedding.weight", "mixer.conv1d.weight"} | {
            f"mixer.{name}_proj.weight" for name in ("in", "x", "dt", "out")
        }
        assert [g["weight_decay"] for g in groups] == [0.1, 0.0, 0.0]


def test_parameters_and_states_are_as_counted():
    shape = ModelShape("MM", 50, 24, 64, "a test", state=5, dt_rank=2, tied=True)
    model = ModelConfig(50, 24, "MM", {"M": MambaConfig(state_size=5)}).build()
    assert sum(p.numel() for p in model.parameters()) == parameters(shape)
    _, state = model(torch.zeros(3, 4, dtype=torch.long))
    held = sum(x.untyped_storage().nbytes() for x in tensors(state))  # no view of something long
    assert held == state_bytes(2, channels=48, state=5, conv=4, batch=3)


def test_a_model_is_one_graph_for_the_compiler(seeded):
    model = ModelConfig(50, 8, "M", {"M": MambaConfig(state_size=3)}).build()
    tokens = seeded.integers(0, 50, 2, 7)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        want, state = model(tokens)
    got, last = compiled(tokens)
    assert_close(got, want)
    for one, other in zip(tensors(last), tensors(state), strict=True):
        assert_close(one, other)
    assert_close(compiled(tokens, state)[0], model(tokens, state)[0])
    got.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "state_size": 8,
    "num_hidden_layers": 2,
    "time_step_rank": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture(scope="module")
def twins():
    """A random Mamba of transformers, and ours with its weights, drawn so that all matter."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.MambaForCausalLM(transformers.MambaConfig(**TINY)).eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if not name.endswith(("A_log", "dt_proj.bias")):
                p.add_(0.2 * torch.randn_like(p))
    glyph = MambaConfig(state_size=8, dt_rank=4)
    ours = ModelConfig(64, 32, "MM", {"M": glyph}).build()
    weights = {n.replace("embeddings", "embedding"): p for n, p in theirs.state_dict().items()}
    weights = {n.replace("backbone.embedding.", "embedding."): p for n, p in weights.items()}
    ours.load_state_dict(weights, strict=True)
    return theirs, ours


class TestAgainstTransformers:
    def test_logits_and_gradients_are_equal(self, twins, seeded):
        theirs, ours = twins
        tokens = seeded.integers(0, 64, 2, 33)
        weights = seeded.normal(2, 33, 64).float()
        want, (got, _) = theirs(tokens).logits, ours(tokens)
        assert_close(got, want, 1e-5)
        (want * weights).sum().backward()
        (got * weights).sum().backward()
        wanted = {n.split("embeddings.")[-1]: p.grad for n, p in theirs.named_parameters()}
        for name, p in ours.named_parameters():
            assert_close(p.grad, wanted[name.split("embedding.")[-1]], 1e-5, name)

    def test_decoding_is_equal(self, twins, seeded):
        theirs, ours = twins
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
        ({"expand": 1.5}, "expand: expected a whole number >= 1, got 1.5"),
        ({"dt_rank": 0}, "dt_rank: expected a whole number >= 1, got 0"),
        ({"conv_width": 1}, "conv_width: expected a whole number >= 2 <= 16, got 1"),
        ({"conv_width": 17}, "conv_width: expected a whole number >= 2 <= 16, got 17"),
        ({"dt_min": 1e-5}, "dt_min: expected a finite number >= 0.0001, got 1e-05"),
        ({"dt_max": 1e-4}, "dt_max: expected a finite number >= 0.001, got 0.0001"),
        ({"selective": ("dt", "A")}, r"selective: expected a tuple of dt, B, C, got \('dt', 'A'\)"),
        ({"selective": "B"}, "selective: expected a tuple of dt, B, C, got 'B'"),
        ({"norms": "rms"}, "norms: expected None, 'plain' or 'learned', got 'rms'"),
        ({"norm_eps": -1.0}, "norm_eps: expected a finite number >= 0, got -1.0"),
    ],
)
def test_bad_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        MambaConfig(**changes).build(8)


@pytest.mark.parametrize(
    ("x", "state", "message"),
    [
        ((1, 3, 5), None, r"x: expected \(b, t, 6\), got shape \(1, 3, 5\)"),
        ((1, 3, 6), (), "state: expected a MambaState or None, got tuple"),
        ((1, 3, 6), ((2, 12, 3), (1, 12, 3)), r"state.conv: expected \(b, 12, 3\) with b=1"),
        ((1, 3, 6), ((1, 12, 3), (1, 12, 4)), r"state.ssm: expected \(b, 12, 3\), got shape"),
        ((1, 3, 6), (None, (1, 12, 3)), r"state.conv: expected \(b, 12, 3\), got None"),
    ],
)
def test_bad_inputs_and_states_are_named(x, state, message):
    if state:
        state = MambaState(*(s and torch.zeros(s).double() for s in state))
    with pytest.raises(ValueError, match=message):
        layer()(torch.zeros(x).double(), state)


def test_a_state_with_a_convolution_is_refused_by_a_layer_without():
    _, state = layer()(torch.zeros(1, 2, 6).double())
    with pytest.raises(ValueError, match=r"state\.conv: expected None, as conv_width is"):
        layer(conv_width=None)(torch.zeros(1, 2, 6).double(), state)


@pytest.mark.gpu
class TestOnAGPU:
    @pytest.mark.parametrize("name", ABLATIONS)
    @pytest.mark.parametrize("t", [1, 65, 1000])
    def test_equals_the_reference(self, name, t, seeded):
        changes = ABLATIONS[name] | {"state_size": 16, "expand": 2}
        torch.manual_seed(0)
        ours = Mamba(48, MambaConfig(**changes)).cuda()
        slow = Mamba(48, MambaConfig(**changes, backend="reference")).double().cuda()
        slow.load_state_dict(ours.state_dict())
        x = seeded.normal(2, t, 48).cuda()
        start, got_state = ours(x.float())
        again, _ = ours(x.float(), got_state)
        want, want_state = slow(x)
        later, _ = slow(x, want_state)
        assert_close(start, want, 1e-5)
        assert_close(again, later, 1e-5)
        (start.square().sum() + again.square().sum()).backward()
        (want.square().sum() + later.square().sum()).backward()
        for (label, p), q in zip(ours.named_parameters(), slow.parameters(), strict=True):
            assert_close(p.grad, q.grad, 1e-4, label)

    def test_trains_in_bfloat16(self, seeded):
        mixer, x = MambaConfig().build(64).cuda(), seeded.normal(2, 300, 64).float().cuda()
        exact, _ = mixer(x)
        with torch.autocast("cuda", torch.bfloat16):
            y, _ = mixer(x)
            y.float().square().mean().backward()
        assert_close(y.float(), exact, 2e-2)
        assert all(p.grad.isfinite().all() for p in mixer.parameters())
