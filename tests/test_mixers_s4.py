"""ssmlib.mixers.s4 and .h3: pieces equal the whole, one set of weights, and what is refused."""

import pytest
import torch
from test_s4 import assert_close

from ssmlib.mixers.h3 import H3Config, ShiftSystem
from ssmlib.mixers.s4 import S4Config, S4DConfig
from ssmlib.s4 import poles

CONFIGS = {
    "s4": S4Config(state_size=8),
    "s4 random, linear": S4Config(state_size=8, init="random", activation="none", gated=False),
    "s4d": S4DConfig(state_size=8),
    "s4d bilinear": S4DConfig(state_size=8, init="lin", method="bilinear"),
    "h3": H3Config(state_size=8, shift_size=4),
    "h3 with heads": H3Config(state_size=8, shift_size=5, head_dim=3),
}
BOTH = {"s4": S4Config, "s4d": S4DConfig}


def build(config, d=6, dtype=torch.float64):
    torch.manual_seed(0)
    return config.build(d).to(dtype)


def run(mixer, x, pieces, state=None):
    outputs = []
    for piece in x.split(pieces, dim=1):
        y, state = mixer(piece, state)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


def tensors(state):
    return [state] if isinstance(state, torch.Tensor) else list(state)


@pytest.mark.parametrize("pieces", [[1] * 40, [39, 1], [1, 39], [2, 3, 30, 5], [40]])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_pieces_equal_the_whole_with_gradients(config, pieces, seeded):
    mixer, x, cotangent = build(config), seeded.normal(2, 40, 6), seeded.normal(2, 40, 6)
    results = []
    for cuts in (pieces, [40]):
        y, state = run(mixer, x, cuts)
        loss = (y * cotangent).sum() + sum(z.abs().square().sum() for z in tensors(state))
        results.append([y, *tensors(state), *torch.autograd.grad(loss, list(mixer.parameters()))])
    for got, want in zip(*results, strict=True):
        assert_close(got, want)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_decoding_in_float32_gives_the_same_outputs(config, seeded):
    mixer, x = build(config, dtype=torch.float32), seeded.normal(2, 40, 6).float()
    assert_close(run(mixer, x, [1] * 40)[0], mixer(x)[0])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_bfloat16_keeps_a_float32_state(config, seeded):
    mixer = build(config, dtype=torch.float32)
    x = seeded.normal(2, 40, 6).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y, state = mixer(x)
    assert y.dtype == torch.bfloat16
    assert {z.dtype for z in tensors(state)} <= {torch.float32, torch.complex64}
    assert_close(y, mixer(x.float())[0], 3e-2)
    assert build(config, dtype=torch.bfloat16)(x)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_causal_and_batch_independent(config, seeded):
    mixer, x = build(config), seeded.normal(2, 40, 6)
    changed = x.clone()
    changed[:, 20:] += 1
    changed[1] += 1
    assert_close(mixer(changed)[0][0, :20], mixer(x)[0][0, :20])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_learns(config, seeded):
    mixer, x = build(config), seeded.normal(4, 20, 6)
    target = x.roll(3, dims=1)
    optimizer = torch.optim.Adam(mixer.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = (mixer(x)[0] - target)[:, 3:].square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in mixer.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("config", BOTH.values(), ids=BOTH)
def test_bidirectional_sees_both_ways(config, seeded):
    mixer, x = build(config(state_size=8, bidirectional=True)), seeded.normal(2, 40, 6)
    y, state = mixer(x)
    assert state is None
    changed = x.clone()
    changed[:, 20] += 1
    moved = (mixer(changed)[0] - y).abs().amax((0, 2)) > 1e-12
    assert moved.all()


@pytest.mark.parametrize("config", BOTH.values(), ids=BOTH)
def test_bidirectional_is_one_kernel_each_way(config, seeded):
    mixer = build(config(state_size=8, bidirectional=True, activation="none", gated=False))
    x = seeded.normal(1, 30, 6)
    past, future = mixer.kernel.kernels(30)
    u = mixer.D * x
    for t in range(30):
        for s in range(30):
            u[:, t] += x[:, s] * (past[:, t - s] if s <= t else future[:, s - t - 1])
    assert_close(mixer(x)[0], mixer.output_linear(u))


@pytest.mark.parametrize("config", BOTH.values(), ids=BOTH)
def test_parameters_start_where_the_papers_say(config):
    mixer = build(config(state_size=16, init="lin", dt_min=0.01, dt_max=0.05), d=50).kernel
    dt, A = mixer.log_dt.exp(), torch.complex(-mixer.log_A_real.exp(), mixer.A_imag)
    assert dt.min() >= 0.01 - 1e-9
    assert dt.max() <= 0.05 + 1e-9
    assert_close(A, poles("lin", 16, 50), 1e-6)
    shapes = {name: tuple(p.shape) for name, p in mixer.named_parameters()}
    wanted = {"log_dt": (50,), "log_A_real": (50, 8), "A_imag": (50, 8)}
    wanted |= dict.fromkeys(["B", "C"] + ["P"] * (config is S4Config), (50, 8, 2))
    assert shapes == wanted


@pytest.mark.parametrize("config", BOTH.values(), ids=BOTH)
def test_real_parts_stay_negative(config, seeded):
    mixer, x = build(config(state_size=8)), seeded.normal(2, 20, 6)
    with torch.no_grad():
        mixer.kernel.log_A_real += 30 * seeded.normal(*mixer.kernel.log_A_real.shape)
    assert mixer(x)[0].isfinite().all()


@pytest.mark.parametrize("config", BOTH.values(), ids=BOTH)
def test_what_sets_time_is_named_for_the_optimizer(config):
    mixer = build(config(state_size=8, bidirectional=True))
    slow = {f"kernel.{name}" for name in mixer.kernel.slow}
    rest = {"D", "kernel.C", "kernel.C_future", "output_linear.weight", "output_linear.bias"}
    assert slow | rest == {name for name, _ in mixer.named_parameters()}
    assert not slow & rest


@pytest.mark.parametrize("config", BOTH.values(), ids=BOTH)
def test_frozen_parameters_do_not_move(config, seeded):
    mixer = build(config(state_size=8, freeze=("A", "dt")))
    frozen = {name for name, p in mixer.named_parameters() if not p.requires_grad}
    assert frozen == {"kernel.log_A_real", "kernel.A_imag", "kernel.log_dt"}
    mixer(seeded.normal(2, 20, 6))[0].sum().backward()
    assert mixer.kernel.log_dt.grad is None
    assert mixer.kernel.B.grad is not None


def test_dropout_only_in_training(seeded):
    mixer, x = build(S4DConfig(state_size=8, dropout=0.5)), seeded.normal(2, 20, 6)
    assert not torch.equal(mixer(x)[0], mixer(x)[0])
    mixer.eval()
    assert torch.equal(mixer(x)[0], mixer(x)[0])


def test_h3_stores_what_the_last_key_says_about_this_value(seeded):
    """With a shift by one and no decay, y_t = q_t sum_{s<=t} k_{s-1} v_s: a lookup in a sum."""
    mixer, x = build(H3Config(state_size=2, shift_size=2)), seeded.normal(1, 12, 6)
    with torch.no_grad():
        mixer.shift.C.copy_(torch.tensor([0.0, 1.0]).expand(6, 2))
        mixer.kernel.log_A_real.fill_(-40.0)
        mixer.kernel.A_imag.zero_()
        mixer.kernel.C.copy_(torch.tensor([0.5, 0.0]).expand(6, 1, 2))
        mixer.D.zero_()
    q, k, v = mixer.q_proj(x), mixer.k_proj(x), mixer.v_proj(x)
    before = torch.cat([torch.zeros_like(k[:, :1]), k[:, :-1]], dim=1)
    dt = mixer.kernel.log_dt.exp()
    want = mixer.output_linear(q * (dt * before * v).cumsum(1))
    assert_close(mixer(x)[0], want, 1e-8)


def test_shift_is_a_convolution_with_its_weights(seeded):
    shift, x = ShiftSystem(3, 4).double(), seeded.normal(2, 10, 3)
    want = torch.nn.functional.conv1d(
        torch.nn.functional.pad(x.mT, (3, 0)), shift.C.flip(1)[:, None], groups=3
    )
    assert_close(shift(x)[0], want.mT)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_superposition_holds_before_the_pointwise_function(config, seeded):
    """Linear and time invariant: what H3's gates and S4's activation add is not in the system."""
    kernel = build(config).kernel
    x, z = (seeded.normal(2, 20, kernel.B.shape[0]) for _ in range(2))
    assert_close(
        kernel(2 * x + z, None, None)[0], 2 * kernel(x, None, None)[0] + kernel(z, None, None)[0]
    )


def test_refusals(seeded):
    x = seeded.normal(2, 20, 6)
    mixer, h3 = build(S4DConfig(state_size=8)), build(H3Config(state_size=8, shift_size=4))
    with pytest.raises(ValueError, match=r"x: expected \(b, t, 6\), got shape \(2, 20, 5\)"):
        mixer(x[..., :5])
    with pytest.raises(ValueError, match=r"state: expected \(b, d, n\) with .*n=4"):
        mixer(x, build(S4DConfig(state_size=16))(x)[1])
    with pytest.raises(ValueError, match=r"state.h: expected \(2, 1, 1, 6, 4\), got"):
        h3(x, build(H3Config(state_size=16, shift_size=4))(x)[1])
    with pytest.raises(
        ValueError, match=r"state.keys: expected \(2, 3, 6\), got shape \(2, 7, 6\)"
    ):
        h3(x, build(H3Config(state_size=8, shift_size=8))(x)[1])
    both = build(S4DConfig(state_size=8, bidirectional=True))
    with pytest.raises(ValueError, match="state: expected None for a bidirectional layer"):
        both(x, mixer(x)[1])


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (S4DConfig(state_size=7), "n: expected an even number"),
        (S4Config(state_size=0), "n: expected a whole number >= 2"),
        (S4Config(init="hippo"), "init: expected one of legs"),
        (S4DConfig(activation="tanh"), "activation: expected one of gelu, silu, none"),
        (S4DConfig(freeze=("P",)), "freeze: expected names of A, B, C, dt, got 'P'"),
        (S4Config(freeze=("Lambda",)), "freeze: expected names of A, P, B, C, dt, got 'Lambda'"),
        (S4DConfig(dt_min=0.5), "dt_max: expected a finite number >= 0.5"),
        (S4DConfig(method="euler"), "method: expected one of zoh, bilinear, got 'euler'"),
        (H3Config(head_dim=4), "head_dim: expected a divisor of d_model=6, got 4"),
        (H3Config(shift_size=1), "shift_size: expected a whole number >= 2, got 1"),
    ],
)
def test_configurations_that_cannot_be(config, told):
    with pytest.raises(ValueError, match=told):
        config.build(6)
