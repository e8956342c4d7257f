"""Llama, and the two hybrids that put Mamba layers into its place: Bamba and Jamba."""

from typing import Any

from ssmlib.checkpoints.architecture import Architecture
from ssmlib.checkpoints.fields import Fields, rope, rope_entries
from ssmlib.checkpoints.mamba import limit_entries, limits
from ssmlib.checkpoints.names import Pieces, Source, Table
from ssmlib.layers import MLPConfig, MoEConfig, NormConfig
from ssmlib.mixers.attention import AttentionConfig
from ssmlib.mixers.mamba import MambaConfig
from ssmlib.mixers.mamba2 import Mamba2Config
from ssmlib.model import ModelConfig


def experts(name: str, size: int) -> Source:
    """Jamba's experts one by one; here they are one tensor, `size` experts long."""
    start, _, kind = name.partition(".experts.")
    parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(kind)
    if parts is None:
        return name
    each = [tuple(f"{start}.experts.{i}.{part}.weight" for part in parts) for i in range(size)]
    return Pieces(tuple(each))


OUTSIDE = {"embedding.": "model.embed_tokens.", "lm_head.": "lm_head."}
LLAMA_TABLE = Table(
    outside=OUTSIDE | {"backbone.norm_f.": "model.norm."},
    layer="model.layers.{}.",
    inside={
        "*": {"norm.": "input_layernorm.", "mixer.": "self_attn."},
        "-": {"norm.": "post_attention_layernorm.", "mixer.": "mlp."},
    },
    last="-",
)
HYBRID_TABLE = Table(
    outside=OUTSIDE | {"backbone.norm_f.": "model.final_layernorm."},
    layer="model.layers.{}.",
    inside={
        "M": {"norm.": "input_layernorm.", "mixer.": "mamba."},
        "*": {"norm.": "input_layernorm.", "mixer.": "self_attn."},
        "-": {"norm.": "pre_ff_layernorm.", "mixer.": "feed_forward."},
        "E": {"norm.": "pre_ff_layernorm.", "mixer.": "feed_forward."},
    },
    last="-E",
    special=experts,
)


def read_llama(f: Fields) -> ModelConfig:
    pattern = "*-" * f.whole("num_hidden_layers")
    legend = {"*": _attention(f, share=1.0), "-": _mlp(f)}
    return _model(f, pattern, legend, eps=1e-6)


def write_llama(c: ModelConfig) -> dict[str, Any]:
    return (
        _written(c)
        | _rotary(c)
        | {
            "model_type": "llama",
            "attention_bias": c.legend["*"].bias,
            "mlp_bias": c.legend["-"].bias,
            "head_dim": c.legend["*"].head_dim,
        }
    )


def read_bamba(f: Fields) -> ModelConfig:
    places = f.several("attn_layer_indices", [])
    pattern = "".join("*-" if i in places else "M-" for i in range(f.whole("num_hidden_layers")))
    d, expand, h = f.whole("hidden_size"), f.whole("mamba_expand", 2), f.whole("mamba_n_heads", 128)
    auto = f.config.get("mamba_d_head", "auto") == "auto"
    mamba = Mamba2Config(
        state_size=f.whole("mamba_d_state", 256),
        head_dim=expand * d // h if auto else f.whole("mamba_d_head"),
        expand=expand,
        groups=f.whole("mamba_n_groups", 1),
        conv_width=f.whole("mamba_d_conv", 4),
        bias=f.flag("mamba_proj_bias", False),
        conv_bias=f.flag("mamba_conv_bias", True),
        dt_limit=limits(f),
        norm_eps=f.number("rms_norm_eps", 1e-5),
    )
    legend = {"M": mamba, "*": _attention(f, share=0.5), "-": _mlp(f)}
    return _model(f, pattern, legend, eps=1e-5)


def write_bamba(c: ModelConfig) -> dict[str, Any]:
    m = c.legend["M"]
    return (
        _written(c)
        | _rotary(c)
        | limit_entries(m)
        | {
            "model_type": "bamba",
            "attn_layer_indices": [i for i, glyph in enumerate(c.pattern[::2]) if glyph == "*"],
            "attention_bias": c.legend["*"].bias,
            "mlp_bias": c.legend["-"].bias,
            "mamba_n_heads": m.expand * c.d_model // m.head_dim,
            "mamba_d_head": m.head_dim,
            "mamba_d_state": m.state_size,
            "mamba_d_conv": m.conv_width,
            "mamba_expand": m.expand,
            "mamba_n_groups": m.groups,
            "mamba_proj_bias": m.bias,
            "mamba_conv_bias": m.conv_bias,
        }
    )


