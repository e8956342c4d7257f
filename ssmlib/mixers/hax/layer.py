r"""HAX as a layer: what the base layer says, plus what hashed keys and selected keys say.

    y = base(x) + o_proj(attend(q, k, v, places))

    q, k = norm(q_proj(x)), norm(conv1d(k_proj(x)))      each key may look a few tokens back
    places = the last `window`, `bucket` of each of `rounds` buckets, `selected` by score

Source: Zhan et al. 2025 ("HAX": locality-sensitive hashing attention with key selection). There
the sparse branch stands inside the Mamba layer, before its gate; the planes are drawn anew at each
call, queries and keys are centred by their mean over the whole sequence, and a separate ranking
loss trains the scores. Here the layer stands beside any other, planes are drawn once, nothing looks
ahead, and log σ(score) is added to a key's logit, which trains scores without a loss of their own.

The work over a sequence grows as t log t, and nearly as t: each query sees a fixed number of keys.
The state is a cache that grows with t, and a decoded token sorts all of its codes anew.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmlib.convolution import causal_conv1d
from ssmlib.layers import RMSNorm
from ssmlib.mixers.hax import places as find
from ssmlib.mixers.hax.attend import attend_to
from ssmlib.mixers.mamba2 import Mamba2Config
from ssmlib.shapes import check, check_number


@dataclass(frozen=True)
class HAXConfig:
    """base: the configuration of the layer beside it. heads, which divide d_model; key_size k.

    window: the last tokens seen by all, oneself included. rounds, bits, bucket: how many hashes, of
    how many planes, and how many of the latest in a bucket are seen. selected: keys seen by score.
    sinks: first tokens seen; dilation: see every so-many-th token; None for none. Zero rounds,
    selected or sinks leave that part out. tied: queries and keys have one projection, so that
    equal tokens have equal hashes from the start. conv_width: taps of the keys' convolution, which
    starts as a shift by one: the key of a token is what came before it, as in an induction head.
    backend: of the attention.
    """

    base: Any = field(default_factory=Mamba2Config)
    heads: int = 1
    key_size: int = 32
    window: int = 1
    rounds: int = 1
    bits: int = 8
    bucket: int = 32
    selected: int = 32
    sinks: int = 0
    dilation: int | None = None
    tied: bool = True
    conv_width: int = 4
    backend: str = "auto"

    def build(self, d_model: int) -> "HAX":
        return HAX(d_model, self)


class HAXState(NamedTuple):
    """What the layer keeps: of the base; the last inputs of the convolution; and for every token
    its key (b t h k), value (b t h v), code (b h s t) and score (b h t), the last two if used."""

    base: Any
    conv: Tensor
    k: Tensor
    v: Tensor
    codes: Tensor | None
    scores: Tensor | None


class HAX(nn.Module):
    """x (b t d) and a state, or None, to y (b t d) and the next state."""

    def __init__(self, d: int, config: HAXConfig):
        super().__init__()
        _check(d, config)
        self.config, h, k = config, config.heads, config.key_size
        self.base = config.base.build(d)
        self.k_proj = nn.Linear(d, h * k, bias=False)
        self.q_proj = self.k_proj if config.tied else nn.Linear(d, h * k, bias=False)
        shift = F.one_hot(torch.tensor(config.conv_width - 2), config.conv_width)
        self.conv1d = nn.Parameter(shift.float().repeat(h * k, 1))
        self.norm = RMSNorm(k)
        self.v_proj, self.o_proj = nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False)
        if config.selected:
            self.score = nn.Sequential(nn.Linear(d, d), nn.SiLU(), nn.Linear(d, h))
        if config.rounds:
            self.register_buffer("planes", torch.randn(h, config.rounds, config.bits, k))

    def forward(self, x: Tensor, state: HAXState | None = None) -> tuple[Tensor, HAXState]:
        check(x=(x, f"b t {self.v_proj.in_features}"))
        past = state or HAXState(*(None,) * len(HAXState._fields))
        y, base = self.base(x, past.base)
        h = self.config.heads
        mixed, conv = causal_conv1d(self.k_proj(x), self.conv1d, state=past.conv)
        q, k = (self.norm(z.unflatten(2, (h, -1))) for z in (self.q_proj(x), mixed))
        v = self.v_proj(x).unflatten(2, (h, -1))
        codes = scores = None
        if self.config.rounds:
            codes = _join(past.codes, find.hash_codes(k.detach(), self.planes), 3)
        if self.config.selected:
            scores = _join(past.scores, F.logsigmoid(self.score(x)).transpose(1, 2), 2)
        state = HAXState(base, conv, _join(past.k, k, 1), _join(past.v, v, 1), codes, scores)
        seen = self._places(q, state)
        sparse = attend_to(q, state.k, state.v, seen, scores, self.config.backend)
        return y + self.o_proj(sparse.flatten(2).to(x.dtype)), state

    @torch.no_grad()
    def _places(self, q: Tensor, state: HAXState) -> Tensor:
        """(b h c m) the keys that each query sees."""
        config, (b, c, h, _), t = self.config, q.shape, state.k.shape[1]
        lists = [find.recent(c, t, config.window, q.device)]
        if config.sinks:
            lists.append(find.sinks(c, t, config.sinks, q.device))
        if config.dilation is not None and config.dilation <= t:
            lists.append(find.dilated(c, t, config.dilation, q.device))
        lists = [places.expand(b, h, -1, -1) for places in lists]
        if config.rounds:
            lists.append(find.buckets(find.hash_codes(q, self.planes), state.codes, config.bucket))
        if config.selected:
            lists.append(find.selected(state.scores, c, config.selected))
        return torch.cat(lists, dim=3)


def _join(past: Tensor | None, now: Tensor, dim: int) -> Tensor:
    return now if past is None else torch.cat([past, now], dim)


def _check(d: int, config: HAXConfig) -> None:
    check_number(low=1, whole=True, heads=config.heads, key_size=config.key_size)
    check_number(low=1, whole=True, window=config.window, bucket=config.bucket)
    check_number(low=0, whole=True, rounds=config.rounds, selected=config.selected)
    check_number(low=0, whole=True, sinks=config.sinks)
    check_number(low=1, high=find.MOST_BITS, whole=True, bits=config.bits)
    check_number(low=2, high=16, whole=True, conv_width=config.conv_width)
    if config.dilation is not None:
        check_number(low=1, whole=True, dilation=config.dilation)
    if d % config.heads:
        raise ValueError(f"heads: expected a divisor of d_model={d}, got {config.heads}")
