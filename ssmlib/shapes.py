"""The letters of the book's shapes, and the check that every public function opens with.

    b batch        t time (length)     d channels             n state size
    h heads        g groups            p head dimension       k, v key and value dimension
    c chunks       l layers            w window or conv width
    m inputs of a dense system         s sequences in a pack
    e experts

Axes always stand in the order batch, time, features.
"""

import math
import numbers
import sys

import torch
from torch import Tensor

LETTERS = frozenset("bctdenhgpkvwlms")
MANY = 4096  # calls that are remembered, for they come again with every token
_passed: dict[tuple, dict[str, int]] = {}


def check(**named: tuple[Tensor | None, str]) -> dict[str, int]:
    """Check shapes against a pattern of letters, and return the size of each letter.

    `check(x=(x, "b t d"), state=(state, "b d n"))`: one letter, one size, whichever tensor shows
    it first. A number stands for itself, a leading `...` for any axes. None is skipped.
    Raises ValueError, naming the argument, what was wanted, what came and where the want came from,
    for something that is not a tensor, a wrong shape, an empty axis or a second device.
    """
    if torch.compiler.is_compiling():
        return _check(named)
    key = tuple(
        (name, pattern, x.shape, x.device) if isinstance(x, Tensor) else (name, x is None)
        for name, (x, pattern) in named.items()
    )
    try:
        found = _passed.get(key)
    except TypeError:  # sizes may be symbols, which have no hash
        return _check(named)
    if found is None:
        found = _check(named)
        if len(_passed) >= MANY:
            _passed.clear()
        _passed[key] = found
    return found.copy()


def _check(named: dict[str, tuple[Tensor | None, str]]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    origin: dict[str, str] = {}
    first: tuple[str, torch.device] | None = None
    for name, (x, pattern) in named.items():
        if x is None:
            continue
        if not isinstance(x, Tensor):
            raise ValueError(f"{name}: expected a tensor {_show(pattern)}, got {type(x).__name__}")
        _check_axes(name, x, pattern, sizes, origin)
        if first is None:
            first = (name, x.device)
        elif x.device != first[1]:
            raise ValueError(
                f"{name}: expected device {first[1]} (from {first[0]}), got device {x.device}"
            )
    return sizes


def check_floating(**named: Tensor | None) -> None:
    """Raise ValueError unless each tensor is real and floating point; None is skipped."""
    for name, x in named.items():
        if x is not None and not x.is_floating_point():
            raise ValueError(f"{name}: expected a floating point tensor, got dtype {x.dtype}")


def check_number(
    low: float = -math.inf, high: float = math.inf, whole: bool = False, **named: float
) -> None:
    """Raise ValueError unless low <= number <= high; NaN and infinity are refused.

    NumPy's numbers count as numbers. whole=True wants an integer, of any size (booleans are refused
    either way); without it, an integer that no float can hold is refused.
    """
    kind = "a whole number" if whole else "a finite number"
    for name, value in named.items():
        ok = isinstance(value, numbers.Integral if whole else numbers.Real)
        if not (ok and _is_finite(value, whole) and low <= value <= high):
            bounds = [f">= {low:g}"] * (low > -math.inf) + [f"<= {high:g}"] * (high < math.inf)
            raise ValueError(f"{name}: expected {' '.join([kind, *bounds])}, got {value!r}")


def check_broadcast(**named: Tensor | float) -> None:
    """Raise ValueError unless the shapes broadcast and lie on one device; numbers fit anything.

    As in torch, a tensor without axes on the CPU may join any device.
    """
    shapes = [tuple(x.shape) if isinstance(x, Tensor) else () for x in named.values()]
    try:
        torch.broadcast_shapes(*shapes)
    except RuntimeError:
        wanted = f"{', '.join(named)}: expected shapes that broadcast"
        raise ValueError(f"{wanted}, got {', '.join(map(str, shapes))}") from None
    tensors = {name: x for name, x in named.items() if isinstance(x, Tensor)}
    check(**{name: (x, "...") for name, x in tensors.items() if x.ndim or not x.is_cpu})


def _is_finite(value: float, whole: bool) -> bool:
    if isinstance(value, numbers.Rational):  # an int may be too large for a float
        return not isinstance(value, bool) and (whole or abs(value) <= sys.float_info.max)
    return abs(value) < math.inf


def _check_axes(
    name: str, x: Tensor, pattern: str, sizes: dict[str, int], origin: dict[str, str]
) -> None:
    axes, shape = pattern.split(), tuple(x.shape)
    if axes[0] == "...":
        axes, shape = axes[1:], shape[max(0, len(shape) - len(axes) + 1) :]
    if len(shape) != len(axes):
        raise ValueError(f"{name}: expected {_show(pattern)}, got shape {tuple(x.shape)}")
    wrong: list[str] = []
    for axis, size in zip(axes, shape, strict=True):
        if size == 0:
            raise ValueError(
                f"{name}: expected {_show(pattern)} with {axis} >= 1, got shape {tuple(x.shape)}"
            )
        if axis.isdigit():
            if size != int(axis):
                wrong.append(axis)
            continue
        assert axis in LETTERS, f"{axis} is no letter of the book"
        if axis not in sizes:
            sizes[axis], origin[axis] = size, name
        elif size != sizes[axis]:
            wrong.append(f"{axis}={sizes[axis]} (from {origin[axis]})")
    if wrong:
        told = ", ".join(w for w in wrong if "=" in w)
        told = f" with {told}" if told else ""
        raise ValueError(f"{name}: expected {_show(pattern)}{told}, got shape {tuple(x.shape)}")


def _show(pattern: str) -> str:
    axes = pattern.split()
    return f"({axes[0]},)" if len(axes) == 1 else f"({', '.join(axes)})"