def read_jamba(f: Fields) -> ModelConfig:
    number, many = f.whole("num_hidden_layers"), f.whole("num_experts", 16)
    every, first = f.whole("attn_layer_period", 8), f.whole("attn_layer_offset", 4, low=0)
    period, offset = f.whole("expert_layer_period", 2), f.whole("expert_layer_offset", 1, low=0)
    glyphs = [
        ("*" if i % every == first else "M") + ("E" if many > 1 and i % period == offset else "-")
        for i in range(number)
    ]
    d = f.whole("hidden_size")
    auto = f.config.get("mamba_dt_rank", "auto") == "auto"
    mamba = MambaConfig(
        state_size=f.whole("mamba_d_state", 16),
        conv_width=f.whole("mamba_d_conv", 4),
        expand=f.whole("mamba_expand", 2),
        dt_rank=-(-d // 16) if auto else f.whole("mamba_dt_rank"),
        bias=f.flag("mamba_proj_bias", False),
        conv_bias=f.flag("mamba_conv_bias", True),
        norms="learned",
        norm_eps=f.number("rms_norm_eps", 1e-6),
    )
    moe = MoEConfig(many, f.whole("num_experts_per_tok", 2), f.whole("intermediate_size"))
    legend = {"M": mamba, "*": _attention(f), "-": _mlp(f), "E": moe}
    return _model(f, "".join(glyphs), legend, eps=1e-6)


def write_jamba(c: ModelConfig) -> dict[str, Any]:
    m = c.legend["M"]
    moe = c.legend.get("E", MoEConfig(1, 1))
    attention, mixture = (_period(part) for part in (_places(c, 0, "*"), _places(c, 1, "E")))
    return _written(c) | {
        "model_type": "jamba",
        "attn_layer_period": attention[0],
        "attn_layer_offset": attention[1],
        "expert_layer_period": mixture[0],
        "expert_layer_offset": mixture[1],
        "num_experts": moe.experts,
        "num_experts_per_tok": moe.active,
        "mamba_d_state": m.state_size,
        "mamba_d_conv": m.conv_width,
        "mamba_expand": m.expand,
        "mamba_dt_rank": m.dt_rank,
        "mamba_proj_bias": m.bias,
        "mamba_conv_bias": m.conv_bias,
    }


def _places(c: ModelConfig, which: int, glyph: str) -> list[bool]:
    """For each layer, whether its first or second glyph is this one."""
    return [own == glyph for own in c.pattern[which::2]]


def _period(places: list[bool]) -> tuple[int, int]:
    """The period and the offset that give these places, if any do: those of the first two."""
    found = [i for i, here in enumerate(places) if here]
    if not found:
        return len(places) + 1, len(places)
    return (found[1] - found[0] if len(found) > 1 else len(places)), found[0]


def _attention(f: Fields, share: float | None = None) -> AttentionConfig:
    """share: of a head that is rotated, where the file does not say; None for no rotation."""
    h, d = f.whole("num_attention_heads"), f.whole("hidden_size")
    size = f.whole("head_dim", d // h)
    bias = f.flag("attention_bias", False)
    turned = {"base": None} if share is None else rope(f, share)
    if share is not None:
        turned["max_length"] = f.whole("max_position_embeddings", 2048)
    kv_heads = f.whole("num_key_value_heads", h)
    return AttentionConfig(
        h, kv_heads, head_dim=size, bias=bias, out_bias=bias, scale=size**-0.5, **turned
    )


def _mlp(f: Fields) -> MLPConfig:
    f.only(hidden_act="silu")
    bias = f.flag("mlp_bias", False)
    return MLPConfig(f.whole("intermediate_size"), activation="silu", bias=bias)


def _model(f: Fields, pattern: str, legend: dict[str, Any], eps: float) -> ModelConfig:
    return ModelConfig(
        vocab_size=f.whole("vocab_size"),
        d_model=f.whole("hidden_size"),
        pattern=pattern,
        legend={glyph: config for glyph, config in legend.items() if glyph in pattern},
        tied=f.flag("tie_word_embeddings", False),
        norm=NormConfig(eps=f.number("rms_norm_eps", eps)),
    )


def _written(c: ModelConfig) -> dict[str, Any]:
    attention = c.legend.get("*", AttentionConfig(1, 1))
    wide = c.legend.get("-") or c.legend["E"]
    return {
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "num_hidden_layers": len(c.pattern) // 2,
        "intermediate_size": wide.hidden,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "rms_norm_eps": c.norm.eps,
        "tie_word_embeddings": c.tied,
        "hidden_act": "silu",
    }


def _rotary(c: ModelConfig) -> dict[str, Any]:
    a = c.legend["*"]
    entries = rope_entries(a.base, a.rotated, a.scaling)
    return entries | {"max_position_embeddings": a.max_length or 2**31 - 1}


LLAMA = Architecture("LlamaForCausalLM", LLAMA_TABLE, read_llama, write_llama)
BAMBA = Architecture("BambaForCausalLM", HYBRID_TABLE, read_bamba, write_bamba)
JAMBA = Architecture("JambaForCausalLM", HYBRID_TABLE, read_jamba, write_jamba)
