"""Two mixers at one place and a gate between them: which one does a place, or a token, want?

    y = s first(x) + (1 - s) second(x),   s = sigmoid(choose(x) / temperature)

With a gate of its own for each place, s says what a model would build there (a relaxed search for
an architecture, Liu et al. 2019); with one that reads the token, it switches by input. Both mixers
are computed: this finds out, and saves nothing.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssmlib.layers.residual import MixerConfig
from ssmlib.shapes import check, check_number

CHOOSERS = ("place", "token")


@dataclass(frozen=True)
class EitherConfig:
    """first, second: two mixers. by: "place", one number learned, or "token", a linear map of it.

    temperature: what the gate is divided by; the smaller, the sooner it decides.
    """

    first: MixerConfig
    second: MixerConfig
    by: str = "place"
    temperature: float = 0.2

    def build(self, d_model: int) -> "Either":
        return Either(d_model, self)


class Either(nn.Module):
    """x (b t d) and both mixers' states, or None, to y (b t d) and both next states.

    `share` (b t 1) is what the last call gave to the first mixer; see `shares`. Raises ValueError
    for a chooser that is not named above.
    """

    def __init__(self, d: int, config: EitherConfig):
        super().__init__()
        if config.by not in CHOOSERS:
            raise ValueError(f"by: expected one of {', '.join(CHOOSERS)}, got {config.by!r}")
        check_number(low=1e-6, temperature=config.temperature)
        self.config = config
        self.first, self.second = config.first.build(d), config.second.build(d)
        self.bias = nn.Parameter(torch.zeros(()))
        self.choose = nn.Linear(d, 1, bias=False) if config.by == "token" else None
        if self.choose is not None:
            nn.init.zeros_(self.choose.weight)
        self.share: Tensor | None = None

    def forward(
        self, x: Tensor, state: tuple[Any, Any] | None = None
    ) -> tuple[Tensor, tuple[Any, Any]]:
        check(x=(x, "b t d"))
        before = (None, None) if state is None else state
        if not isinstance(before, tuple) or len(before) != 2:
            raise ValueError(f"state: expected two states or None, got {type(state).__name__}")
        (one, kept), (two, other) = self.first(x, before[0]), self.second(x, before[1])
        asked = self.bias if self.choose is None else self.choose(x) + self.bias
        share = torch.sigmoid(asked / self.config.temperature)
        self.share = share.expand(*x.shape[:2], 1)
        return share * one + (1 - share) * two, (kept, other)


def shares(model: nn.Module) -> Tensor:
    """(places b t): what each `Either` of a model gave to its first mixer in the last call.

    Its mean, times a price, is what makes a model use the first one only where that pays. Raises
    ValueError for a model without any, or that was not called yet.
    """
    told = [m.share for m in model.modules() if isinstance(m, Either)]
    if not told or any(share is None for share in told):
        raise ValueError("model: expected places of two mixers, in a model that was called")
    return torch.stack([share[..., 0] for share in told])
