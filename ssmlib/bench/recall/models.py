"""The models of the laboratory by name: two residual layers each, and no MLP.

Mixers that cannot look a token back by themselves stand behind a short convolution; the others
stand twice. `MIXERS[name](d, **options)` gives pattern and legend.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ssmlib.bench.recall.layers import ShortConvConfig
from ssmlib.mixers.attention import AttentionConfig
from ssmlib.mixers.h3 import H3Config
from ssmlib.mixers.linear_attention import LinearAttentionConfig
from ssmlib.mixers.mamba import MambaConfig
from ssmlib.mixers.mamba2 import Mamba2Config
from ssmlib.mixers.s4 import S4DConfig
from ssmlib.model import MixerConfig, ModelConfig

Picture = tuple[str, Mapping[str, MixerConfig]]
POSITIONS = {"rotary": 10000.0, "none": None}
CONV = ShortConvConfig()


def attention(d: int, window: int | None = None, positions: str = "rotary") -> Picture:
    return "c*", {"c": CONV, "*": _attention(window, positions)}


def linear_attention(d: int, features: int = 16) -> Picture:
    return "cL", {"c": CONV, "L": LinearAttentionConfig(features)}


def s4d(d: int, n: int = 64) -> Picture:
    return "SS", {"S": S4DConfig(n, init="lin")}


def h3(d: int, n: int = 64) -> Picture:
    return "HH", {"H": H3Config(n)}


def mamba(d: int, n: int = 16) -> Picture:
    return "MM", {"M": MambaConfig(n)}


def mamba2(d: int, n: int = 64) -> Picture:
    return "22", {"2": _mamba2(d, n)}


def hybrid(d: int, n: int = 16, window: int | None = None, positions: str = "none") -> Picture:
    """Mamba-2, which also tells positions apart, and one attention, which by itself does not."""
    return "2*", {"2": _mamba2(d, n), "*": _attention(window, positions)}


MIXERS: dict[str, Callable[..., Picture]] = {
    "attention": attention,
    "linear_attention": linear_attention,
    "s4d": s4d,
    "h3": h3,
    "mamba": mamba,
    "mamba2": mamba2,
    "hybrid": hybrid,
}


def model_of(mixer: str, vocab: int, d: int, times: int = 1, **options: Any) -> ModelConfig:
    """times: how often the two layers stand one behind the other.

    Raises ValueError for a name that MIXERS does not have, and an option that it does not.
    """
    if mixer not in MIXERS:
        raise ValueError(f"mixer: expected one of {', '.join(MIXERS)}, got {mixer!r}")
    try:
        pattern, legend = MIXERS[mixer](d, **options)
    except TypeError as error:
        raise ValueError(f"{mixer}: {error}") from None
    return ModelConfig(vocab, d, pattern * times, legend)


def _attention(window: int | None, positions: str) -> AttentionConfig:
    if positions not in POSITIONS:
        known = ", ".join(POSITIONS)
        raise ValueError(f"positions: expected one of {known}, got {positions!r}")
    return AttentionConfig(heads=1, window=window, base=POSITIONS[positions])


def _mamba2(d: int, n: int) -> Mamba2Config:
    return Mamba2Config(n, head_dim=min(32, 2 * d))
