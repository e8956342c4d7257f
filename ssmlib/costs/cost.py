"""Operations and bytes as one number each, and the least time a device takes for them."""

from dataclasses import dataclass
from math import inf

from ssmlib.costs.tables import Device, find_device


@dataclass(frozen=True)
class Cost:
    """Operations done and bytes moved. Costs add; a number times a cost is that many of it."""

    flops: float = 0
    bytes: float = 0

    def __post_init__(self) -> None:
        for name, value in (("flops", self.flops), ("bytes", self.bytes)):
            if not (isinstance(value, int | float) and 0 <= value < inf):
                raise ValueError(f"{name}: expected a finite number >= 0, got {value!r}")

    def __add__(self, other: "Cost") -> "Cost":
        if not isinstance(other, Cost):
            return NotImplemented
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> "Cost":
        if not isinstance(times, int | float):
            return NotImplemented
        return Cost(self.flops * times, self.bytes * times)

    __rmul__ = __mul__

    @property
    def intensity(self) -> float:
        """FLOPs per byte moved; infinite if nothing moves."""
        return self.flops / self.bytes if self.bytes else inf


def balance(device: str | Device) -> float:
    """FLOPs a device can do while it moves one byte: below this intensity, memory is the limit."""
    d = find_device(device)
    return d.matmul / d.bandwidth


def roofline(cost: Cost, device: str | Device) -> float:
    """Seconds the cost takes at least: the longer of computing and moving, each at the peak rate.

    The peak is that of dense 16-bit matrix products, whatever the cost was counted for: a scan,
    which multiplies no matrices, computes far below it.
    """
    if not isinstance(cost, Cost):
        raise ValueError(f"cost: expected a Cost, got {type(cost).__name__}")
    d = find_device(device)
    return max(cost.flops / d.matmul, cost.bytes / d.bandwidth)
