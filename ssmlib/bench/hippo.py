"""The suite `hippo`: a whole history in 256 numbers, by LegS and by a trained LSTM.

After the function approximation experiment of Gu et al. 2020. A signal of band-limited white noise
comes in, one sample at a time; after the last one, a linear read-out of the memory must return all
of it. The error is the mean square over the history, where always guessing 0 scores rms² = 0.25.

The noise has no frequency above `wavelengths` per history, however many steps sample it. LegS has
nothing to train. The LSTM and its read-out are trained together through 512 steps, with a sweep
over learning rate and initialization (ordinary, and that of Tallec and Ollivier 2018, whose gates
start with memories up to the length of the task). At a million steps the trained LSTM reads every
sample, and its linear read-out is fitted anew to what it then holds, by ridge regression.
Both states of the LSTM are read, h and c: twice the numbers that LegS keeps.
"""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssmlib.bench.table import Row, collect, number, table, text
from ssmlib.bench.timing import default_device
from ssmlib.hippo import input_ages, project, reconstruct

RMS = 0.5
COLUMNS = (
    ("", 6, text("experiment")),
    ("steps", 8, text("steps")),
    ("numbers", 7, text("numbers")),
    ("seed", 4, text("seed")),
    ("lr", 6, text("lr")),
    ("init", 8, text("init")),
    ("mse", 8, number("mse")),
    ("seconds", 8, number("seconds", form=".1f")),
)


class Task(NamedTuple):
    """One size of the experiment: the signal, the memories, and how the LSTM is trained."""

    wavelengths: int = 100
    steps: int = 1_000_000
    n: int = 256  # coefficients of LegS, and units of the LSTM
    train_steps: int = 512
    batch: int = 256
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    sweep_updates: int = 250
    updates: int = 1500
    fitted: int = 2048  # histories for the ridge regression at the full length
    tested: int = 256
    seeds: tuple[int, ...] = (0, 1, 2)


TINY = Task(8, 2000, 32, 64, 16, (1e-3, 1e-2), 4, 12, 64, 16, (0, 1))


