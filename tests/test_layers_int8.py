"""ssmlib.layers.int8: half a step of error, a quarter of float32's bytes."""

import pytest
import torch
from agreement import assert_close, error

from ssmlib.layers import MLPConfig, MoEConfig, quantize_experts
from ssmlib.layers.int8 import Int8Experts, quantize
from ssmlib.model import ModelConfig


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_no_number_moves_by_more_than_half_a_step(dtype, seeded):
    """eq-int8."""
    w = (seeded.normal(3, 5, 64) * torch.logspace(-6, 6, 5).double()[:, None]).to(dtype)
    q, scale = quantize(w)
    assert (q.dtype, scale.dtype, scale.shape) == (torch.int8, dtype, (3, 5, 1))
    off = (q.double() * scale.double() - w.double()).abs() / scale.double()
    assert off.max() <= (0.5 + 1e-6 if dtype != torch.bfloat16 else 1.0)
    assert (q.amax(-1) == 127).logical_or(q.amin(-1) == -127).all()


def test_a_channel_of_zeros_stays_one():
    q, scale = quantize(torch.zeros(2, 3))
    assert not q.any()
    assert not scale.any()


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_a_mixture_is_nearly_what_it_was(backend, seeded):
    torch.manual_seed(0)
    layer = MoEConfig(experts=6, active=2, hidden=48, backend=backend).build(64).double()
    x = seeded.normal(2, 33, 64)
    before = layer(x)[0]
    weights = sum(p.numel() for p in layer.experts.parameters())
    assert quantize_experts(layer) == weights == 6 * 3 * 48 * 64
    assert 1e-4 < error(layer(x)[0], before) < 1e-2
    assert isinstance(layer.experts, Int8Experts)
    assert not list(layer.experts.parameters())
    assert_close(layer.experts.down_proj, layer.experts.down_proj_q * layer.experts.down_proj_scale)
    kept = sum(b.numel() for b in layer.experts.buffers() if b.dtype == torch.int8)
    assert kept == weights


def test_a_model_still_trains_what_is_left():
    torch.manual_seed(0)
    legend = {"E": MoEConfig(experts=2, active=1, hidden=8), "-": MLPConfig(8)}
    model = ModelConfig(7, 8, "E-E", legend).build()
    quantize_experts(model)
    logits, _ = model(torch.tensor([[1, 2, 3]]))
    logits.sum().backward()
    names = {name for name, p in model.named_parameters() if p.grad is not None}
    assert any("router" in name for name in names)
    assert not any("experts" in name for name in names)
    copy = ModelConfig(7, 8, "E-E", legend).build()
    quantize_experts(copy)
    copy.load_state_dict(model.state_dict())
    assert_close(copy(torch.tensor([[1, 2, 3]]))[0], logits.detach())


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="expected mixtures of experts"):
        quantize_experts(MLPConfig(8).build(8))
    layer = MoEConfig(experts=2, active=1, hidden=8).build(8)
    quantize_experts(layer)
    with pytest.raises(ValueError, match="not yet quantized"):
        quantize_experts(layer)
