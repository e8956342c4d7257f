"""Experts in eight bits, all else as it is: AI21's ExpertsInt8.

    q = round(w / s),  s = max |w| / 127 over the inputs of each output channel;   w ~ s q

Most weights of a mixture are its experts', and of those most are idle for any one token: their
bytes are what a machine must have room for. They are kept as int8 and made into the dtype of the
scales when a layer is called; a kernel for a GPU does so tile by tile, inside the product.
Source: Jamba-1.5 (arXiv 2408.12570), section 3.
"""

import torch
from torch import Tensor, nn

from ssmlib.layers.moe import Experts, MoE
from ssmlib.shapes import check

LEVELS = 127


def quantize(w: Tensor) -> tuple[Tensor, Tensor]:
    """w (..., d, k), d outputs of k inputs, to int8 of that shape and scales (..., d, 1) like w.

    No number moves by more than half of its scale; a channel of zeros stays one.
    """
    check(w=(w, "... d k"))
    wide = w.to(torch.promote_types(w.dtype, torch.float32))
    scale = (wide.abs().amax(-1, keepdim=True) / LEVELS).to(w.dtype)
    steps = wide / scale.to(wide.dtype).clamp_min(torch.finfo(wide.dtype).tiny)
    return steps.round().clamp(-LEVELS, LEVELS).to(torch.int8), scale


class Int8Experts(nn.Module):
    """What `Experts` has, gate_up_proj and down_proj, made from int8 at every access."""

    def __init__(self, experts: Experts):
        super().__init__()
        for name in ("gate_up_proj", "down_proj"):
            q, scale = quantize(getattr(experts, name).detach())
            self.register_buffer(f"{name}_q", q)
            self.register_buffer(f"{name}_scale", scale)

    @property
    def gate_up_proj(self) -> Tensor:
        return self.gate_up_proj_q.to(self.gate_up_proj_scale.dtype) * self.gate_up_proj_scale

    @property
    def down_proj(self) -> Tensor:
        return self.down_proj_q.to(self.down_proj_scale.dtype) * self.down_proj_scale


def quantize_experts(model: nn.Module) -> int:
    """Put the experts of every `MoE` of a model into int8, in place; return how many weights.

    They are no parameters any more, and no longer train. Raises ValueError for a model without
    experts, or whose experts are int8 already.
    """
    mixtures = [m for m in model.modules() if isinstance(m, MoE)]
    if not mixtures or any(isinstance(m.experts, Int8Experts) for m in mixtures):
        raise ValueError("model: expected mixtures of experts that are not yet quantized")
    count = 0
    for m in mixtures:
        count += sum(p.numel() for p in m.experts.parameters())
        m.experts = Int8Experts(m.experts)
    return count
