"""ssmlib.mixers.rglru: the paper's formulas, where a starts, one token as many."""

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_close, tensors

from ssmlib.mixers.rglru import EXPONENT, Gates, RGLRUConfig, RGLRUState

CONFIG = RGLRUConfig(width=12, heads=3)


def layer(config=CONFIG, d=8):
    torch.manual_seed(0)
    return config.build(d).double()


def by_the_paper(layer, x):
    """Section 2.4 of Griffin, one token after another."""
    c, gates = layer.config, layer.rg_lru
    e, taps = layer.linear_x.out_features, layer.conv_1d.weight.squeeze(1)
    u = F.pad(layer.linear_x(x), (0, 0, c.conv_width - 1, 0)).unfold(1, c.conv_width, 1)
    u = (u * taps).sum(-1) + layer.conv_1d.bias
    a = torch.sigmoid(-gates.recurrent_param)
    h, out = x.new_zeros(len(x), e), []
    for t in range(x.shape[1]):
        parts = u[:, t].unflatten(1, (c.heads, -1))
        r, i = (
            torch.sigmoid(
                torch.stack([parts[:, j] @ w[j] + b[j] for j in range(c.heads)], dim=1).flatten(1)
            )
            for w, b in (
                (gates.recurrent_gate_weight, gates.recurrent_gate_bias),
                (gates.input_gate_weight, gates.input_gate_bias),
            )
        )
        decay = a ** (EXPONENT * r)
        gain = 1.0 if t == 0 and c.first_whole else torch.sqrt(1 - decay**2)
        h = decay * h + gain * i * u[:, t]
        out.append(h)
    y = F.gelu(layer.linear_y(x), approximate="tanh")
    return layer.linear_out(torch.stack(out, dim=1) * y), h


@pytest.mark.parametrize("first_whole", [True, False])
def test_it_is_the_paper_s(first_whole, seeded):
    made, x = layer(RGLRUConfig(width=12, heads=3, first_whole=first_whole)), seeded.normal(2, 9, 8)
    y, state = made(x)
    want, h = by_the_paper(made, x)
    assert_close(y, want)
    assert_close(state.h, h)
    loss = [f.square().sum() for f in (y, want)]
    grads = (torch.autograd.grad(one, list(made.parameters())) for one in loss)
    for got, wanted in zip(*grads, strict=True):
        assert_close(got, wanted)


def test_where_a_starts():
    """a^c is uniform between .9 and .999, c = 8: its mean, its ends and its quartiles."""
    torch.manual_seed(0)
    param = Gates(20000, RGLRUConfig(heads=2000)).recurrent_param.double()
    powered = torch.sigmoid(-param) ** EXPONENT
    assert 0.9 - 1e-4 < powered.min() < 0.901
    assert 0.998 < powered.max() < 0.999 + 1e-4
    quartiles = torch.quantile(powered, torch.tensor([0.25, 0.5, 0.75]).double())
    want = 0.9 + 0.099 * torch.tensor([0.25, 0.5, 0.75]).double()
    assert (quartiles - want).abs().max() < 0.003


@pytest.mark.parametrize("cuts", [(4,), (1, 6), tuple(range(1, 9))])
def test_pieces_equal_the_whole(cuts, seeded):
    made, x = layer(), seeded.normal(2, 9, 8)
    state, pieces = None, []
    for piece in x.tensor_split(cuts, dim=1):
        y, state = made(piece, state)
        pieces.append(y)
    whole, last = made(x)
    assert_close(torch.cat(pieces, dim=1), whole)
    for got, want in zip(tensors(state), tensors(last), strict=True):
        assert_close(got, want)


def test_a_step_in_place_is_the_step(seeded):
    made, x = layer(), seeded.normal(2, 9, 8)
    with torch.no_grad():
        want, last = made(x)
        _, state = made(x[:, :4])
        place = RGLRUState(*(s.clone() for s in state))
        where = [s.data_ptr() for s in place]
        got = [made.step_(x[:, t : t + 1], place) for t in range(4, 9)]
    assert_close(torch.cat(got, dim=1), want[:, 4:])
    assert_close(place.h, last.h)
    assert [s.data_ptr() for s in place] == where


def test_half_precision_keeps_a_wide_state(seeded):
    made, x = layer().to(torch.bfloat16), seeded.normal(2, 65, 8)
    y, state = made(x.bfloat16())
    assert y.dtype == state.conv.dtype == torch.bfloat16
    assert state.h.dtype == torch.float32
    assert_close(y, made.double()(x)[0], 3e-2)


def test_where_nothing_is_forgotten_gradients_are_finite(seeded):
    made, x = layer(), seeded.normal(1, 5, 8).requires_grad_()
    torch.nn.init.constant_(made.rg_lru.recurrent_param, -800.0)  # a is 1 to all digits
    made(x)[0].sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in made.parameters())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": 5}, "heads: expected a divisor of width=8, got 5"),
        ({"heads": 0}, "heads: expected a whole number >= 1, got 0"),
        ({"width": 0}, "width: expected a whole number >= 1, got 0"),
        ({"conv_width": 17}, "conv_width: expected a whole number >= 2 <= 16, got 17"),
        ({"a_min": 0.0}, "a_min: expected a finite number >= 1e-06 <= 0.999999, got 0.0"),
        ({"a_max": 0.5}, "a_max: expected a finite number >= 0.9, got 0.5"),
        ({"activation": "tanh"}, "activation: expected one of silu, gelu, .*, got 'tanh'"),
    ],
)
def test_bad_configurations_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        RGLRUConfig(**wrong).build(8)


def test_states_of_another_layer_are_refused(seeded):
    made, x = layer(), seeded.normal(2, 3, 8)
    _, state = made(x)
    with pytest.raises(ValueError, match="state: expected an RGLRUState or None, got tuple"):
        made(x, tuple(state))
    with pytest.raises(ValueError, match=r"state.h: expected \(b, 12\) with b=2 \(from x\), got"):
        made(x, state._replace(h=state.h[:1]))
    with pytest.raises(ValueError, match=r"state.conv: expected \(b, 12, 3\), got shape \(2, 12"):
        made(x, state._replace(conv=state.conv[:, :, :2]))
