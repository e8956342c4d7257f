r"""Mamba-2: heads with one decay each, every input of the recurrence from one projection.

    z, xBC, dt = in_proj(u)
    x, B, C = silu(conv1d(xBC))               causal, one short filter per channel
    y = ssd(x, softplus(dt + dt_bias), -exp(A_log), B, C) + D x
    u = out_proj(norm(y silu(z)))             or norm(y) silu(z)

Parameters are called as in mamba_ssm and transformers. Source: Dao and Gu 2024, section 7.
Against Mamba: dt, B and C no longer wait for x, A is a number per head, and a norm stands before
the last matrix.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmlib.convolution import causal_conv1d, causal_conv1d_step_
from ssmlib.layers import GatedRMSNorm, RMSNorm
from ssmlib.layers.once import Keeper, once
from ssmlib.layers.rows import Convolution, Scale, product, project
from ssmlib.mixers.mamba import DT_FLOOR, inverse_softplus, rates
from ssmlib.s4.initial import timescales
from ssmlib.shapes import check, check_number
from ssmlib.ssd import ssd, ssd_step, ssd_step_


@dataclass(frozen=True)
class Mamba2Config:
    """What a Mamba-2 layer is made of; as it stands, the one that was published.

    state_size n: numbers of state per channel. head_dim p: channels of a head. expand: channels
    h p = expand * d_model. groups g: pairs of B and C, each read by h / g heads, and parts of the
    channels that the norm scales apart. conv_width: taps, 2 to 16. norm_before_gate: the gate
    multiplies after the norm, not before. bias, conv_bias: of the two projections; of the
    convolution. wide_skip: D per channel, (h p), not per head. dt_min, dt_max: where dt starts,
    log-uniformly; at least 1e-4. dt_limit: the smallest and largest step that a token may take, to
    which steps are clamped; None for any. A_min, A_max: where -A starts, uniformly. norm_eps: of
    the norm. chunk_size, backend: of `ssd`; backend also of `causal_conv1d` and of
    the norm, which has no "reference" but "torch".
    """

    state_size: int = 128
    head_dim: int = 64
    expand: int = 2
    groups: int = 1
    conv_width: int = 4
    norm_before_gate: bool = False
    bias: bool = False
    conv_bias: bool = True
    wide_skip: bool = False
    dt_min: float = 1e-3
    dt_max: float = 0.1
    dt_limit: tuple[float, float] | None = None
    A_min: float = 1.0
    A_max: float = 16.0
    norm_eps: float = 1e-5
    chunk_size: int | None = None
    backend: str = "auto"

    def build(self, d_model: int) -> "Mamba2":
        return Mamba2(d_model, self)


class Mamba2State(NamedTuple):
    """The last w - 1 inputs of the convolution, (b h*p+2*g*n w-1); the heads' h, (b h p n)."""

    conv: Tensor
    ssm: Tensor


