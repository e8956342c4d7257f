r"""H3: two linear systems and two gates, the first state space layer made for language.

$$y = q \odot \mathrm{diagonal}(\mathrm{shift}(k) \odot v)$$

`shift` remembers the last few keys, so that a key can meet the value of the token after it;
`diagonal` remembers that product for long; q asks for it. Everything that remembers is still time
invariant: what is stored depends on the tokens, how long it stays does not.
With head_dim p > 1 the product of key and value is their outer product (p p), as in linear
attention. Source: Fu et al. 2023, "Hungry hungry hippos".
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from ssmlib.convolution import fft_conv
from ssmlib.mixers.s4 import DiagonalSystem, LayerConfig
from ssmlib.shapes import check, check_number


class H3State(NamedTuple):
    """The last w - 1 keys, (b w-1 d), and the diagonal system's h, (b p p h n/2) complex."""

    keys: Tensor
    h: Tensor


@dataclass(frozen=True)
class H3Config:
    """state_size n of the diagonal system, shift_size w keys, head_dim p, which divides d_model.

    init, dt_min, dt_max: of the diagonal system, as in S4DConfig.
    """

    state_size: int = 64
    shift_size: int = 64
    head_dim: int = 1
    init: str = "lin"
    dt_min: float = 1e-3
    dt_max: float = 0.1
    dropout: float = 0.0

    def build(self, d_model: int) -> "H3":
        return H3(d_model, self)


class H3(nn.Module):
    """x (b t d) and a state or None, to y (b t d) and the next state."""

    def __init__(self, d: int, config: H3Config):
        super().__init__()
        check_number(low=2, whole=True, shift_size=config.shift_size)
        check_number(low=1, whole=True, head_dim=config.head_dim)
        if d % config.head_dim:
            raise ValueError(f"head_dim: expected a divisor of d_model={d}, got {config.head_dim}")
        self.p = config.head_dim
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(d, d) for _ in range(3))
        self.shift = ShiftSystem(d, config.shift_size)
        system = LayerConfig(
            config.state_size, config.init, dt_min=config.dt_min, dt_max=config.dt_max
        )
        self.kernel = DiagonalSystem(d // self.p, system)
        self.D = nn.Parameter(torch.randn(d // self.p))
        self.dropout = nn.Dropout(config.dropout)
        self.output_linear = nn.Linear(d, d)

    def forward(self, x: Tensor, state: H3State | None = None) -> tuple[Tensor, H3State]:
        check(x=(x, f"b t {self.q_proj.in_features}"))
        keys, h = (None, None) if state is None else state
        self._check_state(x, h)
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        k, keys = self.shift(k, keys)
        q, k, v = (rearrange(z, "b t (h p) -> b t h p", p=self.p) for z in (q, k, v))
        kv = rearrange(k[..., :, None] * v[..., None, :], "b t h p r -> (b p r) t h")
        y, h = self.kernel(kv, self.D, None if h is None else h.flatten(0, 2))
        y = rearrange(y, "(b p r) t h -> b t h p r", p=self.p, r=self.p)
        y = (q[..., None] * y).sum(-2).flatten(2)
        h = h.unflatten(0, (len(x), self.p, self.p))
        return self.output_linear(self.dropout(y)), H3State(keys, h)

    def _check_state(self, x: Tensor, h: Tensor | None) -> None:
        heads, n, _ = self.kernel.B.shape
        wanted = f"{len(x)} {self.p} {self.p} {heads} {n}"
        check(**{"x": (x, "b t d"), "state.h": (h, wanted)})


class ShiftSystem(nn.Module):
    """y_t = sum_i C_i x_{t-i}, i < w: a system whose A shifts its state by one place.

    x (b t d) and the last w - 1 inputs, (b w-1 d) or None for zeros, to y and the next ones.
    """

    def __init__(self, d: int, w: int):
        super().__init__()
        self.C = nn.Parameter(torch.randn(d, w) / w**0.5)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        d, w = self.C.shape
        check(**{"x": (x, f"b t {d}"), "state.keys": (state, f"{len(x)} {w - 1} {d}")})
        wide = torch.promote_types(x.dtype, torch.float32)
        before = x.new_zeros(len(x), w - 1, d, dtype=wide) if state is None else state.to(wide)
        inputs = torch.cat([before, x.to(wide)], dim=1)
        if x.shape[1] == 1:
            y = torch.einsum("bwd,dw->bd", inputs, self.C.flip(1).to(wide))[:, None]
        else:
            y = fft_conv(inputs, self.C)[:, w - 1 :]
        return y.to(x.dtype), inputs[:, 1 - w :].clone()  # a view would keep all of them alive
