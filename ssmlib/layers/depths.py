"""A mixer that only some tokens of a sequence go through: Mixture-of-Depths.

    r = router(x);  chosen: the capacity * t tokens with the largest r
    y_chosen = sigmoid(r) mixer(x_chosen);   y_rest = 0, or other(x_rest)

The chosen tokens make a shorter sequence, among which the mixer mixes: with attention and half of
the tokens, a quarter of the pairs. Who is chosen depends on the whole sequence, later tokens too,
so such a layer trains and does not write; Raposo et al. 2024 (arXiv 2404.02258), section 3.4, teach
a second router to guess the choice. They multiply by r as it is, and skip with y_rest = 0.
"""

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor, nn

from ssmlib.layers.residual import MixerConfig
from ssmlib.shapes import check, check_number


@dataclass(frozen=True)
class DepthsConfig:
    """mixer: what the chosen go through. capacity: their share of a sequence, rounded up.

    other: what all others go through, as a sequence of their own; None for nothing.
    """

    mixer: MixerConfig
    capacity: float = 0.5
    other: MixerConfig | None = None

    def build(self, d_model: int) -> "Depths":
        return Depths(d_model, self)


class Depths(nn.Module):
    """x (b t d) to y (b t d); it refuses a state, and returns None for it.

    `capacity` begins as the config's and may be lowered while training: a router that starts with
    few tokens must find the right ones before the mixer has learned what they are for. `chosen`
    (b k) are the places of the last call's chosen tokens, in order. Raises ValueError for a
    capacity outside (0, 1].
    """

    def __init__(self, d: int, config: DepthsConfig):
        super().__init__()
        check_number(low=1e-9, high=1, capacity=config.capacity)
        self.capacity = config.capacity
        self.router = nn.Linear(d, 1, bias=False)
        self.mixer = config.mixer.build(d)
        self.other = None if config.other is None else config.other.build(d)
        self.chosen: Tensor | None = None

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        check(x=(x, "b t d"))
        if state is not None:
            told = "None, as the choice needs the whole sequence"
            raise ValueError(f"state: expected {told}, got {type(state).__name__}")
        scores = self.router(x).squeeze(-1)  # (b t)
        k = ceil(self.capacity * x.shape[1])
        order = scores.argsort(dim=1, descending=True, stable=True)
        chosen, rest = (part.sort(dim=1).values for part in (order[:, :k], order[:, k:]))
        self.chosen = chosen
        made = self.mixer(_pick(x, chosen))[0]
        made = made * torch.sigmoid(scores.gather(1, chosen)).unsqueeze(-1)
        y = _put(torch.zeros_like(x), chosen, made)
        if self.other is not None and rest.shape[1]:
            y = _put(y, rest, self.other(_pick(x, rest))[0])
        return y, None


def _pick(x: Tensor, places: Tensor) -> Tensor:
    return x.gather(1, places.unsqueeze(-1).expand(-1, -1, x.shape[2]))


def _put(y: Tensor, places: Tensor, made: Tensor) -> Tensor:
    return y.scatter(1, places.unsqueeze(-1).expand_as(made), made.to(y.dtype))
