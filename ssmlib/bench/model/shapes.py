"""Four models of one size, and what reading a prompt and making a token need at the least."""

from dataclasses import dataclass

import torch
from torch import nn

from ssmlib.bench.timing import working_dtype
from ssmlib.layers import MLPConfig
from ssmlib.mixers.attention import Attention, AttentionConfig
from ssmlib.mixers.mamba import MambaConfig
from ssmlib.mixers.mamba2 import Mamba2Config
from ssmlib.model import LanguageModel, ModelConfig

VOCABULARY = 50280  # of the published Mamba models


@dataclass(frozen=True)
class Sizes:
    """Features, heads and key-value heads of attention, heads' features of Mamba-2, layers.

    mlp: the width that gives the Transformer as many parameters as the others.
    """

    d: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    blocks: int
    layers: int
    groups_of_8: int
    vocabulary: int = VOCABULARY


FULL = Sizes(1024, 16, 4, 64, 3872, blocks=24, layers=52, groups_of_8=7)
QUICK = Sizes(32, 4, 2, 16, 100, blocks=2, layers=4, groups_of_8=1, vocabulary=64)


def configs(s: Sizes) -> dict[str, ModelConfig]:
    """The models by name, each about as large as the others."""
    attention = AttentionConfig(s.heads, s.kv_heads)
    mamba2 = Mamba2Config(head_dim=s.head_dim)
    made = {
        "transformer": ("*-" * s.blocks, {"*": attention, "-": MLPConfig(s.mlp)}),
        "mamba": ("M" * s.layers, {"M": MambaConfig()}),
        "mamba-2": ("M" * s.layers, {"M": mamba2}),
        "hybrid 1:7": ("MMMM*MMM" * s.groups_of_8, {"M": mamba2, "*": attention}),
    }
    return {
        name: ModelConfig(s.vocabulary, s.d, pattern, legend)
        for name, (pattern, legend) in made.items()
    }


def without_groups(s: Sizes) -> ModelConfig:
    """The Transformer as Mamba was compared with: keys and values for each head, a narrower MLP."""
    saved = 2 * s.d * s.d * (s.heads - s.kv_heads) // s.heads
    legend = {"*": AttentionConfig(s.heads), "-": MLPConfig(s.mlp - saved // (3 * s.d))}
    return ModelConfig(s.vocabulary, s.d, "*-" * s.blocks, legend)


def build(config: ModelConfig, device: torch.device) -> LanguageModel:
    """Random weights on the device, in the dtype that it works in."""
    torch.manual_seed(0)
    with device:
        return config.build().to(working_dtype(device)).eval()


def weights(model: nn.Module) -> tuple[int, int]:
    """The parameters, and their bytes; a tied head is the table of embeddings, once."""
    held = list(model.parameters())
    return sum(p.numel() for p in held), sum(p.numel() * p.element_size() for p in held)


def prompt_flops(model: LanguageModel, b: int, t: int) -> int:
    """Of the products with every token, the head's with the last alone, and causal attention's.

    What a recurrence adds to its projections is left out: less than this, then, cannot be.
    """
    table = model.embedding.weight.numel()
    shared = sum(p.numel() for p in model.parameters() if p.ndim == 2) - table
    attention = sum(
        4 * m.config.heads * m.head_dim * (t * (t + 1) // 2)
        for m in model.modules()
        if isinstance(m, Attention)
    )
    return b * (2 * shared * t + 2 * table + attention)


def step_flops(model: LanguageModel, b: int, n: int) -> int:
    """Of one token's products with all matrices, and with n keys and values."""
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    heads = sum(m.config.heads * m.head_dim for m in model.modules() if isinstance(m, Attention))
    return b * (2 * matrices + 4 * heads * n)
