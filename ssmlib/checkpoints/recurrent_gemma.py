"""RecurrentGemma: Griffin's recurrent layers and windows of attention, each with a GeGLU after."""

from math import sqrt
from typing import Any

import torch

from ssmlib.checkpoints.architecture import Architecture
from ssmlib.checkpoints.fields import Fields, rope, rope_entries
from ssmlib.checkpoints.names import Table
from ssmlib.layers import MLPConfig, NormConfig
from ssmlib.mixers.attention import AttentionConfig
from ssmlib.mixers.rglru import RGLRUConfig
from ssmlib.model import ModelConfig

KINDS = {"recurrent": "R", "attention": "*"}
MIXER = {"norm.": "temporal_pre_norm.", "mixer.": "temporal_block."}
TABLE = Table(
    outside={
        "embedding.": "model.embed_tokens.",
        "backbone.norm_f.": "model.final_norm.",
        "lm_head.": "lm_head.",
    },
    layer="model.layers.{}.",
    inside={
        "R": MIXER,
        "*": MIXER,
        "-": {"norm.": "channel_pre_norm.", "mixer.": "mlp_block."},
    },
    last="-",
)


def read(f: Fields) -> ModelConfig:
    f.only(hidden_activation="gelu_pytorch_tanh")
    d, h = f.whole("hidden_size"), f.whole("num_attention_heads", 10)
    kinds, number = (
        f.several("block_types", list(KINDS) + ["attention"]),
        f.whole("num_hidden_layers"),
    )
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ValueError(f"config.json: block_types: expected {' and '.join(KINDS)}, got {kinds}")
    pattern = "".join(KINDS[kinds[i % len(kinds)]] + "-" for i in range(number))
    attention = AttentionConfig(
        heads=h,
        kv_heads=f.whole("num_key_value_heads", h),
        window=f.whole("attention_window_size", 2048),
        head_dim=d // h,
        bias=f.flag("attention_bias", False),
        out_bias=True,
        scale=(d // h) ** -0.5,
        **rope(f, share=0.5),
    )
    width = f.whole("lru_width", d)
    f.only(lru_width=d)  # there the convolution is as wide as the model, and fits no other
    legend = {
        "R": RGLRUConfig(width, heads=h, conv_width=f.whole("conv1d_width", 4)),
        "*": attention,
        "-": MLPConfig(f.whole("intermediate_size") // 2, activation="gelu_tanh", bias=True),
    }
    return ModelConfig(
        vocab_size=f.whole("vocab_size"),
        d_model=d,
        pattern=pattern,
        legend={glyph: config for glyph, config in legend.items() if glyph in pattern},
        tied=f.flag("tie_word_embeddings", True),
        norm=NormConfig(f.number("rms_norm_eps", 1e-6), offset=1.0),
        embedding_scale=embedding_scale(d),
        logit_cap=f.number("logits_soft_cap", 30.0),
    )


def write(c: ModelConfig) -> dict[str, Any]:
    a, r, kinds = c.legend["*"], c.legend["R"], {glyph: kind for kind, glyph in KINDS.items()}
    return rope_entries(a.base, a.rotated, a.scaling) | {
        "model_type": "recurrent_gemma",
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "num_hidden_layers": len(c.pattern) // 2,
        "block_types": [kinds[glyph] for glyph in c.pattern[::2]],
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads,
        "attention_window_size": a.window,
        "attention_bias": a.bias,
        "lru_width": r.width,
        "conv1d_width": r.conv_width,
        "intermediate_size": 2 * c.legend["-"].hidden,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": c.norm.eps,
        "logits_soft_cap": c.logit_cap,
        "tie_word_embeddings": c.tied,
    }


def embedding_scale(d: int) -> float:
    """sqrt(d), rounded to bfloat16, as the model was trained."""
    return float(torch.tensor(sqrt(d), dtype=torch.bfloat16))


RECURRENT_GEMMA = Architecture("RecurrentGemmaForCausalLM", TABLE, read, write)
