"""Rotary embedding: positions as angles, so that q · k sees only distance."""

from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor

from ssmlib.backends import HAS_TRITON, call
from ssmlib.shapes import check, check_floating, check_number

SCALINGS = ("linear", "llama3")


@dataclass(frozen=True)
class RopeScaling:
    """Slower turns, for sequences that are longer than those a model was first trained on.

    kind "linear": all rates are divided by `factor` (Chen et al. 2023). "llama3": those that turn
    fewer than `low` times in `original` tokens are, those that turn more than `high` times are not,
    and between the two the divisor is blended (Dubey et al. 2024).
    """

    kind: str
    factor: float
    low: float = 1.0
    high: float = 4.0
    original: int = 8192


def rotate(
    x: Tensor, positions: Tensor, base: float = 10000.0, rates: Tensor | None = None
) -> Tensor:
    """Turn pairs of features in proportion to position, so that q · k sees only distance (RoPE).

    x: (b, t, h, k), k even. positions: (t,) or (b, t), whole or fractional. Pair i is features i
    and i + k/2, as in Llama's checkpoints, and turns by positions * base^(-2i/k). Su et al. 2021.
    rates: (n,) radians for each position, in place of base's, of `rotary_rates` for instance; with
    2n < k the pairs are those of the first 2n features, and the others stay as they are.
    Differentiable in x. Raises ValueError for an odd k, integer x, complex numbers, a base that is
    not positive, or more rates than pairs.
    """
    pattern = "b t" if isinstance(positions, Tensor) and positions.ndim != 1 else "t"
    check(x=(x, "b t h k"), positions=(positions, pattern), rates=(rates, "n"))
    check_floating(x=x)
    if positions.is_complex():
        raise ValueError(f"positions: expected real numbers, got dtype {positions.dtype}")
    check_number(low=1e-9, base=base)
    if x.shape[-1] % 2:
        raise ValueError(f"x: expected (b, t, h, k) with k even, got shape {tuple(x.shape)}")
    if rates is None:
        rates = rotary_rates(x.shape[-1], base, device=x.device)
    half = len(rates)
    if 2 * half > x.shape[-1]:
        pairs = x.shape[-1] // 2
        raise ValueError(f"rates: expected at most {pairs}, one for each pair of x, got {half}")
    compiles = torch.compiler.is_compiling()  # then this becomes a part of what stands beside it
    if x.is_cuda and HAS_TRITON and x.dtype != torch.float64 and not compiles:
        from ssmlib.attention.operators import rotate_by_kernel  # torch compiles: imports triton

        return call(rotate_by_kernel, x, positions, rates, False)
    angle = (positions.to(rates.dtype).unsqueeze(-1) * rates).unsqueeze(-2)
    exact = torch.promote_types(x.dtype, torch.float32)
    cos, sin = angle.cos().to(exact), angle.sin().to(exact)
    left, right, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    turned = torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1).to(x.dtype)
    return turned if not rest.shape[-1] else torch.cat([turned, rest], dim=-1)


def rotary_rates(
    size: int,
    base: float = 10000.0,
    scaling: RopeScaling | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """How far each of size / 2 pairs turns from one position to the next: (size/2,), in radians.

    base^(-2i/size) in float64, since float32 loses far positions (in float32 on a device that has
    no other). Raises ValueError for an odd size, or a scaling that is none.
    """
    check_number(low=2, whole=True, size=size)
    check_number(low=1e-9, base=base)
    if size % 2:
        raise ValueError(f"size: expected an even number, got {size}")
    wide = torch.float32 if torch.device(device or "cpu").type == "mps" else torch.float64
    half = size // 2
    rates = base ** (-torch.arange(half, device=device, dtype=wide) / half)
    return rates if scaling is None else _scaled(rates, scaling)


def _scaled(rates: Tensor, s: RopeScaling) -> Tensor:
    if s.kind not in SCALINGS:
        raise ValueError(f"scaling.kind: expected one of {', '.join(SCALINGS)}, got {s.kind!r}")
    check_number(low=1, **{"scaling.factor": s.factor})
    if s.kind == "linear":
        return rates / s.factor
    check_number(low=1, whole=True, **{"scaling.original": s.original})
    if not 0 < s.low < s.high:
        raise ValueError(f"scaling: expected 0 < low < high, got {s.low} and {s.high}")
    turns = s.original * rates / (2 * pi)
    kept = ((turns - s.low) / (s.high - s.low)).clamp(0, 1)
    return rates * (kept + (1 - kept) / s.factor)
