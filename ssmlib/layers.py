r"""What stands between the mixers: a norm, and the layer that mixes channels and not time.

RMSNorm   x / sqrt(mean(x²) + eps) * weight
MLP       down_proj(silu(gate_proj(x)) * up_proj(x)); ungated: down_proj(gelu(up_proj(x)))
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmlib.shapes import check, check_number


class RMSNorm(nn.Module):
    """Scale the last axis of x (..., d) to a root mean square of 1, times a learned weight (d,).

    Half precision is computed in float32. Zhang and Sennrich 2019.
    """

    def __init__(self, d: int, eps: float = 1e-5):
        super().__init__()
        check_number(low=1, whole=True, d=d)
        self.weight, self.eps = nn.Parameter(torch.ones(d)), eps

    def forward(self, x: Tensor) -> Tensor:
        check(x=(x, f"... {len(self.weight)}"))
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(wide), self.weight.shape, self.weight.to(wide), self.eps).to(x.dtype)


@dataclass(frozen=True)
class MLPConfig:
    """hidden: its width; None for 8/3 d rounded up to a multiple of 64, or 4 d if not gated.

    gated: SwiGLU (Shazeer 2020), with two matrices in; otherwise one and a GELU.
    """

    hidden: int | None = None
    gated: bool = True

    def build(self, d_model: int) -> "MLP":
        return MLP(d_model, self)


class MLP(nn.Module):
    """x (b t d) to y (b t d), each token by itself; it has no state, and returns None for it."""

    def __init__(self, d: int, config: MLPConfig):
        super().__init__()
        usual = -(-8 * d // 192) * 64 if config.gated else 4 * d
        hidden = usual if config.hidden is None else config.hidden
        check_number(low=1, whole=True, hidden=hidden)
        self.gate_proj = nn.Linear(d, hidden, bias=False) if config.gated else None
        self.up_proj = nn.Linear(d, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, d, bias=False)

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        check(x=(x, f"b t {self.up_proj.in_features}"))
        if state is not None:
            raise ValueError(f"state: expected None, an MLP has none, got {type(state).__name__}")
        up = self.up_proj(x)
        up = F.gelu(up) if self.gate_proj is None else F.silu(self.gate_proj(x)) * up
        return self.down_proj(up), None