class Noise(NamedTuple):
    """Band-limited noise as the amplitudes of its waves, (b, 2k), so that it has any resolution."""

    amplitudes: Tensor

    def at(self, ages: Tensor) -> Tensor:
        """Its values (b t) at ages (t,) from 1, the beginning, to 0, now."""
        a = self.amplitudes
        turns = torch.arange(1, a.shape[1] // 2 + 1, device=a.device)[:, None]
        angle = (2 * math.pi * turns * (1 - ages.to(a.device))).to(a.dtype)
        return a @ torch.cat([angle.cos(), angle.sin()])


def draw(b: int, wavelengths: int, generator: torch.Generator, rms: float = RMS) -> Noise:
    """b histories of white noise with 1 to `wavelengths` waves per history, float32.

    White: every wave has the same expected power. rms is that of the expected power.
    """
    amplitudes = torch.randn(b, 2 * wavelengths, generator=generator, device=generator.device)
    return Noise(amplitudes * rms / math.sqrt(wavelengths))


class Reader(nn.Module):
    """An LSTM that reads a signal, and a linear read-out of both its states for the whole past.

    remember: the longest memory, in steps, with which its gates start (Tallec and Ollivier 2018);
    None for PyTorch's own initialization.
    """

    def __init__(self, units: int, points: int, remember: int | None = None):
        super().__init__()
        self.lstm = nn.LSTM(1, units, batch_first=True)
        self.readout = nn.Linear(2 * units, points)
        if remember is not None:
            spans = torch.rand(units) * (remember - 2) + 1
            with torch.no_grad():
                self.lstm.bias_hh_l0.zero_()
                self.lstm.bias_ih_l0[:units] = -spans.log()
                self.lstm.bias_ih_l0[units : 2 * units] = spans.log()

    def read(self, u: Tensor, state: tuple[Tensor, Tensor] | None = None):
        """Both states, each (1 b units), after the signal u (b t)."""
        return self.lstm(u[..., None], state)[1]

    def forward(self, u: Tensor) -> Tensor:
        return self.readout(joined(self.read(u)))


def joined(state: tuple[Tensor, Tensor]) -> Tensor:
    return torch.cat(state, dim=-1)[0]


def train_reader(
    task: Task, lr: float, updates: int, chrono: bool, seed: int, device: torch.device
) -> tuple[Reader, float]:
    """A reader trained on fresh noise, and its mean squared error on noise it has not seen.

    Adam, a cosine schedule to 0 after 5 % of warm-up, gradients clipped to norm 1.
    """
    torch.manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    steps = task.train_steps
    ages = input_ages(steps).to(device, torch.float32)
    reader = Reader(task.n, steps, remember=steps if chrono else None).to(device)
    optimizer = torch.optim.Adam(reader.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, updates, pct_start=0.05)
    for _ in range(updates):
        u = draw(task.batch, task.wavelengths, generator).at(ages)
        loss = (reader(u) - u).pow(2).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        fresh = torch.Generator(device).manual_seed(1_000_000 + seed)
        u = draw(4 * task.batch, task.wavelengths, fresh).at(ages)
        return reader, (reader(u) - u).pow(2).mean().item()


def legs_error(task: Task, steps: int, seed: int, device: torch.device) -> tuple[float, float]:
    """LegS on one history of `steps` samples: its mean squared error, and seconds to read it."""
    ages = input_ages(steps).to(device)
    noise = draw(1, task.wavelengths, torch.Generator(device).manual_seed(1_000_000 + seed))
    u = torch.cat([noise.at(piece) for piece in ages.split(2**16)], dim=1).double()
    began = time.perf_counter()
    _, memory = project(u, task.n)
    c = memory.coefficients.cpu()  # waits for the device
    seconds = time.perf_counter() - began
    return (reconstruct(c.to(device), ages) - u).pow(2).mean().item(), seconds


@torch.no_grad()
def long_error(reader: Reader, task: Task, seed: int, device: torch.device) -> tuple[float, float]:
    """The reader over the full length, its read-out refitted: mean squared error, seconds to read.

    The error is over task.train_steps points of each history that was not fitted; the ridge is the
    best of five on them, which favours the LSTM.
    """
    generator = torch.Generator(device).manual_seed(2_000_000 + seed)
    noise = draw(task.fitted + task.tested, task.wavelengths, generator)
    state, began = None, time.perf_counter()
    for ages in input_ages(task.steps).to(device).split(1000):
        state = reader.read(noise.at(ages), state)
    held = joined(state).double()
    held = torch.cat([held, torch.ones_like(held[:, :1])], dim=1)
    past = noise.at(input_ages(task.train_steps)).double()
    seconds = time.perf_counter() - began
    seen, asked = held[: task.fitted], held[task.fitted :]
    gram, identity = seen.mT @ seen, torch.eye(held.shape[1], dtype=held.dtype, device=device)
    errors = []
    for ridge in (1e-4, 1e-2, 1.0, 1e2, 1e4):
        weights = torch.linalg.solve(gram + ridge * identity, seen.mT @ past[: task.fitted])
        errors.append((asked @ weights - past[task.fitted :]).pow(2).mean().item())
    return min(errors), seconds


def run(
    quick: bool = False,
    device: str | torch.device | None = None,
    progress: Callable[[str], None] | None = None,
    save: Callable[[Row], None] | None = None,
) -> list[dict[str, Any]]:
    """All rows: `legs`, `sweep` over the LSTM's training, `lstm` with the best of it.

    quick=True takes tiny sizes. progress is called with a line of text after each row, save with
    the row itself.
    """
    return collect(
        _rows(TINY if quick else Task(), default_device(device)), COLUMNS, progress, save
    )


def summary(rows: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    return table(rows, COLUMNS)


def _rows(task: Task, device: torch.device) -> Iterator[dict[str, Any]]:
    for steps in (task.train_steps, task.steps):
        for seed in task.seeds:
            mse, seconds = legs_error(task, steps, seed, device)
            yield _row(task, "legs", steps, task.n, seed, mse, seconds)
    best = (math.inf, 0.0, False)
    for lr in task.rates:
        for chrono in (False, True):
            began = time.perf_counter()
            _, mse = train_reader(task, lr, task.sweep_updates, chrono, 0, device)
            best = min(best, (mse, lr, chrono))
            seconds, labels = time.perf_counter() - began, _labels(lr, chrono)
            yield _row(task, "sweep", task.train_steps, 2 * task.n, 0, mse, seconds) | labels
    _, lr, chrono = best
    for seed in task.seeds:
        began = time.perf_counter()
        reader, mse = train_reader(task, lr, task.updates, chrono, seed, device)
        seconds, labels = time.perf_counter() - began, _labels(lr, chrono)
        yield _row(task, "lstm", task.train_steps, 2 * task.n, seed, mse, seconds) | labels
        mse, seconds = long_error(reader, task, seed, device)
        yield _row(task, "lstm", task.steps, 2 * task.n, seed, mse, seconds) | labels


def _labels(lr: float, chrono: bool) -> dict[str, Any]:
    return {"lr": lr, "init": "chrono" if chrono else "ordinary"}


def _row(
    task: Task, experiment: str, steps: int, numbers: int, seed: int, mse: float, seconds: float
) -> dict[str, Any]:
    """seconds: to read one history (legs); to train; or, for a long `lstm`, to read all of them."""
    return {
        "experiment": experiment,
        "steps": steps,
        "wavelengths": task.wavelengths,
        "numbers": numbers,
        "seed": seed,
        "mse": mse,
        "zero_mse": RMS**2,
        "seconds": seconds,
        "lr": None,
        "init": None,
        "status": "ok",
    }
