"""Zamba2: Mamba-2 layers, some of which also hear a shared attention block.

There a block keeps the adapters of all the layers that use it, numbered by the turns of all blocks,
and its two first matrices as one. `ssmlib.mixers.zamba` says what is computed.
"""

from dataclasses import dataclass
from math import inf
from typing import Any

from ssmlib.checkpoints.architecture import Architecture
from ssmlib.checkpoints.fields import Fields, rope, rope_entries
from ssmlib.checkpoints.names import Part, Source, Table, renamed
from ssmlib.layers import MLPConfig, NormConfig
from ssmlib.mixers.attention import AttentionConfig
from ssmlib.mixers.mamba2 import Mamba2Config
from ssmlib.mixers.zamba import ZambaConfig
from ssmlib.model import ModelConfig

KINDS = {"mamba": "M", "linear_attention": "M", "hybrid": "Z"}
ADAPTERS = {
    "adapters.gate_up_proj.": "shared_transformer.feed_forward.gate_up_proj_adapter_list.{}.",
    "adapters.q_proj.": "shared_transformer.self_attn.linear_q_adapter_list.{}.",
    "adapters.k_proj.": "shared_transformer.self_attn.linear_k_adapter_list.{}.",
    "adapters.v_proj.": "shared_transformer.self_attn.linear_v_adapter_list.{}.",
}


@dataclass(frozen=True)
class ZambaTable(Table):
    """With the adapters where a block keeps them, which is at each layer that uses it."""

    def sources(self, name: str, config: ModelConfig, size: int) -> list[Source]:
        prefix, _, adapter = name.partition(".adapters.")
        if not adapter:
            return super().sources(name, config, size)
        hybrids = [i for i, glyph in enumerate(config.pattern) if glyph == "Z"]
        turn = hybrids.index(int(prefix.rpartition(".")[2]))
        rest = renamed(f"adapters.{adapter}", ADAPTERS).format(turn)
        blocks = config.legend["Z"].blocks
        return [self.layer.format(i) + rest for i in hybrids[turn % blocks :: blocks]]


def fused(name: str, size: int) -> Source:
    """The gate's matrix and the other one are halves of one there."""
    for index, part in enumerate(("gate_proj", "up_proj")):
        if f".feed_forward.{part}." in name:
            return Part(name.replace(part, "gate_up_proj"), index, 2)
    return name


TABLE = ZambaTable(
    outside={
        "embedding.": "model.embed_tokens.",
        "backbone.norm_f.": "model.final_layernorm.",
        "lm_head.": "lm_head.",
    },
    layer="model.layers.{}.",
    inside={
        "M": {"norm.": "input_layernorm.", "mixer.": "mamba."},
        "Z": {
            "norm.": "mamba_decoder.input_layernorm.",
            "mixer.": "mamba_decoder.mamba.",
            "linear.": "linear.",
            "shared_transformer.": "shared_transformer.",
        },
    },
    last="MZ",
    special=fused,
)


def read(f: Fields) -> ModelConfig:
    f.only(hidden_act="gelu", use_long_context=False)
    kinds = f.several("layers_block_type")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or len(kinds) != f.whole("num_hidden_layers", len(kinds)):
        told = f"{' or '.join(KINDS)} for each layer"
        raise ValueError(f"config.json: layers_block_type: expected {told}, got {kinds}")
    pattern = "".join(KINDS[kind] for kind in kinds)
    mamba = _mamba(f)
    legend = {"M": mamba, "Z": _hybrid(f, mamba)}
    return ModelConfig(
        vocab_size=f.whole("vocab_size"),
        d_model=f.whole("hidden_size"),
        pattern=pattern,
        legend={glyph: config for glyph, config in legend.items() if glyph in pattern},
        tied=f.flag("tie_word_embeddings", True),
        norm=NormConfig(f.number("rms_norm_eps", 1e-5)),
    )


def _mamba(f: Fields) -> Mamba2Config:
    expand, h = f.whole("mamba_expand", 2), f.whole("n_mamba_heads", 8)
    least = f.number("time_step_min", 0.001)
    return Mamba2Config(
        state_size=f.whole("mamba_d_state", 64),
        head_dim=expand * f.whole("hidden_size") // h,
        expand=expand,
        groups=f.whole("mamba_ngroups", 1),
        conv_width=f.whole("mamba_d_conv", 4),
        bias=f.flag("add_bias_linear", False),
        dt_limit=(least, inf) if least else None,
    )


def _hybrid(f: Fields, mamba: Mamba2Config) -> ZambaConfig:
    d, h, bias = f.whole("hidden_size"), f.whole("num_attention_heads", 32), mamba.bias
    size = 2 * d // h
    turned: dict[str, Any] = {"base": None}
    if f.flag("use_mem_rope", False):
        turned = rope(f) | {"max_length": f.whole("max_position_embeddings", 4096)}
    return ZambaConfig(
        attention=AttentionConfig(
            h,
            f.whole("num_key_value_heads", h),
            head_dim=size,
            scale=(size / 2) ** -0.5,
            **turned,
        ),
        mlp=MLPConfig(f.whole("intermediate_size", 4 * d), activation="gelu", bias=bias),
        mixer=mamba,
        blocks=f.whole("num_mem_blocks", 1),
        adapter_rank=f.whole("adapter_rank", 128),
        attention_adapters=f.flag("use_shared_attention_adapter", False),
    )


def write(c: ModelConfig) -> dict[str, Any]:
    z, names = c.legend["Z"], {"M": "mamba", "Z": "hybrid"}
    a, m = z.attention, z.mixer
    turned = {} if a.base is None else rope_entries(a.base, a.rotated, a.scaling)
    if a.max_length is not None:
        turned["max_position_embeddings"] = a.max_length
    return turned | {
        "model_type": "zamba2",
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "num_hidden_layers": len(c.pattern),
        "layers_block_type": [names[glyph] for glyph in c.pattern],
        "mamba_d_state": m.state_size,
        "mamba_d_conv": m.conv_width,
        "mamba_expand": m.expand,
        "mamba_ngroups": m.groups,
        "n_mamba_heads": m.expand * c.d_model // m.head_dim,
        "time_step_min": m.dt_limit[0] if m.dt_limit else 0.0,
        "add_bias_linear": m.bias,
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads,
        "use_mem_rope": a.base is not None,
        "intermediate_size": z.mlp.hidden,
        "hidden_act": "gelu",
        "num_mem_blocks": z.blocks,
        "adapter_rank": z.adapter_rank,
        "use_shared_attention_adapter": z.attention_adapters,
        "rms_norm_eps": c.norm.eps,
        "tie_word_embeddings": c.tied,
    }


ZAMBA2 = Architecture("Zamba2ForCausalLM", TABLE, read, write)
