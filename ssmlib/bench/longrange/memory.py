r"""Experiment 2: what a linear system with a frozen A, B and dt remembers of noise.

With A, B and dt frozen, the impulse responses $v_i = \bar A^i \bar B$ of its n states are fixed
functions, and a linear S4 layer (one channel, no activation) is a mixture of them: its kernel is
$K = C v$. So there is a best C, found by least squares from the noise's covariance alone: the
floor. Training C and D by Adam shows how near gradients come to it.

    delay        y_t = x_{t-lag}, from the whole output; Gu et al. 2022 ("How to train your HiPPO")
    reconstruct  the last `memory` inputs, read out of the last state by a matrix W

Many systems, learning rates and seeds train side by side, stacked in one tensor: Adam moves every
number by itself, so each trains as it would alone.
"""

import math
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ssmlib import discretize, hippo
from ssmlib.bench.ledger import Ledger, Row
from ssmlib.s4 import dense, initial
from ssmlib.tasks.signals import autocovariance, white_noise
from ssmlib.train import SCHEDULES, seed_of

RMS = 0.5
SCALES = (0.1, 1.0, 10.0)
GRID = tuple(2.0**k for k in range(-4, 12))  # dt in units of 1 / lag, as far as dt = 2


@dataclass(frozen=True)
class Size:
    """t steps, a lag or memory of w, n states, noise up to `cutoff` cycles a step."""

    t: int
    lag: int
    n: int
    cutoff: float
    batch: int
    steps: int
    lrs: tuple[float, ...]
    seeds: int


SIZES = {
    "delay": {
        "full": Size(4000, 1000, 1024, 0.25, 64, 5120, (1e-3, 1e-2, 1e-1), 3),
        "small": Size(256, 64, 64, 0.25, 16, 1000, (1e-1,), 1),
        "tiny": Size(32, 8, 8, 0.25, 2, 4, (1e-1,), 1),
    },
    "reconstruct": {
        "full": Size(4000, 1000, 256, 0.025, 64, 5120, (1e-3, 1e-2, 1e-1), 3),
        "small": Size(256, 64, 64, 0.1, 16, 1000, (1e-1,), 1),
        "tiny": Size(32, 8, 8, 0.25, 2, 4, (1e-1,), 1),
    },
}


