"""The layer that mixes channels and not time: SwiGLU, GeGLU, or two matrices and a GELU."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from ssmlib.layers.norm import RMSNorm
from ssmlib.layers.rows import product, project
from ssmlib.shapes import check, check_number

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function of that name, or a ValueError that lists the names."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]


@dataclass(frozen=True)
class MLPConfig:
    """hidden: its width; None for 8/3 d rounded up to a multiple of 64, or 4 d if not gated.

    gated: two matrices in, one of them through the activation (Shazeer 2020: with "silu" SwiGLU,
    with "gelu" GeGLU); otherwise one. activation: of ACTIVATIONS; None for "silu" if gated, else
    "gelu". bias: of all matrices.
    """

    hidden: int | None = None
    gated: bool = True
    activation: str | None = None
    bias: bool = False

    def build(self, d_model: int) -> "MLP":
        return MLP(d_model, self)


class MLP(nn.Module):
    """x (b t d) to y (b t d), each token by itself; it has no state, and returns None for it."""

    def __init__(self, d: int, config: MLPConfig):
        super().__init__()
        hidden = usual_width(d, config.gated) if config.hidden is None else config.hidden
        check_number(low=1, whole=True, hidden=hidden)
        name = config.activation or ("silu" if config.gated else "gelu")
        self.activation = activation(name)
        self.gate_proj = nn.Linear(d, hidden, bias=config.bias) if config.gated else None
        self.up_proj = nn.Linear(d, hidden, bias=config.bias)
        self.down_proj = nn.Linear(hidden, d, bias=config.bias)

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        check(x=(x, f"b t {self.up_proj.in_features}"))
        if state is not None:
            raise ValueError(f"state: expected None, an MLP has none, got {type(state).__name__}")
        up = product(x, self.up_proj)
        if self.gate_proj is None:
            return product(self.activation(up), self.down_proj), None
        gate = self.activation(product(x, self.gate_proj))
        return product(gate * up, self.down_proj), None

    def step_past_(self, x: Tensor, state: list, norm: RMSNorm) -> Tensor:
        """x (b 1 d) + what `forward` makes of norm(x), see `ssmlib.layers.rows`."""
        past = x[:, 0]
        up = project(past, self.up_proj, norm)
        if self.gate_proj is None:
            return project(self.activation(up), self.down_proj, past=past)[:, None]
        gate = self.activation(project(past, self.gate_proj, norm))
        return project(gate * up, self.down_proj, past=past)[:, None]


def usual_width(d: int, gated: bool) -> int:
    """The width that gives a gated and a plain MLP about as many weights as 8 d² has."""
    return -(-8 * d // 192) * 64 if gated else 4 * d
