r"""Three systems in three wrappers, each pair trained alike: what is the system's share?

    systems    S4D: time invariant, diagonal. LongConv: time invariant, any kernel, from a network
               that reads the lag (Hyena's). S6: B, C and dt are read from the input.
    wrappers   plain    output_linear(gelu(system(x)))
               h3       output_linear(q * system(conv(k) * v))
               mamba    out_proj(silu(z) * system(silu(conv(x))))

A system is a module from (b t e) to (b t e). Nothing here keeps a state, for an experiment sees
whole sequences; `ssmlib.mixers` has the layers to build with.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmlib.convolution import causal_conv1d, fft_conv
from ssmlib.mixers.mamba import inverse_softplus
from ssmlib.mixers.s4 import DiagonalSystem, LayerConfig
from ssmlib.s4.initial import timescales
from ssmlib.selective_scan import selective_scan
from ssmlib.shapes import check


class SystemConfig(Protocol):
    """What a wrapper is built around."""

    def build(self, e: int) -> nn.Module:
        """A module from (b t e) to (b t e)."""


@dataclass(frozen=True)
class S4DSystem:
    """n real numbers of state per channel; time scales log-uniform from dt_min to dt_max."""

    n: int = 64
    dt_min: float = 1e-3
    dt_max: float = 0.1

    def build(self, e: int) -> nn.Module:
        return _S4D(e, self)


@dataclass(frozen=True)
class LongConvSystem:
    """A kernel of any length from a network of `width` that reads the lag in units of `span`."""

    span: int
    width: int = 64
    frequencies: int = 8

    def build(self, e: int) -> nn.Module:
        return _LongConv(e, self)


@dataclass(frozen=True)
class S6System:
    """Mamba's system: n numbers of state per channel, dt read through `rank` numbers."""

    n: int = 16
    rank: int = 4
    dt_min: float = 1e-3
    dt_max: float = 0.1

    def build(self, e: int) -> nn.Module:
        return _S6(e, self)


@dataclass(frozen=True)
class WrapperConfig:
    """system: what is wrapped, `wrapper`: by which of WRAPPERS.

    conv_width: taps of the short convolution of h3 and mamba. expand: channels of mamba's system
    per channel of the model.
    """

    system: SystemConfig
    wrapper: str
    conv_width: int = 4
    expand: int = 2

    def build(self, d_model: int) -> nn.Module:
        if self.wrapper not in WRAPPERS:
            known = ", ".join(WRAPPERS)
            raise ValueError(f"wrapper: expected one of {known}, got {self.wrapper!r}")
        return WRAPPERS[self.wrapper](d_model, self)


