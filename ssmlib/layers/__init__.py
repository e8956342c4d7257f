"""What stands between the mixers: norms, residual layers, and what mixes channels and not time.

norm       RMSNorm: x / sqrt(mean(x²) + eps) * weight
gated      GatedRMSNorm: RMSNorm of y silu(z), or of y and then silu(z), by groups
residual   Residual: x + mixer(norm(x)), and the same weights in several places
mlp        MLP: down_proj(silu(gate_proj(x)) * up_proj(x)); ungated: down_proj(gelu(up_proj(x)))
moe        MoE: a router sends each token to a few of many MLPs
"""

from ssmlib.layers.gated import GatedRMSNorm
from ssmlib.layers.mlp import ACTIVATIONS, MLP, MLPConfig
from ssmlib.layers.moe import MoE, MoEConfig, balance_loss, load_balance
from ssmlib.layers.norm import NormConfig, RMSNorm
from ssmlib.layers.place import hold, step_
from ssmlib.layers.residual import MixerConfig, Residual, SharedConfig, layers_of

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "GatedRMSNorm",
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
    "step_",
]