def gaussian(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random stable system: A normal, its eigenvalues filling the unit disk left of zero."""
    A = torch.randn(n, n, generator=generator, dtype=torch.float64) / math.sqrt(n)
    B = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    return A - torch.eye(n, dtype=torch.float64), B


def random_poles(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """S4's own random start, in real coordinates."""
    system = initial.dplr("random", n, generator=generator)
    A, B, _ = dense(*system, system.B)
    return A[0], B[0]


SYSTEMS: dict[str, Callable[[int, torch.Generator], tuple[Tensor, Tensor]]] = {
    "legs": lambda n, generator: hippo.legs(n),
    "fourier": lambda n, generator: hippo.fourier(n - 1),  # odd: a constant and whole pairs
    "gaussian": gaussian,
    "random": random_poles,
}


RANDOM = ("gaussian", "random")  # another system for each seed


def responses(
    system: str, n: int, dt: float, length: int, seed: int, device: torch.device
) -> Tensor:
    """v_i = A_bar^i B_bar for i < length, by the bilinear rule: (n t), float64.

    Doubled: from the first k columns and A_bar^k come the next k. A state that the system does not
    have (fourier has n - 1) is 0.
    """
    generator = torch.Generator().manual_seed(seed)
    A, B = (z.to(device) for z in SYSTEMS[system](n, generator))
    A, v = discretize.bilinear(A, B, dt)
    while v.shape[1] < length:
        v, A = torch.cat([v, A @ v], dim=1), A @ A
    return torch.nn.functional.pad(v[:, :length], (0, 0, 0, n - len(v)))


def floor(v: Tensor, experiment: str, size: Size) -> float:
    """The least root mean square error, relative to the target's, of any C and D, or any W."""
    i = torch.arange(size.t, device=v.device)
    covariance = autocovariance(size.t, size.cutoff, RMS).to(v.device)[(i[:, None] - i).abs()]
    if experiment == "delay":  # tap i meets an input only from step i on
        covariance = covariance * (size.t - torch.maximum(i[:, None], i)) / size.t
        now = torch.zeros_like(v[:1])
        now[0, 0] = 1  # D is one more response: that of an input to itself
        v, targets = torch.cat([v, now]), covariance[:, [size.lag]]
        power = covariance[size.lag, size.lag]
    else:
        targets, power = covariance[:, : size.lag], covariance[0, 0]
    gram, cross = v @ covariance @ v.mT, v @ targets
    scale = gram.diagonal().clamp_min(1e-300).rsqrt()[:, None]
    weight, axes = torch.linalg.eigh(scale * gram * scale.mT)
    seen = weight > 1e-11 * weight[-1]
    explained = (axes.mT @ (scale * cross))[seen].square() / weight[seen, None]
    return (1 - explained.sum(0).mean() / power).clamp_min(0).sqrt().item()


def fit(
    experiment: str, size: Size, v: Tensor, lrs: Iterable[float], seeds: Iterable[int]
) -> Tensor:
    """Train on responses v (g s n t) float32; return the relative error of each, (l g s)."""
    lrs, seeds = list(lrs), list(seeds)
    kernels = Kernels if experiment == "delay" else Readouts
    model = kernels(v, size, len(lrs), seeds)
    groups = [
        {"params": part, "lr": lr, "top": lr} for part, lr in zip(model.parts, lrs, strict=True)
    ]
    optimizer = torch.optim.Adam(groups, fused=v.is_cuda)
    for k in range(size.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["top"] * SCHEDULES["cosine"](k / size.steps)
        x = draw(size, "train", k, seeds, v.device)
        error, _ = model.errors(x)
        optimizer.zero_grad()
        error.sum().backward()
        optimizer.step()
    with torch.no_grad():
        tests = [model.errors(draw(size, "test", k, [0], v.device)) for k in range(8)]
    error, power = (sum(z.double() for z in part) for part in zip(*tests, strict=True))
    return (error / power).sqrt()


def draw(size: Size, kind: str, k: int, seeds: list[int], device: torch.device) -> Tensor:
    """Noise (s b t), one batch for each seed."""
    rows = [
        white_noise(size.batch, size.t, size.cutoff, seed_of(kind, seed, k), RMS, device)
        for seed in seeds
    ]
    return torch.stack(rows)


class Kernels:
    """y = K * x + D x with K = C v: C (g s n) and D (g s) for each learning rate."""

    def __init__(self, v: Tensor, size: Size, rates: int, seeds: list[int]):
        self.v, self.size, self.n_fft = v, size, 2 * size.t
        C = _normal(seeds, (v.shape[2],), v)
        self.parts = [[_leaf(C), _leaf(torch.zeros_like(C[..., 0]))] for _ in range(rates)]

    def errors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared error (l g s) on x (s b t), and the target's mean square."""
        C, D = (torch.stack(parts) for parts in zip(*self.parts, strict=True))
        spectrum = torch.fft.rfft(torch.einsum("lgsn,gsnt->lgst", C, self.v), self.n_fft)
        product = spectrum[..., None, :] * torch.fft.rfft(x, self.n_fft)
        y = torch.fft.irfft(product, self.n_fft)[..., : self.size.t] + D[..., None, None] * x
        target = torch.nn.functional.pad(x, (self.size.lag, 0))[..., : self.size.t]
        return (y - target).square().mean((-2, -1)), target.square().mean()


class Readouts:
    """y = W h with h the last state: W (g s w n) for each learning rate."""

    def __init__(self, v: Tensor, size: Size, rates: int, seeds: list[int]):
        self.v, self.size = v.flip(3), size  # the newest input meets the first response
        W = _normal(seeds, (size.lag, v.shape[2]), v)
        self.parts = [[_leaf(W / math.sqrt(v.shape[2]))] for _ in range(rates)]

    def errors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `Kernels.errors`."""
        W = torch.stack([part[0] for part in self.parts])
        h = torch.einsum("gsnt,sbt->gsbn", self.v, x)
        y = torch.einsum("lgswn,gsbn->lgsbw", W, h)
        target = x[..., -self.size.lag :]
        return (y - target).square().mean((-2, -1)), target.square().mean()


def _leaf(x: Tensor) -> Tensor:
    return x.clone().requires_grad_()


def _normal(seeds: list[int], shape: tuple[int, ...], v: Tensor) -> Tensor:
    """Standard normal (g s ...): a seed draws the same whatever is trained beside it."""
    draws = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return torch.stack(draws).to(v).expand(len(v), len(seeds), *shape)


def rows(
    experiment: str,
    size: Size,
    ledger: Ledger,
    device: torch.device,
    only: Container[tuple[str, ...]] | None = None,
) -> Iterator[Row]:
    """The floor of every system over dt; then, around each one's best dt, what training reaches.

    only: the systems wanted, (("legs",), ("fourier",)).
    """
    labels = {"experiment": experiment, **asdict(size)}
    del labels["lrs"], labels["seeds"]
    best = {}
    for system in (name for name in SYSTEMS if only is None or (name,) in only):
        found = ledger.fill(
            labels | {"row": "floor", "system": system},
            lambda system=system: _floors(experiment, size, system, device),
        )
        yield from found
        best[system] = min(found, key=lambda row: row["floor"])["dt"]
    yield from ledger.fill(
        labels | {"row": "trained", "systems": " ".join(best)},
        lambda: _trained(experiment, size, best, device),
    )


def _floors(experiment: str, size: Size, system: str, device: torch.device) -> Iterator[Row]:
    for dt in (scale / size.lag for scale in GRID if scale <= 2 * size.lag):
        v = responses(system, size.n, dt, size.t, 0, device)
        yield {"dt": dt, "seed": 0, "floor": floor(v, experiment, size), "status": "ok"}


def _trained(
    experiment: str, size: Size, best: dict[str, float], device: torch.device
) -> Iterator[Row]:
    cells = [(system, scale, scale * dt) for system, dt in best.items() for scale in SCALES]
    v, floors = [], []
    for system, _, dt in cells:
        drawn = range(size.seeds if system in RANDOM else 1)
        each = [responses(system, size.n, dt, size.t, seed, device) for seed in drawn]
        v += each * (size.seeds // len(each))
        floors += [floor(z, experiment, size) for z in each] * (size.seeds // len(each))
    stacked = torch.stack(v).float().unflatten(0, (len(cells), size.seeds))
    error = fit(experiment, size, stacked, size.lrs, range(size.seeds)).flatten(1).tolist()
    for i, lr in enumerate(size.lrs):
        for j, value in enumerate(error[i]):
            (system, scale, dt), seed = cells[j // size.seeds], j % size.seeds
            row = {"system": system, "dt_scale": scale, "dt": dt, "lr": lr, "seed": seed}
            bad = not math.isfinite(value)
            row |= {"floor": floors[j], "relative": None if bad else value}
            yield row | {
                "rmse": None if bad else value * RMS,
                "status": "diverged" if bad else "ok",
            }
