r"""A mixture of experts: many MLPs, of which each token visits a few.

    p = softmax(router(x));  y = sum over the `active` largest p_e of p_e expert_e(x)

An expert is a gated MLP, its two matrices in stacked as transformers stacks them. Sources: Shazeer
et al. 2017; Fedus, Zoph and Shazeer 2022 (the loss, the capacity); Lieber et al. 2024 (Jamba).

- `dispatch_reference`: every expert sees every token; the truth the others are tested against.
- `dispatch_torch`: tokens sorted by expert, one expert after the other.
- `dispatch_grouped`: the same in one grouped product, without asking a GPU how many rows each has.
- `dispatch_padded`: a fixed number of rows for each expert, what is left over is dropped.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmlib.layers.mlp import activation, usual_width
from ssmlib.shapes import check, check_number

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class MoEConfig:
    """experts: how many; active: how many of them a token visits.

    hidden: an expert's width, None as in `MLPConfig`; activation: of its gate. normalize: the
    chosen p sum to 1 (Mixtral); as they stand otherwise (Jamba). capacity c: while training, an
    expert takes at most c * active * tokens / experts, rounded up, first choices and earlier tokens
    first, and the rest go past it; None for no limit, and evaluation has none, so that no token
    depends on another. backend: "auto", or a name in DISPATCH.
    """

    experts: int = 8
    active: int = 2
    hidden: int | None = None
    activation: str = "silu"
    normalize: bool = False
    capacity: float | None = None
    backend: str = "auto"

    def build(self, d_model: int) -> "MoE":
        return MoE(d_model, self)


class Experts(nn.Module):
    """The weights of e gated MLPs: gate_up_proj (e, 2 hidden, d) and down_proj (e, d, hidden)."""

    def __init__(self, experts: int, d: int, hidden: int):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * hidden, d))
        self.down_proj = nn.Parameter(torch.empty(experts, d, hidden))
        nn.init.uniform_(self.gate_up_proj, -(d**-0.5), d**-0.5)
        nn.init.uniform_(self.down_proj, -(hidden**-0.5), hidden**-0.5)


class MoE(nn.Module):
    """x (b t d) to y (b t d), each token by itself; it has no state, and returns None for it.

    While training, `balance` holds the last call's `load_balance`; `balance_loss` collects them.
    Raises ValueError for more active experts than there are, or a backend that cannot run.
    """

    def __init__(self, d: int, config: MoEConfig):
        super().__init__()
        c = config
        hidden = usual_width(d, gated=True) if c.hidden is None else c.hidden
        check_number(low=1, whole=True, experts=c.experts, active=c.active, hidden=hidden)
        if c.active > c.experts:
            raise ValueError(f"active: expected at most experts={c.experts}, got {c.active}")
        if c.capacity is not None:
            check_number(low=1e-9, capacity=c.capacity)
        if c.backend not in ("auto", *DISPATCH):
            known = ", ".join(("auto", *DISPATCH))
            raise ValueError(f"backend: expected one of {known}, got {c.backend!r}")
        self.config, self.activation = config, activation(c.activation)
        self.router = nn.Linear(d, c.experts, bias=False)
        self.experts = Experts(c.experts, d, hidden)
        self.balance: Tensor | None = None

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        check(x=(x, f"b t {self.router.in_features}"))
        if state is not None:
            raise ValueError(f"state: expected None, experts have none, got {type(state).__name__}")
        c, rows = self.config, x.flatten(0, 1)
        logits = self.router(rows)
        share, chosen = route(logits, c.active, c.normalize)
        weights = (self.experts.gate_up_proj, self.experts.down_proj, self.activation)
        if self.training:
            self.balance = load_balance(logits, c.active)
        if self.training and c.capacity is not None:
            limit = ceil(c.capacity * c.active * len(rows) / c.experts)
            y = dispatch_padded(rows, share, chosen, *weights, limit)
        else:
            dispatch = DISPATCH[_resolve(c.backend, rows, weights[1])]
            y = dispatch(rows, share, chosen, *weights)
        return y.view_as(x), None


def route(logits: Tensor, active: int, normalize: bool = False) -> tuple[Tensor, Tensor]:
    """The `active` largest of softmax(logits), logits (t e), and which: both (t active).

    The softmax is float32 or wider; the shares have the dtype of logits.
    """
    check(logits=(logits, "t e"))
    wide = torch.promote_types(logits.dtype, torch.float32)
    share, chosen = logits.to(wide).softmax(-1).topk(active, dim=-1)
    if normalize:
        share = share / share.sum(-1, keepdim=True)
    return share.to(logits.dtype), chosen


def load_balance(logits: Tensor, active: int) -> Tensor:
    """The loss that is least when all experts are alike in use: e * sum_e f_e P_e, logits (t e).

    f_e is the number of visits to e for each token, without a gradient, and P_e the mean of its
    softmax; in balance the loss is `active`. Fedus et al. 2022, equations 4 to 6, for active = 1.
    """
    check(logits=(logits, "t e"))
    e = logits.shape[1]
    p = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
    visits = _counts(p.topk(active, dim=-1).indices, e).to(p.dtype) / len(p)
    return e * (visits * p.mean(0)).sum()


def balance_loss(model: nn.Module) -> Tensor:
    """The mean `load_balance` of a model's mixtures in their last training call; forgets them.

    Raises ValueError for a model that has none, or has not been called in training mode since.
    """
    mixtures = [m for m in model.modules() if isinstance(m, MoE)]
    losses = [m.balance for m in mixtures if m.balance is not None]
    if not losses:
        raise ValueError("model: expected a mixture of experts that was called while training")
    for m in mixtures:
        m.balance = None
    return torch.stack(losses).mean()


def dispatch_reference(
    x: Tensor, share: Tensor, chosen: Tensor, gate_up: Tensor, down: Tensor, act: Activation
) -> Tensor:
    """The definition. x (t d), share and chosen (t active), gate_up (e 2h d), down (e d h)."""
    every = share.new_zeros(len(x), len(down)).scatter(1, chosen, share)
    made = _gate(torch.einsum("td,ehd->eth", x, gate_up), act)
    return torch.einsum("te,eth,edh->td", every, made, down)


def dispatch_torch(
    x: Tensor, share: Tensor, chosen: Tensor, gate_up: Tensor, down: Tensor, act: Activation
) -> Tensor:
    order = chosen.flatten().argsort(stable=True)
    counts = _counts(chosen, len(down)).tolist()
    rows = x.repeat_interleave(chosen.shape[1], dim=0)[order].split(counts)
    experts = zip(rows, gate_up.unbind(), down.unbind(), strict=True)
    made = [_gate(r @ g.mT, act) @ w.mT for r, g, w in experts if len(r)]
    return _combine(torch.cat(made), order, share)


def dispatch_grouped(
    x: Tensor, share: Tensor, chosen: Tensor, gate_up: Tensor, down: Tensor, act: Activation
) -> Tensor:
    order = chosen.flatten().argsort(stable=True)
    ends = _counts(chosen, len(down)).cumsum(0).to(torch.int32)
    rows = x.repeat_interleave(chosen.shape[1], dim=0)[order]
    made = _gate(F.grouped_mm(rows, gate_up.mT, offs=ends), act)
    return _combine(F.grouped_mm(made, down.mT, offs=ends), order, share)


def dispatch_padded(
    x: Tensor,
    share: Tensor,
    chosen: Tensor,
    gate_up: Tensor,
    down: Tensor,
    act: Activation,
    limit: int,
) -> Tensor:
    """At most `limit` rows for each expert, in one batched product; what finds no place adds 0."""
    e, (t, k) = len(down), chosen.shape
    visits = F.one_hot(chosen.T.flatten(), e)  # first choices of all tokens, then second ones
    place = (visits.cumsum(0) * visits).sum(-1).view(k, t).T - 1  # (t k), from 0, in its expert
    slot = torch.where(place < limit, chosen * limit + place, e * limit)
    token = torch.arange(t, device=x.device)[:, None].expand(t, k)
    source = torch.full((e * limit + 1,), t, device=x.device)
    source[slot.flatten()] = token.flatten()
    rows = F.pad(x, (0, 0, 0, 1))[source[:-1]].unflatten(0, (e, limit))
    made = torch.bmm(_gate(torch.bmm(rows, gate_up.mT), act), down.mT).flatten(0, 1)
    return (F.pad(made, (0, 0, 0, 1))[slot] * share[..., None]).sum(1)


def _resolve(backend: str, rows: Tensor, down: Tensor) -> str:
    """PyTorch's grouped product where it runs: bfloat16 on a GPU, widths of whole 16 bytes.

    Where it does not, a compiler gets the definition, whose shapes depend on no values.
    """
    if backend != "auto":
        return backend
    whole = rows.dtype == torch.bfloat16 and not any(size % 8 for size in down.shape[1:])
    if rows.is_cuda and whole and hasattr(F, "grouped_mm"):
        return "grouped"
    return "reference" if torch.compiler.is_compiling() else "torch"


def _gate(x: Tensor, act: Activation) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return act(gate) * up


def _counts(chosen: Tensor, e: int) -> Tensor:
    """How many of `chosen` are each of e experts; bincount would wait for a GPU."""
    return (chosen.flatten()[:, None] == torch.arange(e, device=chosen.device)).sum(0)


def _combine(rows: Tensor, order: Tensor, share: Tensor) -> Tensor:
    """Bring sorted rows (t*k d) back into order, and sum each token's, weighted: (t d)."""
    return (rows[order.argsort()].unflatten(0, share.shape) * share[..., None]).sum(1)


DISPATCH = {
    "reference": dispatch_reference,
    "torch": dispatch_torch,
    "grouped": dispatch_grouped,
}
