"""What the time-invariant layers weigh and keep: S4, S4D and H3; see `ssmlib.costs.layers`.

Their work is not counted: a sequence is a convolution and a token a step, whose costs are not of
one form, and neither is a matrix product.
"""

from typing import Any

from ssmlib.costs.cost import Cost
from ssmlib.costs.parts import Kept, Shape, Weights, linear


def s4_weights(c: Any, d: int) -> Weights:
    """dt, A, B, C for d channels of n/2 complex numbers, S4's P too; D; the mix of channels."""
    pairs = d * c.state_size
    low_rank = pairs if type(c).__name__ == "S4Config" else 0
    system = d + pairs + low_rank + pairs + pairs * (2 if c.bidirectional else 1)
    n = system + d + linear(d, 2 * d if c.gated else d, True)
    return Weights(n, n)


def s4_kept(c: Any, d: int, length: int) -> Kept:
    return Kept(state=0 if c.bidirectional else d * c.state_size)


def h3_weights(c: Any, d: int) -> Weights:
    h = d // c.head_dim
    n = 4 * linear(d, d, True) + d * c.shift_size + h + 3 * h * c.state_size + h
    return Weights(n, n)


def h3_kept(c: Any, d: int, length: int) -> Kept:
    """Keys are kept in float32, as the state is: p p numbers of state for each head's product."""
    return Kept(state=d * (c.shift_size - 1) + d * c.head_dim * c.state_size)


def uncounted(c: Any, d: int, s: Shape) -> Cost:
    raise ValueError(f"legend: expected layers whose work is counted, got {type(c).__name__}")
