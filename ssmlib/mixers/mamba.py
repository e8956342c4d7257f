r"""Mamba: a diagonal system whose B, C and dt are functions of its input, with a gate.

    x, z = in_proj(x)
    x = silu(conv1d(x))                       causal, one short filter per channel
    dt, B, C = x_proj(x);  dt = dt_proj(dt)   what is not selective is a constant instead
    y = scan(x, softplus(dt + bias), -exp(A_log), B, C) + D x
    y = out_proj(y silu(z))

Parameters are called as in mamba_ssm and transformers. Source: Gu and Dao 2023, section 3.4 and
appendix B. `MambaConfig` can leave out each piece by itself, which is how the book measures it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmlib.convolution import causal_conv1d, causal_conv1d_step_
from ssmlib.layers import RMSNorm
from ssmlib.layers.once import Keeper, once
from ssmlib.layers.rows import Convolution, product, project
from ssmlib.s4.initial import timescales
from ssmlib.selective_scan import selective_scan, selective_scan_step
from ssmlib.selective_scan.step import step_unchecked_
from ssmlib.shapes import check, check_number

SELECTIVE = ("dt", "B", "C")
NORMS = (None, "plain", "learned")
DT_FLOOR = 1e-4  # mamba_ssm raises smaller steps to this one; here they are refused


@dataclass(frozen=True)
class MambaConfig:
    """What a Mamba layer is made of; as it stands, the one that was published.

    state_size n: numbers of state per channel. conv_width: taps, 2 to 16, or None for no
    convolution. expand: channels e = expand * d_model. dt_rank r: of dt's two matrices; None for
    d_model / 16, rounded up. dt_min, dt_max: where dt starts, log-uniformly; at least 1e-4.
    selective: which of "dt", "B", "C" depend on the token; in place of the others stand learned
    constants of the same shape, one dt per channel, one B or C (n,) for all of them. With () the
    system is linear and time invariant. gated: y is multiplied by silu(z). bias, conv_bias: of
    in_proj and out_proj; of the convolution. norms: an RMS norm of each selective dt (r), B and C,
    with weights ("learned", as in Jamba), without ("plain", as in Falcon-Mamba), or None; norm_eps
    is theirs. backend: of `selective_scan` and `causal_conv1d`.
    """

    state_size: int = 16
    conv_width: int | None = 4
    expand: int = 2
    dt_rank: int | None = None
    dt_min: float = 1e-3
    dt_max: float = 0.1
    selective: tuple[str, ...] = SELECTIVE
    gated: bool = True
    bias: bool = False
    conv_bias: bool = True
    norms: str | None = None
    norm_eps: float = 1e-6
    backend: str = "auto"

    def build(self, d_model: int) -> "Mamba":
        return Mamba(d_model, self)


class MambaState(NamedTuple):
    """The last w - 1 inputs of the convolution, (b e w-1), None if there is none; h, (b e n)."""

    conv: Tensor | None
    ssm: Tensor | None


class Mamba(Keeper):
    """x (b t d) and what came before, or None, to y (b t d) and the next state.

    Raises ValueError for sizes out of range, an unknown name in selective, and a state of other
    sizes. `slow` are the parameters that set time scales, see `ssmlib.train.param_groups`.
    """

    slow = ("A_log", "dt_proj.bias", "dt_bias", "B")

    def __init__(self, d: int, config: MambaConfig):
        super().__init__()
        c = config
        rank = -(-d // 16) if c.dt_rank is None else c.dt_rank
        check_number(low=1, whole=True, d_model=d, state_size=c.state_size)
        check_number(low=1, whole=True, expand=c.expand, dt_rank=rank)
        _check_selective(c.selective)
        e, n = c.expand * d, c.state_size
        self.config, self.d_state = config, n
        self.in_proj = nn.Linear(d, 2 * e if c.gated else e, bias=c.bias)
        if c.conv_width is not None:
            check_number(low=2, high=16, whole=True, conv_width=c.conv_width)
            self.conv1d = nn.Conv1d(e, e, c.conv_width, groups=e, bias=c.conv_bias)  # never called
        sizes = {"dt": rank, "B": n, "C": n}
        self.parts = {name: sizes[name] for name in SELECTIVE if name in c.selective}
        if self.parts:
            self.x_proj = nn.Linear(e, sum(self.parts.values()), bias=False)
        _check_norms(c.norms, c.norm_eps)
        if c.norms == "learned":
            for name, size in self.parts.items():
                self.register_module(f"{name.lower()}_layernorm", RMSNorm(size, c.norm_eps))
        bias = inverse_softplus(_steps(e, c)).float()
        if "dt" in self.parts:
            self.dt_proj = nn.Linear(rank, e)
            nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
            self.dt_proj.bias = nn.Parameter(bias)
        else:
            self.dt_bias = nn.Parameter(bias)
        if "B" not in self.parts:
            self.B = nn.Parameter(torch.ones(n))
        if "C" not in self.parts:
            self.C = nn.Parameter(torch.randn(n))
        self.A_log = nn.Parameter(torch.arange(1, n + 1).float().log().repeat(e, 1))
        self.D = nn.Parameter(torch.ones(e))
        self.out_proj = nn.Linear(e, d, bias=c.bias)

    def forward(self, x: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        x, z, conv = self._inputs(x, state)
        dt, B, C = self._select(x)
        A, bias, backend = self._rates(), self._dt_bias(), self.config.backend
        if state is None or x.shape[1] > 1:
            before = None if state is None else state.ssm
            y, ssm = selective_scan(
                x, dt, A, B, C, self.D, z, bias, True, state=before, backend=backend
            )
        else:
            x, dt, B, C, z = (None if v is None else v.squeeze(1) for v in (x, dt, B, C, z))
            y, ssm = selective_scan_step(
                x, dt, A, B, C, self.D, z, bias, True, state=state.ssm, backend=backend
            )
            y = y.unsqueeze(1)
        return product(y, self.out_proj), MambaState(conv, ssm)

    def step_(self, x: Tensor, state: MambaState) -> Tensor:
        """One token x (b 1 d) to y (b 1 d), with the next state written over `state`."""
        self._check(x, state, "1")
        x, z = (None if v is None else v[:, 0] for v in self._split(x))
        if state.conv is None:
            x = F.silu(x)
        else:
            how = {"activation": "silu", "state": state.conv, "backend": self.config.backend}
            x = causal_conv1d_step_(x, *self._taps(), **how)
        return self.out_proj(self._step_(x, z, state))[:, None]

    def step_past_(self, x: Tensor, state: MambaState, norm: RMSNorm) -> Tensor:
        """x + step_(norm(x)) in a launch for each product and one, see `ssmlib.layers.rows`."""
        self._check(x, state, "1")
        past, kept = x[:, 0], state.conv
        convolution = None if kept is None else Convolution(0, *self._taps(), kept)
        made = project(past, self.in_proj, norm, convolution=convolution)
        x, z = made.chunk(2, dim=-1) if self.config.gated else (made, None)
        x = F.silu(x) if kept is None else x
        return project(self._step_(x, z, state), self.out_proj, past=past)[:, None]

    def _step_(self, x: Tensor, z: Tensor | None, state: MambaState) -> Tensor:
        """y (b e) of what was convolved and what gates, (b e)."""
        dt, B, C = self._select(x[:, None])
        how = (self.D, z, self._dt_bias(), True, state.ssm, self.config.backend)
        return step_unchecked_(x, dt[:, 0], self._rates(), B, C, *how)

    def delta(self, x: Tensor, state: MambaState | None = None) -> Tensor:
        """The time steps softplus(dt + bias) with which `forward` would read x: (b t e), float32.

        How far each channel's clock runs at each token: near 0 it ignores the token and holds what
        it has, large it forgets and takes the token in.
        """
        x, _, _ = self._inputs(x, state)
        return F.softplus(_wide(self._select(x)[0]) + _wide(self._dt_bias()))

    def _inputs(
        self, x: Tensor, state: MambaState | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The channels that enter the scan and those that gate it, (b t e), and the conv state."""
        self._check(x, state)
        x, z = self._split(x)
        if self.config.conv_width is None:
            return F.silu(x), z, None
        x, conv = causal_conv1d(
            x,
            *self._taps(),
            activation="silu",
            state=None if state is None else state.conv,
            backend=self.config.backend,
        )
        return x, z, conv

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The channels that enter the convolution and those that gate it, (b t e)."""
        made = product(x, self.in_proj)
        return made.chunk(2, dim=-1) if self.config.gated else (made, None)

    def _taps(self) -> tuple[Tensor, Tensor | None]:
        return self.conv1d.weight.squeeze(1), self.conv1d.bias

    def _select(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dt (b t e) before its bias, B and C (b t n)."""
        made: dict[str, Tensor] = {}
        if self.parts:
            pieces = product(x, self.x_proj).split(list(self.parts.values()), dim=-1)
            made = {k: self._norm(k, v) for k, v in zip(self.parts, pieces, strict=True)}
        dt = product(made["dt"], self.dt_proj, False) if "dt" in made else x.new_zeros(1, 1, 1)
        B, C = (
            made[name] if name in made else getattr(self, name).expand(*x.shape[:2], -1)
            for name in "BC"
        )
        return dt.expand(x.shape), B, C

    def _norm(self, name: str, x: Tensor) -> Tensor:
        """What was selected for dt, B or C, scaled to a root mean square of 1 where configured."""
        if self.config.norms is None:
            return x
        if self.config.norms == "learned":
            return getattr(self, f"{name.lower()}_layernorm")(x)
        return F.rms_norm(_wide(x), x.shape[-1:], eps=self.config.norm_eps).to(x.dtype)

    def _rates(self) -> Tensor:
        return once(self, self.A_log, rates)

    def _dt_bias(self) -> Tensor:
        return self.dt_proj.bias if "dt" in self.parts else self.dt_bias

    def _check(self, x: Tensor, state: MambaState | None, t: str = "t") -> None:
        d, e, width = self.in_proj.in_features, len(self.D), self.config.conv_width
        if state is None:
            check(x=(x, f"b {t} {d}"))
            return
        if not isinstance(state, MambaState):
            raise ValueError(f"state: expected a MambaState or None, got {type(state).__name__}")
        if (state.conv is None) != (width is None):
            wanted = "None, as conv_width is" if width is None else f"(b, {e}, {width - 1})"
            came = "None" if state.conv is None else f"shape {tuple(state.conv.shape)}"
            raise ValueError(f"state.conv: expected {wanted}, got {came}")
        kept = {"state.conv": (state.conv, f"b {e} {(width or 1) - 1}")}
        check(x=(x, f"b {t} {d}"), **kept, **{"state.ssm": (state.ssm, f"b {e} {self.d_state}")})


def rates(A_log: Tensor) -> Tensor:
    """A, below 0 whatever an optimizer does to its parameter; float32 or wider."""
    return -torch.exp(_wide(A_log))


def inverse_softplus(y: Tensor) -> Tensor:
    """The x with log(1 + e^x) = y > 0, accurate also where y is tiny."""
    return y + torch.log(-torch.expm1(-y))


def _steps(e: int, config: MambaConfig) -> Tensor:
    check_number(low=DT_FLOOR, dt_min=config.dt_min)
    check_number(low=config.dt_min, dt_max=config.dt_max)
    return timescales(e, config.dt_min, config.dt_max)


def _check_selective(selective: tuple[str, ...]) -> None:
    unknown = [name for name in selective if name not in SELECTIVE]
    if isinstance(selective, str) or unknown:
        known = ", ".join(SELECTIVE)
        raise ValueError(f"selective: expected a tuple of {known}, got {selective!r}")


def _check_norms(norms: str | None, eps: float) -> None:
    if norms not in NORMS:
        raise ValueError(f"norms: expected None, 'plain' or 'learned', got {norms!r}")
    check_number(low=0, norm_eps=eps)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
