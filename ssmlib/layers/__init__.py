"""What stands between the mixers: norms, residual layers, and what mixes channels and not time.

norm       RMSNorm: x / sqrt(mean(x²) + eps) * weight
gated      GatedRMSNorm: RMSNorm of y silu(z), or of y and then silu(z), by groups
rows       products of a few rows: a norm, a sum and a convolution in the launch of the product
residual   Residual: x + mixer(norm(x)), and the same weights in several places
mlp        MLP: down_proj(silu(gate_proj(x)) * up_proj(x)); ungated: down_proj(gelu(up_proj(x)))
moe        MoE: a router sends each token to a few of many MLPs
int8       the experts of a mixture in eight bits
either     Either: two mixers and a gate, by place or by token
depths     Depths: a mixer for some of a sequence's tokens
"""

from ssmlib.layers.depths import Depths, DepthsConfig
from ssmlib.layers.either import Either, EitherConfig, shares
from ssmlib.layers.gated import GatedRMSNorm
from ssmlib.layers.int8 import Int8Experts, quantize_experts
from ssmlib.layers.mlp import ACTIVATIONS, MLP, MLPConfig
from ssmlib.layers.moe import MoE, MoEConfig, balance_loss, load_balance
from ssmlib.layers.norm import NormConfig, RMSNorm
from ssmlib.layers.place import hold, step_
from ssmlib.layers.residual import MixerConfig, Residual, SharedConfig, layers_of

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "Depths",
    "DepthsConfig",
    "Either",
    "EitherConfig",
    "GatedRMSNorm",
    "Int8Experts",
    "MLPConfig",
    "MixerConfig",
    "MoE",
    "MoEConfig",
    "NormConfig",
    "RMSNorm",
    "Residual",
    "SharedConfig",
    "balance_loss",
    "hold",
    "layers_of",
    "load_balance",
    "quantize_experts",
    "shares",
    "step_",
]