class Mamba2(Keeper):
    """x (b t d) and what came before, or None, to y (b t d) and the next state.

    Raises ValueError for sizes out of range or that do not divide, and a state of other sizes.
    `slow` are the parameters that set time scales, see `ssmlib.train.param_groups`.
    """

    slow = ("A_log", "dt_bias")

    def __init__(self, d: int, config: Mamba2Config):
        super().__init__()
        c = config
        check_number(low=1, whole=True, d_model=d, state_size=c.state_size, head_dim=c.head_dim)
        check_number(low=1, whole=True, expand=c.expand, groups=c.groups)
        check_number(low=2, high=16, whole=True, conv_width=c.conv_width)
        check_number(low=DT_FLOOR, dt_min=c.dt_min)
        check_number(low=c.dt_min, dt_max=c.dt_max)
        if c.dt_limit is not None:
            low, high = c.dt_limit
            if not 0 <= low < high:
                raise ValueError(f"dt_limit: expected 0 <= low < high, got {c.dt_limit}")
        check_number(low=1e-6, A_min=c.A_min)
        check_number(low=c.A_min, A_max=c.A_max)
        e, h = c.expand * d, _heads(c.expand * d, c)
        mixed = e + 2 * c.groups * c.state_size
        self.config, self.heads = config, h
        self.parts = (e, c.groups * c.state_size, c.groups * c.state_size)
        self.in_proj = nn.Linear(d, e + mixed + h, bias=c.bias)
        self.conv1d = nn.Conv1d(mixed, mixed, c.conv_width, groups=mixed, bias=c.conv_bias)
        self.dt_bias = nn.Parameter(inverse_softplus(timescales(h, c.dt_min, c.dt_max)).float())
        self.A_log = nn.Parameter(torch.empty(h).uniform_(c.A_min, c.A_max).log())
        self.D = nn.Parameter(torch.ones((h, c.head_dim) if c.wide_skip else h))
        form = "torch" if c.backend == "reference" else c.backend
        self.norm = GatedRMSNorm(e, c.groups, c.norm_eps, c.norm_before_gate, form)
        self.out_proj = nn.Linear(e, d, bias=c.bias)

    def forward(self, x: Tensor, state: Mamba2State | None = None) -> tuple[Tensor, Mamba2State]:
        self._check(x, state)
        z, x, dt = self._split(x)
        x, conv = causal_conv1d(
            x,
            *self._taps(),
            activation="silu",
            state=None if state is None else state.conv,
            backend=self.config.backend,
        )
        x, B, C = x.split(self.parts, dim=-1)
        dt, dt_bias = self._steps(dt)
        y, ssm = self._run(x, dt, B, C, dt_bias, None if state is None else state.ssm)
        return product(self.norm(y.flatten(2), z), self.out_proj), Mamba2State(conv, ssm)

    def step_(self, x: Tensor, state: Mamba2State) -> Tensor:
        """One token x (b 1 d) to y (b 1 d), with the next state written over `state`."""
        check(x=(x, "b 1 d"))
        self._check(x, state)
        z, x, dt = (v[:, 0] for v in self._split(x))
        how = {"backend": self.config.backend}
        x = causal_conv1d_step_(x, *self._taps(), activation="silu", state=state.conv, **how)
        y = self._step_(x, dt, None, state)
        return self.out_proj(self.norm(y.flatten(1), z))[:, None]

    def step_past_(self, x: Tensor, state: Mamba2State, norm: RMSNorm) -> Tensor:
        """x + step_(norm(x)) in three launches, see `ssmlib.layers.rows`."""
        check(x=(x, "b 1 d"))
        self._check(x, state)
        past, e = x[:, 0], self.parts[0]
        convolution = Convolution(e, *self._taps(), state.conv)
        made = project(past, self.in_proj, norm, convolution=convolution)
        z, x, dt = made.split([e, sum(self.parts), self.heads], dim=-1)
        if self.norm.groups > 1 or self.norm.norm_before_gate:
            y = self.norm(self._step_(x, dt, None, state).flatten(1), z)
            return project(y, self.out_proj, past=past)[:, None]
        y = self._step_(x, dt, z.unflatten(1, (self.heads, -1)), state).flatten(1)
        return project(y, self.out_proj, Scale(self.norm.weight, self.norm.eps), past)[:, None]

    def _step_(self, x: Tensor, dt: Tensor, z: Tensor | None, state: Mamba2State) -> Tensor:
        """y (b h p) of what was convolved (b e+2*g*n), gated if z is there."""
        x, B, C = self._by_head(*x.split(self.parts, dim=-1))
        dt, dt_bias = self._steps(dt)
        args = (x, dt, self._rates(), B, C, self.D, z, dt_bias, dt_bias is not None)
        return ssd_step_(*args, state=state.ssm, backend=self.config.backend)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gate (b t e), what is convolved (b t e+2*g*n), and dt (b t h)."""
        return product(x, self.in_proj).split([self.parts[0], sum(self.parts), self.heads], dim=-1)

    def _taps(self) -> tuple[Tensor, Tensor | None]:
        return self.conv1d.weight.squeeze(1), self.conv1d.bias  # the module is never called

    def _by_head(self, x: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x as (... h p), B and C as (... g n)."""
        c = self.config
        B, C = (v.unflatten(-1, (c.groups, c.state_size)) for v in (B, C))
        return x.unflatten(-1, (self.heads, c.head_dim)), B, C

    def _rates(self) -> Tensor:
        return once(self, self.A_log, rates)

    def _run(
        self,
        x: Tensor,
        dt: Tensor,
        B: Tensor,
        C: Tensor,
        dt_bias: Tensor | None,
        state: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """y (b t h p) of x (b t e), B and C (b t g*n), and the next state; one token by a step."""
        c, softplus = self.config, dt_bias is not None
        A, (x, B, C) = self._rates(), self._by_head(x, B, C)
        how = {"state": state, "backend": c.backend}
        if state is None or x.shape[1] > 1:
            how["chunk_size"] = c.chunk_size
            return ssd(x, dt, A, B, C, self.D, None, dt_bias, softplus, **how)
        x, dt, B, C = (v.squeeze(1) for v in (x, dt, B, C))
        y, last = ssd_step(x, dt, A, B, C, self.D, None, dt_bias, softplus, **how)
        return y.unsqueeze(1), last

    def _steps(self, dt: Tensor) -> tuple[Tensor, Tensor | None]:
        """dt and the bias for `ssd` to add before its softplus; None where both are done here."""
        if self.config.dt_limit is None:
            return dt, self.dt_bias
        wide = torch.promote_types(dt.dtype, torch.float32)
        return F.softplus(dt.to(wide) + self.dt_bias.to(wide)).clamp(*self.config.dt_limit), None

    def _check(self, x: Tensor, state: Mamba2State | None) -> None:
        c, mixed = self.config, sum(self.parts)
        check(x=(x, f"b t {self.in_proj.in_features}"))
        if state is None:
            return
        if not isinstance(state, Mamba2State):
            raise ValueError(f"state: expected a Mamba2State or None, got {type(state).__name__}")
        for name, part in state._asdict().items():
            if part is None:
                raise ValueError(f"state.{name}: expected a tensor, got None")
        conv = (state.conv, f"b {mixed} {c.conv_width - 1}")
        ssm = (state.ssm, f"b {self.heads} {c.head_dim} {c.state_size}")
        check(x=(x, "b t d"), **{"state.conv": conv, "state.ssm": ssm})


def _heads(e: int, config: Mamba2Config) -> int:
    """How many heads e channels are, or what does not divide what."""
    h, rest = divmod(e, config.head_dim)
    if rest:
        raise ValueError(
            f"head_dim: expected a divisor of {e} = expand * d_model, got {config.head_dim}"
        )
    if h % config.groups:
        told = f"h={h} heads (from expand * d_model / head_dim)"
        raise ValueError(f"groups: expected a divisor of {told}, got {config.groups}")
    return h
