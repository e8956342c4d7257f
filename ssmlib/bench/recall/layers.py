"""The short convolution that stands before mixers that have none of their own.

A query must meet the value that came after its key, one token later. Mamba's layers see the last
few tokens through their convolution; attention and linear attention would need a layer to learn to
look one token back. Arora et al. 2024 put such a layer before each.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from ssmlib.convolution import causal_conv1d
from ssmlib.shapes import check, check_number


@dataclass(frozen=True)
class ShortConvConfig:
    """width: taps, 2 to 16; as many as Mamba's by default."""

    width: int = 4

    def build(self, d_model: int) -> "ShortConv":
        return ShortConv(d_model, self)


class ShortConv(nn.Module):
    """y = out_proj(in_proj(x) conv(x)), x (b t d); the state is the last w - 1 inputs, (b d w-1).

    The BaseConv of Arora et al. 2023, with a short filter.
    """

    def __init__(self, d: int, config: ShortConvConfig):
        super().__init__()
        check_number(low=2, high=16, whole=True, width=config.width)
        self.in_proj = nn.Linear(d, d)
        self.conv1d = nn.Conv1d(d, d, config.width, groups=d)  # holds weights, is never called
        self.out_proj = nn.Linear(d, d)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check(x=(x, f"b t {self.in_proj.in_features}"))
        seen, state = causal_conv1d(x, self.conv1d.weight.squeeze(1), self.conv1d.bias, state=state)
        return self.out_proj(self.in_proj(x) * seen), state
