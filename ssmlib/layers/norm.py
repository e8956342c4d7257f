"""RMSNorm, x / sqrt(mean(x²) + eps) * weight, and where norms stand around a mixer."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmlib.shapes import check, check_number

PLACES = ("pre", "post", "both")


class RMSNorm(nn.Module):
    """Scale the last axis of x (..., d) to a root mean square of 1, times offset + weight (d,).

    weight starts at 1 - offset, so that the scale starts at 1; Gemma's norms have an offset of 1.
    Half precision is computed in float32. Zhang and Sennrich 2019.
    """

    def __init__(self, d: int, eps: float = 1e-5, offset: float = 0.0):
        super().__init__()
        check_number(low=1, whole=True, d=d)
        check_number(low=0, eps=eps)
        self.weight = nn.Parameter(torch.full((d,), 1.0 - offset))
        self.eps, self.offset = eps, offset

    def forward(self, x: Tensor) -> Tensor:
        check(x=(x, f"... {len(self.weight)}"))
        wide = torch.promote_types(x.dtype, torch.float32)
        weight = self.weight.to(wide)
        weight = weight + self.offset if self.offset else weight
        return F.rms_norm(x.to(wide), weight.shape, weight, self.eps).to(x.dtype)


@dataclass(frozen=True)
class NormConfig:
    """The norms of a model. eps, offset: see `RMSNorm`.

    place: "pre", x + mixer(norm(x)); "post", norm(x + mixer(x)), as the first Transformer had it;
    "both", x + norm(mixer(norm(x))), as in Gemma 2.
    """

    eps: float = 1e-5
    offset: float = 0.0
    place: str = "pre"

    def build(self, d: int) -> RMSNorm:
        if self.place not in PLACES:
            raise ValueError(f"place: expected one of {', '.join(PLACES)}, got {self.place!r}")
        return RMSNorm(d, self.eps, self.offset)
