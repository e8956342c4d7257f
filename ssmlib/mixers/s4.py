r"""S4 and S4D as layers: one linear system per channel, a pointwise function, a mix of channels.

    u = system(x) + D x        S4Config: `ssmlib.s4.s4`; S4DConfig: `ssmlib.s4.s4d`
    y = output_linear(dropout(activation(u)))

A sequence is a convolution, one token a step of the recurrence, of the same weights. Parameters are
called as in the S4 authors' code (log_dt, log_A_real, A_imag, P, B, C, D, output_linear): real
numbers, with a last axis of two where they are complex. A is -exp(log_A_real) + i A_imag, so that
its real parts stay below 0 whatever an optimizer does.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmlib.convolution import fft_conv
from ssmlib.s4 import initial, kernel_diagonal, kernel_dplr, s4, s4d
from ssmlib.s4.diagonal import check_method
from ssmlib.shapes import check

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "silu": F.silu,
    "none": nn.Identity(),
}
GROUPS = {
    "A": ("log_A_real", "A_imag"),
    "P": ("P",),
    "B": ("B",),
    "C": ("C", "C_future"),
    "dt": ("log_dt",),
}


@dataclass(frozen=True)
class LayerConfig:
    """What S4 and S4D share.

    state_size n: real numbers of state per channel, even. init: see `ssmlib.s4.poles`. dt_min,
    dt_max: where dt starts, log-uniformly. activation: "gelu", "silu" or "none". gated:
    output_linear ends in a GLU. bidirectional: a second kernel for later tokens, and no state.
    freeze: which of "A", "P", "B", "C", "dt" are not learned. backend: of `s4d` or `s4`.
    """

    state_size: int = 64
    init: str = "legs"
    dt_min: float = 1e-3
    dt_max: float = 0.1
    activation: str = "gelu"
    gated: bool = True
    bidirectional: bool = False
    dropout: float = 0.0
    freeze: tuple[str, ...] = ()
    backend: str = "auto"


@dataclass(frozen=True)
class S4Config(LayerConfig):
    """S4: diagonal plus low rank, bilinear."""

    def build(self, d_model: int) -> "S4Layer":
        return S4Layer(DPLRSystem(d_model, self), self)


@dataclass(frozen=True)
class S4DConfig(LayerConfig):
    """S4D: diagonal; method "zoh" or "bilinear"."""

    method: str = "zoh"

    def build(self, d_model: int) -> "S4Layer":
        return S4Layer(DiagonalSystem(d_model, self, self.method), self)


class S4Layer(nn.Module):
    """x (b t d) and state (b d n/2), complex, or None, to y (b t d) and the next state.

    With bidirectional=True there is no next piece: it returns no state, and refuses one.
    """

    def __init__(self, system: "DPLRSystem | DiagonalSystem", config: LayerConfig):
        super().__init__()
        if config.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"activation: expected one of {known}, got {config.activation!r}")
        d = system.log_dt.shape[0]
        self.kernel = system
        self.D = nn.Parameter(torch.randn(d))
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = nn.Dropout(config.dropout)
        self.output_linear = nn.Linear(d, 2 * d if config.gated else d)
        self.gated, self.bidirectional = config.gated, config.bidirectional

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        check(x=(x, f"b t {len(self.D)}"))
        if not self.bidirectional:
            u, state = self.kernel(x, self.D, state)
        elif state is None:
            now, later = self.kernel.kernels(x.shape[1])
            u = (fft_conv(x, now, future=later) + self.D * x).to(x.dtype)
        else:
            raise ValueError(
                "state: expected None for a bidirectional layer, which has no next piece"
            )
        y = self.output_linear(self.dropout(self.activation(u)))
        return F.glu(y, dim=-1) if self.gated else y, state


class DiagonalSystem(nn.Module):
    """The parameters of `s4d` for d channels, and its two forms; `slow` are those that set time."""

    slow = ("log_dt", "log_A_real", "A_imag", "B")

    def __init__(self, d: int, config: LayerConfig, method: str = "zoh"):
        super().__init__()
        self.method, self.backend = check_method(method), config.backend
        _register(self, d, config, initial.diagonal(config.init, config.state_size, d))

    def forward(self, x: Tensor, D: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
        how = {"method": self.method, "backend": self.backend}
        return s4d(x, *self._system(), _complex(self.C), D, state=state, **how)

    def kernels(self, length: int) -> list[Tensor]:
        """The kernel of past tokens (d t), and if there is one that of later tokens."""
        system = self._system()
        return [kernel_diagonal(*system, C, length, method=self.method) for C in _outputs(self)]

    def _system(self) -> tuple[Tensor, Tensor, Tensor]:
        return *_dt_and_poles(self), _complex(self.B)


class DPLRSystem(nn.Module):
    """The parameters of `s4` for d channels, and its two forms; `slow` are those that set time."""

    slow = ("log_dt", "log_A_real", "A_imag", "P", "B")

    def __init__(self, d: int, config: LayerConfig):
        super().__init__()
        self.backend = config.backend
        system = initial.dplr(config.init, config.state_size, d)
        self.P = nn.Parameter(_pair(system.P))
        _register(self, d, config, system)

    def forward(self, x: Tensor, D: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
        return s4(x, *self._system(), _complex(self.C), D, state=state, backend=self.backend)

    def kernels(self, length: int) -> list[Tensor]:
        """The kernel of past tokens (d t), and if there is one that of later tokens."""
        system = self._system()
        return [kernel_dplr(*system, C, length) for C in _outputs(self)]

    def _system(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return *_dt_and_poles(self), _complex(self.P), _complex(self.B)


def _register(module: nn.Module, d: int, config: LayerConfig, system: initial.System) -> None:
    """Add log_dt, A, B and C, and freeze what the config says."""
    A, _, B = system
    dt = initial.timescales(d, config.dt_min, config.dt_max)
    module.log_dt = nn.Parameter(dt.log().float())
    module.log_A_real = nn.Parameter((-A.real).log().float())
    module.A_imag = nn.Parameter(A.imag.float())
    module.B = nn.Parameter(_pair(B))
    for name in GROUPS["C"][: 1 + config.bidirectional]:
        module.register_parameter(name, nn.Parameter(_pair(torch.randn(A.shape, dtype=A.dtype))))
    own = dict(module.named_parameters(recurse=False))
    for group in config.freeze:
        frozen = [own[name] for name in GROUPS.get(group, ()) if name in own]
        if not frozen:
            known = ", ".join(g for g, names in GROUPS.items() if names[0] in own)
            raise ValueError(f"freeze: expected names of {known}, got {group!r}")
        for parameter in frozen:
            parameter.requires_grad_(False)


def _outputs(module: nn.Module) -> list[Tensor]:
    own = dict(module.named_parameters(recurse=False))
    return [_complex(own[name]) for name in GROUPS["C"] if name in own]


def _dt_and_poles(module: nn.Module) -> tuple[Tensor, Tensor]:
    dt, size, frequency = (_wide(p) for p in (module.log_dt, module.log_A_real, module.A_imag))
    return dt.exp(), torch.complex(-size.exp(), frequency)


def _pair(z: Tensor) -> Tensor:
    return torch.view_as_real(z.to(torch.complex64)).clone()


def _complex(pair: Tensor) -> Tensor:
    return torch.view_as_complex(_wide(pair).contiguous())


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
