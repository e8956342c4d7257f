"""A model is a picture with a legend: one glyph of the pattern is one residual layer.

    ModelConfig(vocab_size=256, d_model=64, pattern="S-S-*-",
                legend={"S": S4DConfig(), "*": AttentionConfig(), "-": MLPConfig()}).build()

Every glyph computes x + mixer(norm(x)), or what its `layers` says (`ssmlib.layers.layers_of`): "S"
alone is a pure state space model, "*-" a Transformer.

    Backbone        the layers and the last norm: features in, features out
    LanguageModel   token ids in, logits of the next token out
    SequenceModel   tokens or numbers in, numbers or classes out, per step or per sequence
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ssmlib.layers import MixerConfig, NormConfig, Residual, hold, layers_of
from ssmlib.layers.rows import product, project
from ssmlib.shapes import check, check_number

__all__ = [
    "Backbone",
    "LanguageModel",
    "MixerConfig",
    "ModelConfig",
    "Residual",
    "SequenceConfig",
    "SequenceModel",
    "check_tokens",
]

POOLINGS = ("none", "last", "mean")
State = tuple[Any, ...]


@dataclass(frozen=True)
class ModelConfig:
    """vocab_size tokens, d_model features, a pattern of the legend's glyphs, first layer first.

    tied: the head's weight is the embedding's. norm: of every layer and of the last one.
    embedding_scale: times what a token is looked up as (Gemma: sqrt(d_model)). logit_cap c: logits
    are c tanh(logits / c); None for as they are.
    """

    vocab_size: int
    d_model: int
    pattern: str
    legend: Mapping[str, MixerConfig]
    tied: bool = True
    norm: NormConfig = field(default_factory=NormConfig)
    embedding_scale: float = 1.0
    logit_cap: float | None = None

    def build(self) -> "LanguageModel":
        return LanguageModel(self)


@dataclass(frozen=True)
class SequenceConfig:
    """As ModelConfig, but reads d_input numbers a step or one of vocab_size tokens, one of the two.

    d_output: numbers, or classes, out. pooling: "none" for an output per step; "last" or "mean",
    over time and before the head, for one per sequence. padding: a token that no mean counts; it
    must stand after the others, where layers that do not look ahead cannot see it.
    """

    d_output: int
    d_model: int
    pattern: str
    legend: Mapping[str, MixerConfig]
    d_input: int | None = None
    vocab_size: int | None = None
    pooling: str = "none"
    padding: int | None = None

    def build(self) -> "SequenceModel":
        return SequenceModel(self)


class Backbone(nn.Module):
    """x (b t d_model) through every layer and a last norm; the state is a tuple, one per layer.

    Raises ValueError for an empty pattern, and names each glyph that the legend does not have, or
    that no layer asks for.
    """

    def __init__(
        self,
        d_model: int,
        pattern: str,
        legend: Mapping[str, MixerConfig],
        norm: NormConfig | None = None,
    ):
        super().__init__()
        check_number(low=1, whole=True, d_model=d_model)
        _check_pattern(pattern, legend)
        norm = NormConfig() if norm is None else norm
        made = {g: layers_of(legend[g], d_model, pattern.count(g), norm) for g in legend}
        self.layers = nn.ModuleList(next(made[glyph]) for glyph in pattern)
        self.norm_f = norm.build(d_model)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        check(x=(x, f"b t {len(self.norm_f.weight)}"))
        before = (None,) * len(self.layers) if state is None else self._check(state)
        after, first = [], x
        for layer, old in zip(self.layers, before, strict=True):
            x, new = layer(x, old, *_wanted(layer, first))
            after.append(new)
        return self.norm_f(x), tuple(after)

    def hold(self, state: State, room: int) -> State:
        """A copy of the state that `step_` may write over, with room for so many more tokens."""
        check_number(low=1, whole=True, room=room)
        return tuple(map(hold, self.layers, self._check(state), [room] * len(self.layers)))

    def step_(self, x: Tensor, state: State) -> Tensor:
        """One token x (b 1 d_model), with the next state written over `state`, of `hold`."""
        check(x=(x, f"b 1 {len(self.norm_f.weight)}"))
        first = x
        for layer, place in zip(self.layers, self._check(state), strict=True):
            x = layer.step_(x, place, *_wanted(layer, first))
        return self.norm_f(x)

    def _check(self, state: State) -> State:
        if not isinstance(state, tuple) or len(state) != len(self.layers):
            came = f"{len(state)} entries" if isinstance(state, tuple) else type(state).__name__
            raise ValueError(f"state: expected a tuple of {len(self.layers)} entries, got {came}")
        return state


def _wanted(layer: nn.Module, first: Tensor) -> tuple[Tensor, ...]:
    """The embeddings, for a layer that reads them beside what the layers before made."""
    return (first,) if getattr(layer, "reads_first", False) else ()


class LanguageModel(nn.Module):
    """Token ids (b t) and the state before them, or None, to logits (b t vocab_size), next state.

    keep: make only the logits of the last `keep` tokens, as a prefill needs; None for all.
    Raises ValueError for tokens that are not integers, or (read on the CPU only) not in range, and
    for a state of another model.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        check_number(low=1e-9, embedding_scale=config.embedding_scale)
        if config.logit_cap is not None:
            check_number(low=1e-9, logit_cap=config.logit_cap)
        self.config = config
        self.embedding = _embedding(config.vocab_size, config.d_model)
        self.backbone = Backbone(config.d_model, config.pattern, config.legend, config.norm)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.embedding.weight

    def forward(
        self, tokens: Tensor, state: State | None = None, keep: int | None = None
    ) -> tuple[Tensor, State]:
        if keep is not None:
            check_number(low=1, whole=True, keep=keep)
        y, state = self.backbone(self._embed(tokens), state)
        return self._logits(y if keep is None else y[:, -keep:]), state

    def hold(self, state: State, room: int) -> State:
        """A copy of the state that `step_` may write over, with room for so many more tokens."""
        return self.backbone.hold(state, room)

    def step_(self, tokens: Tensor, state: State) -> Tensor:
        """One token (b 1) of each row to logits (b 1 vocab_size); `state`, of `hold`, moves on.

        No memory is kept that was not there before, and nothing waits for a GPU, so a CUDA graph
        can hold the call. Without gradients.
        """
        with torch.no_grad():
            y = self.backbone.step_(self._embed(tokens), state)[:, 0]
            return self._capped(project(y, self.lm_head))[:, None]

    def _embed(self, tokens: Tensor) -> Tensor:
        check_tokens(tokens, self.config.vocab_size)
        x, scale = self.embedding(tokens), self.config.embedding_scale
        return x if scale == 1 else x * scale

    def _logits(self, y: Tensor) -> Tensor:
        return self._capped(product(y, self.lm_head))

    def _capped(self, logits: Tensor) -> Tensor:
        cap = self.config.logit_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)


