r"""Griffin's recurrent layer: a gated diagonal recurrence of real numbers, and a gated branch.

    x = conv_1d(linear_x(u))                  causal, one short filter per channel
    r, i = sigmoid(gates of x)                block-diagonal matrices, one block per head
    log a = -c r softplus(recurrent_param)    a_t = a^(c r_t), a = sigmoid(-recurrent_param)
    h_t = a_t h_{t-1} + sqrt(1 - a_t²) (i_t x_t)
    y = linear_out(h * gelu(linear_y(u)))

The square root keeps the size of h the same whatever a is. Parameters are called as in
transformers' RecurrentGemma. Source: De et al. 2024 (arXiv 2402.19427), section 2.4.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmlib.convolution import causal_conv1d, causal_conv1d_step_
from ssmlib.layers.mlp import activation
from ssmlib.scan import scan
from ssmlib.shapes import check, check_number

EXPONENT = 8.0  # the paper's c
TINY = 1e-30  # where a_t is 1 to all digits, sqrt has no slope


@dataclass(frozen=True)
class RGLRUConfig:
    """As it stands, the layer of Griffin and RecurrentGemma.

    width e: channels, None for d_model. heads: blocks of the gates' matrices, which divide e.
    conv_width: taps, 2 to 16. a_min, a_max: between which a^c starts, uniformly. first_whole: the
    first token of a sequence enters unscaled, as in RecurrentGemma; the paper does not say.
    activation: of the gated branch. backend: of `scan` and `causal_conv1d`.
    """

    width: int | None = None
    heads: int = 8
    conv_width: int = 4
    a_min: float = 0.9
    a_max: float = 0.999
    first_whole: bool = True
    activation: str = "gelu_tanh"
    backend: str = "auto"

    def build(self, d_model: int) -> "RGLRU":
        return RGLRU(d_model, self)


class RGLRUState(NamedTuple):
    """The last w - 1 inputs of the convolution, (b e w-1), and h, (b e), float32 or wider."""

    conv: Tensor
    h: Tensor


class Gates(nn.Module):
    """The gates of x (b t e) and what they make of it: log a and the input of the scan, (b t e)."""

    def __init__(self, e: int, config: RGLRUConfig):
        super().__init__()
        h, p = config.heads, e // config.heads
        check_number(low=1e-6, high=1 - 1e-6, a_min=config.a_min, a_max=config.a_max)
        check_number(low=config.a_min, a_max=config.a_max)
        powered = torch.empty(e).uniform_(config.a_min, config.a_max)  # a^c
        rate = -powered.log() / EXPONENT
        self.recurrent_param = nn.Parameter(torch.log(torch.expm1(rate)))
        for name in ("input_gate", "recurrent_gate"):
            weight = nn.Parameter(torch.randn(h, p, p) * p**-0.5)
            self.register_parameter(f"{name}_weight", weight)
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.zeros(h, p)))

    def forward(self, x: Tensor, first: bool) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(x.dtype, torch.float32)
        open_ = self._gate("input_gate", x).to(wide).sigmoid()
        r = self._gate("recurrent_gate", x).to(wide).sigmoid()
        log_a = -EXPONENT * r * F.softplus(self.recurrent_param.to(wide))
        gain = (-torch.expm1(2 * log_a)).clamp_min(TINY).sqrt()
        if first:
            gain = torch.cat([torch.ones_like(gain[:, :1]), gain[:, 1:]], dim=1)
        return log_a.exp(), gain * open_ * x.to(wide)

    def _gate(self, name: str, x: Tensor) -> Tensor:
        weight, bias = getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias")
        parts = x.unflatten(-1, bias.shape)
        return (torch.einsum("bthp,hpk->bthk", parts, weight) + bias).flatten(-2)


class RGLRU(nn.Module):
    """x (b t d) and what came before, or None, to y (b t d) and the next state.

    Raises ValueError for sizes out of range or that do not divide, and a state of other sizes.
    `slow` are the parameters that set time scales, see `ssmlib.train.param_groups`.
    """

    slow = ("rg_lru.recurrent_param",)

    def __init__(self, d: int, config: RGLRUConfig):
        super().__init__()
        e, w = d if config.width is None else config.width, config.conv_width
        check_number(low=1, whole=True, d_model=d, width=e, heads=config.heads)
        check_number(low=2, high=16, whole=True, conv_width=w)
        if e % config.heads:
            raise ValueError(f"heads: expected a divisor of width={e}, got {config.heads}")
        self.config, self.activation = config, activation(config.activation)
        self.linear_y, self.linear_x = nn.Linear(d, e), nn.Linear(d, e)
        self.conv_1d = nn.Conv1d(e, e, w, groups=e)  # holds weights, is never called
        self.rg_lru = Gates(e, config)
        self.linear_out = nn.Linear(e, d)

    def forward(self, x: Tensor, state: RGLRUState | None = None) -> tuple[Tensor, RGLRUState]:
        self._check(x, state)
        u, conv = causal_conv1d(
            self.linear_x(x),
            *self._taps(),
            state=None if state is None else state.conv,
            backend=self.config.backend,
        )
        a, taken = self.rg_lru(u, first=state is None and self.config.first_whole)
        start = None if state is None else state.h
        h, last = scan(a, taken, start, backend=self.config.backend)
        return self._out(x, h), RGLRUState(conv, last)

    def step_(self, x: Tensor, state: RGLRUState) -> Tensor:
        """One token x (b 1 d) to y (b 1 d), with the next state written over `state`."""
        check(x=(x, "b 1 d"))
        self._check(x, state)
        taps, backend = self._taps(), self.config.backend
        u = causal_conv1d_step_(self.linear_x(x)[:, 0], *taps, state=state.conv, backend=backend)
        a, taken = self.rg_lru(u[:, None], first=False)
        state.h.mul_(a[:, 0]).add_(taken[:, 0])
        return self._out(x, state.h[:, None])

    def _taps(self) -> tuple[Tensor, Tensor]:
        return self.conv_1d.weight.squeeze(1), self.conv_1d.bias

    def _out(self, x: Tensor, h: Tensor) -> Tensor:
        return self.linear_out(h.to(x.dtype) * self.activation(self.linear_y(x)))

    def _check(self, x: Tensor, state: RGLRUState | None) -> None:
        e = self.linear_x.out_features
        check(x=(x, f"b t {self.linear_x.in_features}"))
        if state is None:
            return
        if not isinstance(state, RGLRUState):
            raise ValueError(f"state: expected an RGLRUState or None, got {type(state).__name__}")
        conv = (state.conv, f"b {e} {self.config.conv_width - 1}")
        check(x=(x, "b t d"), **{"state.conv": conv, "state.h": (state.h, f"b {e}")})
