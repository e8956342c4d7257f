"""ssmlib.layers: the norm and the MLP against their formulas."""

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_close

from ssmlib.layers import MLPConfig, RMSNorm


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
