"""Mamba and Falcon-Mamba as transformers keeps them, and the format of state-spaces/mamba."""

from typing import Any

from ssmlib.checkpoints.architecture import Architecture
from ssmlib.checkpoints.fields import Fields
from ssmlib.checkpoints.names import Table
from ssmlib.layers import NormConfig
from ssmlib.mixers.mamba import MambaConfig
from ssmlib.mixers.mamba2 import Mamba2Config
from ssmlib.model import ModelConfig

SAME = {"norm.": "norm.", "mixer.": "mixer."}
TABLE = Table(
    outside={
        "embedding.": "backbone.embeddings.",
        "backbone.norm_f.": "backbone.norm_f.",
        "lm_head.": "lm_head.",
    },
    layer="backbone.layers.{}.",
    inside={"M": SAME},
    last="M",
)
ORIGINAL = Table(
    outside=TABLE.outside | {"embedding.": "backbone.embedding."},
    layer=TABLE.layer,
    inside=TABLE.inside,
    last=TABLE.last,
)


def read(f: Fields) -> ModelConfig:
    f.only(hidden_act="silu")
    falcon = f.text("model_type") == "falcon_mamba"
    d = f.whole("hidden_size")
    expand, rest = divmod(f.whole("intermediate_size", f.whole("expand", 2) * d), d)
    if rest:
        raise ValueError(f"config.json: intermediate_size: expected a multiple of hidden_size={d}")
    rank = (
        None if f.config.get("time_step_rank") == "auto" else f.whole("time_step_rank", -(-d // 16))
    )
    mixer = MambaConfig(
        state_size=f.whole("state_size", 16),
        conv_width=f.whole("conv_kernel", 4),
        expand=expand,
        dt_rank=-(-d // 16) if rank is None else rank,
        bias=f.flag("use_bias", False),
        conv_bias=f.flag("use_conv_bias", True),
        norms="plain" if falcon else None,
        norm_eps=f.number("mixer_rms_eps", 1e-6) if falcon else MambaConfig.norm_eps,
    )
    return _model(f, d, mixer, tied=True)


def write(c: ModelConfig) -> dict[str, Any]:
    m = c.legend["M"]
    entries = _written(c) | {
        "model_type": "mamba",
        "state_size": m.state_size,
        "conv_kernel": m.conv_width,
        "expand": m.expand,
        "intermediate_size": m.expand * c.d_model,
        "time_step_rank": m.dt_rank,
        "use_bias": m.bias,
        "use_conv_bias": m.conv_bias,
    }
    if m.norms is None:
        return entries
    return entries | {"model_type": "falcon_mamba", "mixer_rms_eps": m.norm_eps}


def read2(f: Fields) -> ModelConfig:
    f.only(hidden_act="silu")
    d, expand, p = f.whole("hidden_size"), f.whole("expand", 2), f.whole("head_dim", 64)
    f.only(num_heads=expand * d // p)
    eps = f.number("layer_norm_epsilon", 1e-5)
    mixer = Mamba2Config(
        state_size=f.whole("state_size", 128),
        head_dim=p,
        expand=expand,
        groups=f.whole("n_groups", 8),
        conv_width=f.whole("conv_kernel", 4),
        bias=f.flag("use_bias", False),
        conv_bias=f.flag("use_conv_bias", True),
        dt_limit=limits(f),
        norm_eps=eps,
    )
    return _model(f, d, mixer, tied=False)


def write2(c: ModelConfig) -> dict[str, Any]:
    m = c.legend["M"]
    return (
        _written(c)
        | limit_entries(m)
        | {
            "model_type": "mamba2",
            "state_size": m.state_size,
            "head_dim": m.head_dim,
            "num_heads": m.expand * c.d_model // m.head_dim,
            "expand": m.expand,
            "n_groups": m.groups,
            "conv_kernel": m.conv_width,
            "use_bias": m.bias,
            "use_conv_bias": m.conv_bias,
        }
    )


def limits(f: Fields) -> tuple[float, float] | None:
    """dt_limit as `Mamba2Config` has it, of time_step_limit."""
    low, high = f.several("time_step_limit", (0.0, float("inf")))
    return None if (low, high) == (0.0, float("inf")) else (float(low), float(high))


def limit_entries(m: Mamba2Config) -> dict[str, Any]:
    """What `limits` reads back; nothing where there is no limit, since JSON has no infinity."""
    if m.dt_limit is None:
        return {}
    low, high = m.dt_limit
    top = {"__float__": "Infinity"} if high == float("inf") else high
    return {"time_step_limit": [low, top]}


def _model(f: Fields, d: int, mixer: MambaConfig | Mamba2Config, tied: bool) -> ModelConfig:
    return ModelConfig(
        vocab_size=f.whole("vocab_size"),
        d_model=d,
        pattern="M" * f.whole("num_hidden_layers"),
        legend={"M": mixer},
        tied=f.flag("tie_word_embeddings", tied),
        norm=NormConfig(eps=f.number("layer_norm_epsilon", 1e-5)),
    )


def _written(c: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "num_hidden_layers": len(c.pattern),
        "layer_norm_epsilon": c.norm.eps,
        "tie_word_embeddings": c.tied,
        "hidden_act": "silu",
    }


def read_original(f: Fields) -> ModelConfig:
    f.only(rms_norm=True, d_intermediate=0, attn_layer_idx=[])
    d, step = f.whole("d_model"), f.whole("pad_vocab_size_multiple", 8)
    s = f.part("ssm_cfg")
    unknown = sorted(set(s.config) - ORIGINAL_ENTRIES)
    if unknown:
        raise ValueError(f"config.json: ssm_cfg: expected entries of mamba_ssm, got {unknown[0]!r}")
    layer = s.text("layer", "Mamba1")
    if layer not in ("Mamba1", "Mamba2"):
        raise ValueError(f"config.json: ssm_cfg: layer: expected Mamba1 or Mamba2, got {layer!r}")
    return ModelConfig(
        vocab_size=-(-f.whole("vocab_size") // step) * step,
        d_model=d,
        pattern="M" * f.whole("n_layer"),
        legend={"M": _original_mixer(s) if layer == "Mamba1" else _original_mixer2(s)},
        tied=f.flag("tie_embeddings", True),
    )


def _original_mixer(s: Fields) -> MambaConfig:
    auto = s.config.get("dt_rank", "auto") == "auto"
    return MambaConfig(
        state_size=s.whole("d_state", 16),
        conv_width=s.whole("d_conv", 4),
        expand=s.whole("expand", 2),
        dt_rank=None if auto else s.whole("dt_rank"),
        bias=s.flag("bias", False),
        conv_bias=s.flag("conv_bias", True),
    )


def _original_mixer2(s: Fields) -> Mamba2Config:
    s.only(rmsnorm=True, d_ssm=None)
    low, high = s.several("dt_limit", (0.0, float("inf")))
    return Mamba2Config(
        state_size=s.whole("d_state", 128),
        head_dim=s.whole("headdim", 64),
        expand=s.whole("expand", 2),
        groups=s.whole("ngroups", 1),
        conv_width=s.whole("d_conv", 4),
        norm_before_gate=s.flag("norm_before_gate", False),
        bias=s.flag("bias", False),
        conv_bias=s.flag("conv_bias", True),
        wide_skip=s.flag("D_has_hdim", False),
        dt_limit=None if (low, high) == (0.0, float("inf")) else (low, high),
    )


STARTS = {"dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "A_init_range", "conv_init"}
SPEEDS = {"use_fast_path", "use_mem_eff_path", "chunk_size"}
SIZES = {"layer", "d_state", "d_conv", "expand", "dt_rank", "headdim", "ngroups", "d_ssm"}
SWITCHES = {"bias", "conv_bias", "rmsnorm", "norm_before_gate", "D_has_hdim", "dt_limit"}
ORIGINAL_ENTRIES = STARTS | SPEEDS | SIZES | SWITCHES

MAMBA = Architecture("MambaForCausalLM", TABLE, read, write)
FALCON_MAMBA = Architecture("FalconMambaForCausalLM", TABLE, read, write)
MAMBA2 = Architecture("Mamba2ForCausalLM", TABLE, read2, write2)
STATE_SPACES = Architecture("MambaLMHeadModel", ORIGINAL, read_original, None)