class SequenceModel(nn.Module):
    """x (b t d_input) or tokens (b t), and a state, to y and the next state.

    y is (b t d_output), or (b d_output) with a pooling, which is that of this piece alone.
    Raises ValueError as LanguageModel does.
    """

    def __init__(self, config: SequenceConfig):
        super().__init__()
        if config.pooling not in POOLINGS:
            known = ", ".join(POOLINGS)
            raise ValueError(f"pooling: expected one of {known}, got {config.pooling!r}")
        if (config.d_input is None) == (config.vocab_size is None):
            raise ValueError(
                "d_input, vocab_size: expected exactly one of the two,"
                f" got {config.d_input} and {config.vocab_size}"
            )
        if config.padding is not None and (config.vocab_size is None or config.pooling != "mean"):
            raise ValueError("padding: expected None unless tokens are read and a mean is taken")
        check_number(low=1, whole=True, d_output=config.d_output)
        self.config = config
        if config.vocab_size is not None:
            self.encoder = _embedding(config.vocab_size, config.d_model)
        else:
            check_number(low=1, whole=True, d_input=config.d_input)
            self.encoder = nn.Linear(config.d_input, config.d_model)
        self.backbone = Backbone(config.d_model, config.pattern, config.legend)
        self.decoder = nn.Linear(config.d_model, config.d_output)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        if self.config.vocab_size is None:
            check(x=(x, f"b t {self.config.d_input}"))
        else:
            check_tokens(x, self.config.vocab_size, "x")
        y, state = self.backbone(self.encoder(x), state)
        return self.decoder(self._pool(x, y)), state

    def _pool(self, x: Tensor, y: Tensor) -> Tensor:
        if self.config.pooling == "none":
            return y
        if self.config.pooling == "last":
            return y[:, -1]
        if self.config.padding is None:
            return y.mean(1)
        seen = (x != self.config.padding).unsqueeze(-1).to(y.dtype)  # (b t 1)
        return (seen * y).sum(1) / seen.sum(1).clamp_min(1)


def check_tokens(tokens: Tensor, vocab_size: int, name: str = "tokens") -> None:
    """Refuse what is no (b t) of token ids; values are read where that waits for no device."""
    check(**{name: (tokens, "b t")})
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise ValueError(f"{name}: expected integer token ids, got dtype {tokens.dtype}")
    if tokens.device.type != "cpu" or torch.compiler.is_compiling():
        return
    low, high = tokens.min().item(), tokens.max().item()
    if low < 0 or high >= vocab_size:
        raise ValueError(f"{name}: expected ids from 0 to {vocab_size - 1}, got {low} to {high}")


def _embedding(vocab_size: int, d_model: int) -> nn.Embedding:
    check_number(low=1, whole=True, vocab_size=vocab_size, d_model=d_model)
    embedding = nn.Embedding(vocab_size, d_model)
    nn.init.normal_(embedding.weight, std=0.02)
    return embedding


def _check_pattern(pattern: str, legend: Mapping[str, MixerConfig]) -> None:
    known = ", ".join(map(repr, legend))
    if not isinstance(pattern, str) or not pattern:
        raise ValueError(f"pattern: expected glyphs of {known}, got {pattern!r}")
    long = [glyph for glyph in legend if not isinstance(glyph, str) or len(glyph) != 1]
    if long:
        raise ValueError(f"legend: expected glyphs of one letter, got {', '.join(map(repr, long))}")
    unknown = [f"{g!r} at {i}" for i, g in enumerate(pattern) if g not in legend]
    if unknown:
        raise ValueError(f"pattern: expected glyphs of {known}, got {', '.join(unknown)}")
    unused = [repr(glyph) for glyph in legend if glyph not in pattern]
    if unused:
        raise ValueError(f"legend: expected glyphs of {pattern!r}, got {', '.join(unused)} as well")
