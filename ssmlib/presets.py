"""Published models as patterns and legends, each with its source and what was published of it.

    PRESETS["Jamba-v0.1"].config.pattern      "M-ME*-ME..."
    with torch.device("meta"): model = build("Jamba-v0.1")

A preset has the shape of a model and no weights; `ssmlib.checkpoints` reads those.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt

from ssmlib.layers import MLPConfig, MoEConfig, NormConfig
from ssmlib.mixers.attention import AttentionConfig
from ssmlib.mixers.mamba import MambaConfig
from ssmlib.mixers.mamba2 import Mamba2Config
from ssmlib.mixers.rglru import RGLRUConfig
from ssmlib.mixers.zamba import ZambaConfig
from ssmlib.model import LanguageModel, ModelConfig


@dataclass(frozen=True)
class Preset:
    """A model's shape, the context it was trained or released for, and where both are from.

    published: what its makers say, in parameters ("total", "active") or bytes ("cache" of `context`
    tokens in bfloat16); only what they say.
    """

    config: ModelConfig
    context: int
    source: str
    published: Mapping[str, float] = field(default_factory=dict)


def jamba(d: int, layers: int, heads: int, hidden: int) -> ModelConfig:
    """Jamba's layers: one of eight attends, every other MLP is a mixture of 16 experts."""
    glyphs = ("*" if i % 8 == 4 else "M" for i in range(layers))
    pattern = "".join(glyph + "-E"[i % 2] for i, glyph in enumerate(glyphs))
    legend = {
        "M": MambaConfig(norms="learned"),
        "*": AttentionConfig(heads, kv_heads=8, base=None),
        "-": MLPConfig(hidden),
        "E": MoEConfig(experts=16, active=2, hidden=hidden),
    }
    return ModelConfig(65_536, d, pattern, legend, tied=False, norm=NormConfig(eps=1e-6))


def griffin(d: int, layers: int, heads: int, vocab_size: int) -> ModelConfig:
    """RecurrentGemma's layers: two recurrent, one of local attention, an MLP after each."""
    pattern = "".join("RR*"[i % 3] + "-" for i in range(layers))
    attention = AttentionConfig(heads, kv_heads=1, window=2048, rotated=0.5, out_bias=True)
    legend = {
        "R": RGLRUConfig(heads=heads),
        "*": attention,
        "-": MLPConfig(3 * d, activation="gelu_tanh", bias=True),
    }
    norm = NormConfig(eps=1e-6, offset=1.0)
    return ModelConfig(
        vocab_size, d, pattern, legend, norm=norm, embedding_scale=sqrt(d), logit_cap=30.0
    )


def zamba() -> ModelConfig:
    """Zamba-7B: Mamba all along, and one attention block heard at 13 places.

    Its Mamba layers have two heads, each with its own dt, B and C: as many weights, other products.
    """
    own = MambaConfig()
    shared = ZambaConfig(
        AttentionConfig(heads=16, base=None, scale=(2 * 3712 / 16 / 2) ** -0.5),
        MLPConfig(14_848, activation="gelu"),
        own,
    )
    pattern = "MMZ" + "".join("Z" if i % 6 == 4 else "M" for i in range(73))
    return ModelConfig(32_000, 3712, pattern, {"M": own, "Z": shared})


PRESETS: dict[str, Preset] = {
    "Mamba-2.8B": Preset(
        ModelConfig(50_280, 2560, "M" * 64, {"M": MambaConfig()}),
        2048,
        "arXiv:2312.00752; https://huggingface.co/state-spaces/mamba-2.8b",
        {"total": 2.77e9},
    ),
    "Mamba-2-2.7B": Preset(
        ModelConfig(50_288, 2560, "M" * 64, {"M": Mamba2Config()}),
        2048,
        "arXiv:2405.21060; https://huggingface.co/state-spaces/mamba2-2.7b",
        {"total": 2.7e9},
    ),
    "Falcon-Mamba-7B": Preset(
        ModelConfig(65_024, 4096, "M" * 64, {"M": MambaConfig(norms="plain")}, tied=False),
        8192,
        "arXiv:2410.05355; https://huggingface.co/tiiuae/falcon-mamba-7b",
        {"total": 7.27e9},
    ),
    "Jamba-v0.1": Preset(
        jamba(4096, 32, 32, 14_336),
        262_144,
        "arXiv:2403.19887, table 1; https://huggingface.co/ai21labs/Jamba-v0.1",
        {"total": 51.57e9, "active": 12e9, "cache": 4 * 2**30},
    ),
    "Jamba-1.5-Large": Preset(
        jamba(8192, 72, 64, 24_576),
        262_144,
        "arXiv:2408.12570, table 1; https://huggingface.co/ai21labs/AI21-Jamba-Large-1.5",
        {"total": 398e9, "active": 94e9, "cache": 9 * 2**30},
    ),
    "Zamba-7B": Preset(
        zamba(),
        4096,
        "arXiv:2405.16712; https://huggingface.co/Zyphra/Zamba-7B-v1 (14.47 GB in bfloat16)",
        {"total": 14.47e9 / 2},
    ),
    "RecurrentGemma-2B": Preset(
        griffin(2560, 26, 10, 256_000),
        8192,
        "arXiv:2404.07839; https://huggingface.co/google/recurrentgemma-2b",
        {"total": 2.683e9},
    ),
}


def build(name: str) -> LanguageModel:
    """The model of that name, with random weights, on the default device.

    Raises ValueError for a name that PRESETS does not have.
    """
    if name not in PRESETS:
        raise ValueError(f"name: expected one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name].config.build()
