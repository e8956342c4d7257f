"""What the counts of layers are made of: weights, memory kept, the shape of a forward pass."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ssmlib.costs.cost import Cost


class Weights(NamedTuple):
    """Parameters: all of them, and those that one token meets."""

    total: int
    active: int

    def __add__(self, other: "Weights") -> "Weights":
        return Weights(self.total + other.total, self.active + other.active)

    def __mul__(self, times: int) -> "Weights":
        return Weights(times * self.total, times * self.active)


class Kept(NamedTuple):
    """What is kept between two tokens: keys and values, last inputs of convolutions, states."""

    cache: int = 0
    conv: int = 0
    state: int = 0

    def __add__(self, other: "Kept") -> "Kept":
        return Kept(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def total(self) -> int:
        return sum(self)


class Shape(NamedTuple):
    """A forward pass: `length` new tokens after `past` others, of each of `batch` sequences."""

    length: int
    batch: int
    past: int
    dtype: str

    @property
    def tokens(self) -> int:
        return self.length * self.batch


class Layer(NamedTuple):
    weights: Callable[[Any, int], Weights]
    kept: Callable[[Any, int, int], Kept]
    work: Callable[[Any, int, Shape], Cost]


def linear(d: int, out: int, bias: bool = False) -> int:
    return d * out + bias * out
