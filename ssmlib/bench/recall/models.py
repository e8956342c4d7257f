"""The models of the laboratory by name: two residual layers each, an MLP only in the transformer.

Mixers that cannot look a token back by themselves stand behind a short convolution; the others
stand twice. `MIXERS[name](d, **options)` gives pattern and legend.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ssmlib.bench.recall.layers import ShortConvConfig
from ssmlib.layers import MLPConfig
from ssmlib.mixers.attention import AttentionConfig
from ssmlib.mixers.h3 import H3Config
from ssmlib.mixers.hax import HAXConfig
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


def transformer(d: int, window: int | None = None, positions: str = "rotary") -> Picture:
    """Attention and an MLP, without help from a convolution."""
    return "*-", {"*": replace(_attention(window, positions), heads=4), "-": MLPConfig(2 * d)}


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


def beside(d: int, base: str = "mamba2", sparse: str = "hax", keys: int = 64) -> Picture:
    """A Mamba with n = 16, or a Mamba-2 with n = 32, and sparse attention to so many keys."""
    for name, value, known in (("base", base, BASES), ("sparse", sparse, SPARSE)):
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    parts = {"rounds": 0, "selected": 0} | SPARSE[sparse](keys)
    return "XX", {"X": HAXConfig(BASES[base](d), **parts)}


BASES: dict[str, Callable[[int], MixerConfig]] = {
    "mamba": lambda d: MambaConfig(16),
    "mamba2": lambda d: _mamba2(d, 32),
}
SPARSE: dict[str, Callable[[int], dict[str, int]]] = {
    "hax": lambda keys: {"rounds": 1, "bucket": keys // 2, "selected": keys // 2},
    "hashed": lambda keys: {"rounds": 1, "bucket": keys},
    "selected": lambda keys: {"selected": keys},
    "window": lambda keys: {"window": keys},
    "dilated": lambda keys: {"dilation": 5},
}
MIXERS: dict[str, Callable[..., Picture]] = {
    "attention": attention,
    "transformer": transformer,
    "linear_attention": linear_attention,
    "s4d": s4d,
    "h3": h3,
    "mamba": mamba,
    "mamba2": mamba2,
    "hybrid": hybrid,
    "beside": beside,
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
    return ModelConfig(vocab, d, pattern * times, legend, tied=False)


def _attention(window: int | None, positions: str) -> AttentionConfig:
    if positions not in POSITIONS:
        known = ", ".join(POSITIONS)
        raise ValueError(f"positions: expected one of {known}, got {positions!r}")
    return AttentionConfig(heads=1, window=window, base=POSITIONS[positions])


def _mamba2(d: int, n: int) -> Mamba2Config:
    return Mamba2Config(n, head_dim=math.gcd(32, 2 * d))
