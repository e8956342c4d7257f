r"""Linear attention: softmax attention's exponential replaced by a product of features.

$$y_i = \frac{\sum_{j \le i} w_{ij}\, v_j}{\sum_{j \le i} w_{ij}}, \qquad
w_{ij} = \phi(q_i) \cdot \phi(k_j)$$

The sums over j are a state, which grows by φ(k_j) v_jᵀ and forgets nothing: `ssmlib.ssd` with A = 0
and dt = 1, the denominator one more column of v.

    elu      φ(x) = elu(x) + 1                       Katharopoulos et al. 2020
    taylor   φ(q)·φ(k) = 1 + s + s² / 2, s = q·k / √f, the start of exp(s)   Arora et al. 2024
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmlib.shapes import check, check_number
from ssmlib.ssd import ssd


@dataclass(frozen=True)
class LinearAttentionConfig:
    """heads divide d_model; features f: numbers of a head's q and k before φ, one of FEATURE_MAPS.

    backend: of `ssd`.
    """

    features: int = 16
    heads: int = 1
    feature_map: str = "taylor"
    backend: str = "auto"

    def build(self, d_model: int) -> "LinearAttention":
        return LinearAttention(d_model, self)


class LinearAttention(nn.Module):
    """x (b t d) and the sums so far, (b h d/h+1 n) or None, to y (b t d) and the next sums.

    n is f for "elu" and 1 + f + f (f + 1) / 2 for "taylor".
    """

    def __init__(self, d: int, config: LinearAttentionConfig):
        super().__init__()
        c = config
        check_number(low=1, whole=True, d_model=d, heads=c.heads, features=c.features)
        if d % c.heads:
            raise ValueError(f"heads: expected a divisor of d_model={d}, got {c.heads}")
        if c.feature_map not in FEATURE_MAPS:
            known = ", ".join(FEATURE_MAPS)
            raise ValueError(f"feature_map: expected one of {known}, got {c.feature_map!r}")
        self.config, self.phi = c, FEATURE_MAPS[c.feature_map]
        self.q_proj = nn.Linear(d, c.heads * c.features, bias=False)
        self.k_proj = nn.Linear(d, c.heads * c.features, bias=False)
        self.v_proj = nn.Linear(d, d, bias=False)
        self.o_proj = nn.Linear(d, d, bias=False)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check(x=(x, f"b t {self.v_proj.in_features}"))
        heads = (self.config.heads, -1)
        q, k, v = (f(x).unflatten(2, heads) for f in (self.q_proj, self.k_proj, self.v_proj))
        v = F.pad(v, (0, 1), value=1.0)  # its sum is the denominator
        once, never = v.new_ones(*v.shape[:3]), v.new_zeros(heads[0], dtype=torch.float32)
        y, state = ssd(
            v, once, never, self.phi(k), self.phi(q), state=state, backend=self.config.backend
        )
        return self.o_proj((y[..., :-1] / y[..., -1:]).flatten(2)), state


def elu(x: Tensor) -> Tensor:
    return F.elu(x) + 1


def taylor(x: Tensor) -> Tensor:
    """(... f) to (... 1 + f + f (f + 1) / 2); each product of two different features once."""
    f = x.shape[-1]
    x = x * f**-0.25
    i, j = torch.triu_indices(f, f, device=x.device)
    weight = x.new_ones(len(i)).masked_fill_(i == j, 0.5**0.5)
    products = (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2).index_select(-1, i * f + j)
    return torch.cat([torch.ones_like(x[..., :1]), x, products * weight], dim=-1)


FEATURE_MAPS: dict[str, Callable[[Tensor], Tensor]] = {"elu": elu, "taylor": taylor}