class Wrapper(nn.Module):
    """y, None = wrapper(x), both (b t d); it refuses a state, for it returns none."""

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        check(x=(x, "b t d"))
        if state is not None:
            came = type(state).__name__
            raise ValueError(f"state: expected None, as only whole sequences are seen, got {came}")
        return self.mix(x), None

    def mix(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Plain(Wrapper):
    """A system, a pointwise function and a matrix."""

    def __init__(self, d: int, config: WrapperConfig):
        super().__init__()
        self.system = config.system.build(d)
        self.output_linear = nn.Linear(d, d)

    def mix(self, x: Tensor) -> Tensor:
        return self.output_linear(F.gelu(self.system(x)))


class H3(Wrapper):
    """Two gates: a key meets a value before the system, and a query what it returns."""

    def __init__(self, d: int, config: WrapperConfig):
        super().__init__()
        self.in_proj = nn.Linear(d, 3 * d)
        self.conv1d = nn.Conv1d(d, d, config.conv_width, groups=d)  # holds weights, as below
        self.system = config.system.build(d)
        self.output_linear = nn.Linear(d, d)

    def mix(self, x: Tensor) -> Tensor:
        q, k, v = self.in_proj(x).chunk(3, dim=-1)
        return self.output_linear(q * self.system(_short(self.conv1d, k) * v))


class Mamba(Wrapper):
    """A short convolution before the system, and one gate after it."""

    def __init__(self, d: int, config: WrapperConfig):
        super().__init__()
        e = config.expand * d
        self.in_proj = nn.Linear(d, 2 * e, bias=False)
        self.conv1d = nn.Conv1d(e, e, config.conv_width, groups=e)
        self.system = config.system.build(e)
        self.out_proj = nn.Linear(e, d, bias=False)

    def mix(self, x: Tensor) -> Tensor:
        x, z = self.in_proj(x).chunk(2, dim=-1)
        return self.out_proj(F.silu(z) * self.system(_short(self.conv1d, x, "silu")))


WRAPPERS: dict[str, type[Wrapper]] = {"plain": Plain, "h3": H3, "mamba": Mamba}


def _short(conv: nn.Conv1d, x: Tensor, activation: str | None = None) -> Tensor:
    return causal_conv1d(x, conv.weight.squeeze(1), conv.bias, activation)[0]


class _S4D(nn.Module):
    def __init__(self, e: int, config: S4DSystem):
        super().__init__()
        shared = LayerConfig(config.n, "lin", dt_min=config.dt_min, dt_max=config.dt_max)
        self.kernel = DiagonalSystem(e, shared)
        self.D = nn.Parameter(torch.ones(e))

    def forward(self, x: Tensor) -> Tensor:
        return self.kernel(x, self.D, None)[0]


class _LongConv(nn.Module):
    """Poli et al. 2023: sines of an MLP of the lag, under a window that decays by channel."""

    def __init__(self, e: int, config: LongConvSystem):
        super().__init__()
        self.span, width = config.span, config.width
        self.register_buffer("turns", torch.arange(1.0, config.frequencies + 1) * 2 * math.pi)
        self.layers = nn.ModuleList(
            [nn.Linear(1 + 2 * config.frequencies, width), nn.Linear(width, width)]
        )
        self.last = nn.Linear(width, e, bias=False)
        # the window falls to a hundredth after 0.3 to 1.5 spans
        self.rate = nn.Parameter(math.log(100) / torch.linspace(0.3, 1.5, e))
        self.D = nn.Parameter(torch.ones(e))

    def forward(self, x: Tensor) -> Tensor:
        return fft_conv(x, self.taps(x.shape[1])) + self.D * x

    def taps(self, t: int) -> Tensor:
        """The kernel at lags 0 ... t - 1: (e t)."""
        lag = torch.arange(t, device=self.turns.device)[:, None] / self.span
        z = torch.cat([lag, (lag * self.turns).cos(), (lag * self.turns).sin()], dim=1)
        for layer in self.layers:
            z = torch.sin(10 * layer(z)) if layer is self.layers[0] else torch.sin(layer(z))
        window = torch.exp(-self.rate * lag) * self.rate / self.span  # sums to about 1
        return (self.last(z) * window).mT


class _S6(nn.Module):
    """Parameters named and drawn as in `ssmlib.mixers.mamba`."""

    slow = ("A_log", "dt_proj.bias")

    def __init__(self, e: int, config: S6System):
        super().__init__()
        n, rank = config.n, config.rank
        self.sizes = [rank, n, n]
        self.x_proj = nn.Linear(e, rank + 2 * n, bias=False)
        self.dt_proj = nn.Linear(rank, e)
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        dt = timescales(e, config.dt_min, config.dt_max)
        self.dt_proj.bias = nn.Parameter(inverse_softplus(dt).float())
        self.A_log = nn.Parameter(torch.arange(1, n + 1).float().log().repeat(e, 1))
        self.D = nn.Parameter(torch.ones(e))

    def forward(self, x: Tensor) -> Tensor:
        dt, B, C = self.x_proj(x).split(self.sizes, dim=-1)
        dt, bias = F.linear(dt, self.dt_proj.weight), self.dt_proj.bias
        A = -torch.exp(self.A_log)
        return selective_scan(x, dt, A, B, C, self.D, dt_bias=bias, dt_softplus=True)[0]
