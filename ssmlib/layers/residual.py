"""One glyph of a pattern as a layer: a mixer, its norms, and the sum past them."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Protocol

from torch import Tensor, nn

from ssmlib.layers.norm import NormConfig
from ssmlib.layers.place import hold, step_
from ssmlib.layers.rows import few


class MixerConfig(Protocol):
    """What a legend maps a glyph to."""

    def build(self, d_model: int) -> nn.Module:
        """A module with y, state = module(x, state=None), x and y (b t d_model)."""


class Residual(nn.Module):
    """x + mixer(norm(x)), and the mixer's state; `NormConfig.place` says what else there is."""

    def __init__(self, d_model: int, mixer: nn.Module, norm: NormConfig | None = None):
        super().__init__()
        made = NormConfig() if norm is None else norm
        self.place, self.norm = made.place, made.build(d_model)
        self.mixer = mixer
        self.post_norm = made.build(d_model) if made.place == "both" else None

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        y, state = self.mixer(self._before(x), state)
        return self._after(x, y), state

    def hold(self, state: Any, room: int) -> Any:
        return hold(self.mixer, state, room)

    def step_(self, x: Tensor, state: Any) -> Tensor:
        if self.place == "pre" and hasattr(self.mixer, "step_past_") and few(x):
            return self.mixer.step_past_(x, state, self.norm)
        return self._after(x, step_(self.mixer, self._before(x), state))

    def _before(self, x: Tensor) -> Tensor:
        return x if self.place == "post" else self.norm(x)

    def _after(self, x: Tensor, y: Tensor) -> Tensor:
        if self.place == "post":
            return self.norm(x + y)
        return x + (y if self.post_norm is None else self.post_norm(y))


@dataclass(frozen=True)
class SharedConfig:
    """One mixer, and one norm, for all places of a glyph: the same weights, a state at each place.

    The universal Transformer's recurrence in depth, and the idea of Zamba's shared attention, whose
    own block is `ssmlib.mixers.zamba`.
    """

    mixer: MixerConfig

    def build(self, d_model: int) -> nn.Module:
        return self.mixer.build(d_model)

    def layers(self, d_model: int, count: int, norm: NormConfig) -> Iterator[nn.Module]:
        return repeat(Residual(d_model, self.build(d_model), norm), count)


def layers_of(
    config: MixerConfig, d_model: int, count: int, norm: NormConfig
) -> Iterator[nn.Module]:
    """The layers of a glyph that a pattern has `count` times, in order, each made when asked for.

    A config may bring its own `layers(d_model, count, norm)`, which is how places share weights; of
    any other, each place gets a `Residual` of its own.
    """
    if hasattr(config, "layers"):
        yield from config.layers(d_model, count, norm)
        return
    for _ in range(count):
        yield Residual(d_model, config.build(d_model), norm)
