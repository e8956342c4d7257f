"""What every cost function opens with (`ssmlib.shapes` checks tensors, and so imports torch)."""

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def whole(low: int = 1, **named: int | None) -> None:
    """Raise ValueError unless each number is an int >= low (no bool); None is skipped."""
    for name, value in named.items():
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise ValueError(f"{name}: expected a whole number >= {low}, got {value!r}")


def divides(parts: str, whole: str, **sizes: int) -> None:
    """Raise ValueError unless the size called `parts` divides the one called `whole`."""
    if sizes[whole] % sizes[parts]:
        wanted = f"a divisor of {whole}={sizes[whole]}"
        raise ValueError(f"{parts}: expected {wanted}, got {sizes[parts]}")


def find(argument: str, name: object, table: Mapping[str, T]) -> T:
    """Return the table's entry of that name, or raise ValueError naming the argument."""
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"{argument}: expected one of {', '.join(table)}, got {name!r}")
    return table[name]
