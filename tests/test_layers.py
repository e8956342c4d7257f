"""ssmlib.layers: the norm and the MLP against their formulas."""

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_close

from ssmlib.layers import MLPConfig, NormConfig, Residual, RMSNorm, SharedConfig
from ssmlib.layers.norm import PLACES
from ssmlib.layers.place import hold, step_
from ssmlib.mixers.attention import AttentionConfig
from ssmlib.model import ModelConfig


def test_the_norm_is_its_formula(seeded):
    norm, x = RMSNorm(7, eps=1e-3).double(), seeded.normal(2, 3, 7)
    norm.weight.data = seeded.normal(7)
    assert_close(norm(x), norm.weight * x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt())


def test_the_norm_of_half_precision_is_computed_in_float32(seeded):
    x = 300 * seeded.normal(4, 64).half()  # the square of 300 is no float16
    y = RMSNorm(64)(x)
    assert y.dtype == torch.float16
    assert_close(y, RMSNorm(64)(x.float()), 1e-3)


def test_the_mlp_is_its_formula(seeded):
    x = seeded.normal(2, 5, 6)
    mlp = MLPConfig(hidden=9).build(6).double()
    gate, up, down = (p.weight for p in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    y, state = mlp(x)
    assert_close(y, (F.silu(x @ gate.mT) * (x @ up.mT)) @ down.mT)
    assert state is None
    plain = MLPConfig(hidden=9, gated=False).build(6).double()
    assert_close(plain(x)[0], F.gelu(x @ plain.up_proj.weight.mT) @ plain.down_proj.weight.mT)


@pytest.mark.parametrize(
    ("d", "gated", "hidden"), [(4096, True, 10944), (64, True, 192), (24, False, 96)]
)
def test_the_usual_width(d, gated, hidden):
    with torch.device("meta"):
        assert MLPConfig(gated=gated).build(d).up_proj.out_features == hidden


def test_wrong_shapes_and_states_are_named(seeded):
    with pytest.raises(ValueError, match=r"x: expected \(\.\.\., 7\), got shape \(2, 6\)"):
        RMSNorm(7)(torch.zeros(2, 6))
    with pytest.raises(ValueError, match="state: expected None, an MLP has none, got Tensor"):
        MLPConfig().build(8)(torch.zeros(1, 2, 8), torch.zeros(1))
    with pytest.raises(ValueError, match="hidden: expected a whole number >= 1, got 0"):
        MLPConfig(hidden=0).build(8)


@pytest.mark.parametrize(
    ("name", "function"),
    [("gelu", F.gelu), ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh")), ("relu", F.relu)],
)
def test_other_activations_and_biases(name, function, seeded):
    x, mlp = seeded.normal(2, 5, 6), MLPConfig(9, activation=name, bias=True).build(6).double()
    want = mlp.down_proj(function(mlp.gate_proj(x)) * mlp.up_proj(x))
    assert_close(mlp(x)[0], want)
    assert len(list(mlp.parameters())) == 6
    with pytest.raises(ValueError, match=r"activation: expected one of silu, .*, got 'tanh'"):
        MLPConfig(activation="tanh").build(6)


def test_an_offset_is_added_to_the_norm_s_weight(seeded):
    norm, x = RMSNorm(7, offset=1.0).double(), seeded.normal(3, 7)
    assert norm.weight.eq(0).all()
    assert_close(norm(x), RMSNorm(7).double()(x))
    norm.weight.data = seeded.normal(7)
    assert_close(norm(x), RMSNorm(7).double()(x) * (1 + norm.weight))


def test_where_norms_stand(seeded):
    x, mlp = seeded.normal(2, 5, 6), MLPConfig(9).build(6).double()
    pre, post, both = (Residual(6, mlp, NormConfig(place=p)).double() for p in PLACES)
    n = RMSNorm(6).double()
    assert_close(pre(x)[0], x + mlp(n(x))[0])
    assert_close(post(x)[0], n(x + mlp(x)[0]))
    assert_close(both(x)[0], x + n(mlp(n(x))[0]))
    with pytest.raises(ValueError, match="place: expected one of pre, post, both, got 'mid'"):
        NormConfig(place="mid").build(6)


def test_a_shared_glyph_has_one_set_of_weights(seeded):
    config = SharedConfig(AttentionConfig(heads=2))
    shared = ModelConfig(11, 8, "*-*", {"*": config, "-": MLPConfig(12)}).build().double()
    own = ModelConfig(11, 8, "*-*", {"*": config.mixer, "-": MLPConfig(12)}).build().double()
    sizes = [sum(p.numel() for p in m.parameters()) for m in (shared, own)]
    assert sizes[1] - sizes[0] == 8 + 4 * 8 * 8
    tokens = seeded.integers(0, 11, 2, 6)
    own.load_state_dict(shared.state_dict())
    logits, state = shared(tokens)
    want, others = own(tokens)
    assert_close(logits, want)
    assert state[0].k.data_ptr() != state[2].k.data_ptr()
    assert_close(state[2].k, others[2].k)
    logits.square().sum().backward()
    want.square().sum().backward()
    first, last = (own.backbone.layers[i].mixer.q_proj.weight.grad for i in (0, 2))
    assert_close(shared.backbone.layers[0].mixer.q_proj.weight.grad, first + last)


class Memory(torch.nn.Module):
    """Sums, and the last `kept` tokens, or all of them."""

    def __init__(self, kept):
        super().__init__()
        self.kept = kept

    def forward(self, x, state):
        past, count = (x[:, :0], 0) if state is None else state
        seen = torch.cat([past, x], dim=1)
        return seen.sum(1, keepdim=True), (seen[:, -self.kept :], count)


@pytest.mark.parametrize("kept", [2, 100])
def test_a_step_in_place_of_a_mixer_that_has_none(kept, seeded):
    """What keeps its shape stays where it is; what grows takes the place of what was there."""
    x, memory = seeded.normal(2, 8, 3), Memory(kept)
    _, state = memory(x[:, :2], None)
    place, by_value = hold(memory, state, 6), state
    where = place[0][0].data_ptr()
    for t in range(2, 8):
        token = x[:, t : t + 1]
        want, by_value = memory(token, by_value)
        assert_close(step_(memory, token, place), want)
    assert (place[0][0].data_ptr() == where) == (kept == 2)
    assert_close(place[0][0], by_value[0])
    assert_close(state[0], x[:, :2])  # what it was made from is as it was
