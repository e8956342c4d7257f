"""From a signal to coefficients, as it comes in.

`project_reference` is the definition, one dense step per input; `project` gives the same numbers at
O(n) per input. Both hold each input still for one step, and are exact for that.
"""

import math
from functools import lru_cache
from itertools import groupby, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ssmlib.discretize import zoh
from ssmlib.hippo.matrices import Pair, norms
from ssmlib.hippo.measures import POINTS, lean, legendre, named, window_basis
from ssmlib.shapes import check, check_floating, check_number

BLOCK = 64  # inputs that a time-invariant memory takes in at once


class Memory(NamedTuple):
    """The state of a projection: coefficients (b n) after `steps` inputs."""

    coefficients: Tensor
    steps: int


def project(
    u: Tensor,
    n: int,
    measure: str = "legs",
    *,
    dt: float | None = None,
    every: int | None = None,
    state: Memory | None = None,
) -> tuple[Tensor, Memory]:
    """Compress a signal into n coefficients as it comes in; exact for inputs held for one step.

    u (b t). dt: the length of a step in the measure's unit of time (a window of 500 steps: 1/500);
    None for "legs", whose unit is the past itself. Returns the coefficients (b c n) after each
    `every`-th input, counted from the very first one (None: once, after the last), and the state
    that the next piece goes on from. Computes in float64 and returns float32, or wider if u is;
    differentiable in u and the state.

    "legs" costs O(n) per input and O(n^2) per returned row: between two rows the inputs are
    integrated against the polynomials, and the old row is stretched to the longer past. Neither
    amplifies errors. The other measures take in blocks of inputs through powers of A_bar.
    Raises ValueError for n < 1, an unknown measure, a dt missing or out of place, every < 1, an
    empty or integer u, and a state of another n or batch.
    """
    state, A, B = _prepare(u, n, measure, dt, state)
    check_number(every=1 if every is None else every, low=1, whole=True)
    end = state.steps + u.shape[1]
    gap = end if every is None else every
    stops = list(range(state.steps // gap * gap + gap, end + 1, gap))
    asked = len(stops)
    stops = stops if stops[-1:] == [end] else [*stops, end]
    if measure == "legs":
        rows = _scaled(u.double(), state, stops)
    else:
        rows = _invariant(u.double(), state, stops, *zoh(A, B, dt))
    rows = rows.to(state.coefficients.dtype)
    return rows[:, :asked], Memory(rows[:, -1], end)


def project_reference(
    u: Tensor,
    n: int,
    measure: str = "legs",
    *,
    dt: float | None = None,
    state: Memory | None = None,
) -> tuple[Tensor, Memory]:
    """The definition: one dense zero-order hold per input, every row (b t n), in the dtype of u.

    In the logarithm of time LegS is time-invariant too: input k + 1 is a step of length
    log((k+1)/k), and the first one, held there since minus infinity, makes c = (u, 0, 0, ...).
    Arguments and errors as in `project`.
    """
    state, A, B = _prepare(u, n, measure, dt, state)
    (c, k), rows = state, []
    step = None if dt is None else zoh(A, B, dt)
    for x in u.to(c.dtype)[..., None].unbind(1):  # (b 1)
        if measure == "legs" and k == 0:
            c = torch.cat([x, torch.zeros_like(c[:, 1:])], dim=1)
        else:
            A_bar, B_bar = step or zoh(A, B, math.log1p(1 / k))
            c = c @ A_bar.mT.to(c) + x @ B_bar.mT.to(c)
        k += 1
        rows.append(c)
    return torch.stack(rows, dim=1), Memory(c, k)


def _scaled(u: Tensor, state: Memory, stops: list[int]) -> Tensor:
    """LegS rows (b c n) at the stops, in float64: equally long intervals are taken in together."""
    (c, start), n = state, state.coefficients.shape[1]
    cuts = sorted({start, *stops, *range(start + POINTS, stops[-1], POINTS)})
    c, rows = c.double(), []
    for length, run in groupby(pairwise(cuts), key=lambda cut: cut[1] - cut[0]):
        ends = [end for _, end in run]
        size = max(1, POINTS // max(length, n))
        for group in (ends[i : i + size] for i in range(0, len(ends), size)):
            piece = u[:, group[0] - length - start : group[-1] - start]
            rows.append(lean(_advance, c, piece.unflatten(1, (len(group), length)), group[0]))
            c = rows[-1][:, -1]
    wanted = set(stops)
    kept = [i for i, cut in enumerate(cuts[1:]) if cut in wanted]
    return torch.cat(rows, dim=1)[:, kept]


def _advance(c: Tensor, u: Tensor, first: int) -> Tensor:
    """LegS rows (b m n) after each of m intervals of inputs, u (b m t); the first ends at `first`.

    What an interval adds is summed by parts: a held signal changes only where it jumps, so it is a
    sum over jumps of the integral of a polynomial, (P_{n+1} - P_{n-1}) / (2n+1), 0 at the end.
    What was there is stretched: its polynomial becomes a part of a longer past, and the integrals
    of products of polynomials of degree < n are exact with n Gauss points.
    """
    n, (m, t) = c.shape[1], u.shape[1:]
    ends = first + t * torch.arange(m, dtype=u.dtype, device=u.device)[:, None]  # (m 1)
    starts = ends - t
    jumps = torch.diff(u, dim=2, prepend=torch.zeros_like(u[..., :1]))
    times = starts + torch.arange(t, device=u.device)
    sums = torch.einsum("bmt,nmt->bmn", jumps, legendre(2 * times / ends - 1, n + 1))
    sums = torch.cat([sums[..., :1], sums], dim=-1)  # P_{-1} = 1 makes the rule hold for n = 0 too
    added = (sums[..., :-2] - sums[..., 2:]) / (2 * norms(n)[:, 0].to(u))
    points, weighted = (z.to(u) for z in _gauss(n))
    ratio = starts / ends
    later = window_basis(1 - ratio * points, n) * ratio  # (n m t), t the Gauss points
    rows = []
    for i in range(m):
        c = c @ weighted @ later[:, i].mT + added[:, i]
        rows.append(c)
    return torch.stack(rows, dim=1)


@lru_cache(maxsize=4)
def _gauss(n: int) -> Pair:
    """Gauss points on [0, 1] (Golub and Welsch 1969), and the basis there times weights (n n)."""
    k = torch.arange(1, n, dtype=torch.float64)
    beside = torch.diag(k / (4 * k * k - 1).sqrt(), 1)
    points, vectors = torch.linalg.eigh(beside + beside.mT)
    points = (1 + points) / 2
    return points, window_basis(1 - points, n) * vectors[0] ** 2


def _invariant(u: Tensor, state: Memory, stops: list[int], A_bar: Tensor, B_bar: Tensor) -> Tensor:
    """Rows (b c n) of c = A_bar c + B_bar u at the stops, a block at a time, in float64."""
    c, done, rows = state.coefficients.double(), state.steps, []
    blocks: dict[int, Pair] = {}
    for stop in stops:
        while done < stop:
            size = min(BLOCK, stop - done)
            if size not in blocks:
                taps = [B_bar]
                for _ in range(size - 1):
                    taps.insert(0, A_bar @ taps[0])
                blocks[size] = A_bar.matrix_power(size).mT, torch.cat(taps, dim=1).mT
            power, kernel = blocks[size]
            piece = u[:, done - state.steps : done - state.steps + size]
            c = c @ power + piece @ kernel
            done += size
        rows.append(c)
    return torch.stack(rows, dim=1)


def _prepare(
    u: Tensor, n: int, measure: str, dt: float | None, state: Memory | None
) -> tuple[Memory, Tensor, Tensor]:
    """Check what both projections take; an empty memory for None, and A, B beside u."""
    A, B = named(measure).matrices(n)
    check(u=(u, "b t"), state=(None if state is None else state.coefficients, f"b {n}"))
    check_floating(u=u)
    if (dt is None) != (measure == "legs"):
        want = "None, its unit of time is the past" if measure == "legs" else "a number >= 0"
        raise ValueError(f"dt: expected {want} for measure {measure!r}, got {dt}")
    check_number(dt=0.0 if dt is None else dt, low=0.0)
    wide = torch.promote_types(u.dtype, torch.float32)
    if state is None:
        state = Memory(u.new_zeros(len(u), n, dtype=wide), 0)
    check_number(low=0, whole=True, **{"state.steps": state.steps})
    wide = torch.promote_types(wide, state.coefficients.dtype)
    return Memory(state.coefficients.to(wide), state.steps), A.to(u.device), B.to(u.device)
