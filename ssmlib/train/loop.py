"""The loop of `train`: batches, evaluations, rows."""

import importlib.util
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ssmlib.train.checkpoint import load, save
from ssmlib.train.config import TrainConfig
from ssmlib.train.step import autocast, make_optimizer, make_step, set_lr
from ssmlib.train.task import Draw, Task, seed_of, tally

Row = dict[str, str | int | float | None]


def train(model: nn.Module, task: Task, config: TrainConfig) -> list[Row]:
    """Train the model in place, on the device it is on; return one row per evaluation.

    model: a module with outputs, state = model(inputs). A row: step, lr, loss (the mean over the
    steps since the last row); for each test of the task its loss and "accuracy" or "rmse" under
    "test_loss", "test_accuracy"; and at last status, "ok" or "diverged": then the loss is no number
    and training has stopped. Evaluations of all runs draw the same batches.
    Raises ValueError for a checkpoint of another run.
    """
    device = next(model.parameters()).device
    optimizer = make_optimizer(model, config)
    path = None if config.checkpoint is None else Path(config.checkpoint)
    at, total, rows = (0, None, []) if path is None else load(path, model, optimizer, config)
    total = torch.zeros((), dtype=torch.float64, device=device) if total is None else total
    every = config.evaluate_every or config.steps
    update = make_step(model, optimizer, config)
    with _own_randomness(device), _bar(range(at, config.steps), config) as steps:
        for k in steps:
            if rows and rows[-1]["status"] == "diverged":
                break
            set_lr(optimizer, config.scale(k))
            torch.manual_seed(seed_of("step", config.seed, k))
            model.train()
            value = update(*task.draw(seed_of("train", config.seed, k)))
            total += value
            done = k + 1
            broken = device.type == "cpu" and not math.isfinite(value)
            ends = done % every == 0 or done == config.steps or broken
            if ends:
                mean = total.item() / (done - (rows[-1]["step"] if rows else 0))
                rows.append(_row(model, task, config, done, mean))
                total.zero_()
            if path is not None and (ends or done % config.checkpoint_every == 0):
                save(path, model, optimizer, config, done, total, rows)
    model.zero_grad(set_to_none=True)
    return rows


def _row(model: nn.Module, task: Task, config: TrainConfig, step: int, mean: float) -> Row:
    row: Row = {"step": step, "lr": config.lr * config.scale(step - 1), "loss": mean}
    model.eval()
    for name, draw in task.evaluations().items():
        total, share, kind = _evaluate(model, draw, config)
        row |= {f"{name}_loss": total, f"{name}_{kind}": share}
    finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
    return finite | {"status": "diverged" if None in finite.values() else "ok"}


@torch.no_grad()
def _evaluate(model: nn.Module, draw: Draw, config: TrainConfig) -> tuple[float, float, str]:
    """The mean loss, and the accuracy or the root mean squared error, with the latter's name."""
    sums: Tensor | int = 0
    for i in range(config.test_batches):
        inputs, targets = draw(seed_of("test", i))
        with autocast(inputs.device, config):
            outputs, _ = model(inputs)
        sums = sums + tally(outputs, targets)
    total, good, count = sums.tolist()
    if targets.is_floating_point():
        return total / count, math.sqrt(good / count), "rmse"
    return total / count, good / count, "accuracy"


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """Dropout is seeded step by step, and the caller's random numbers go on as if nothing was."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


@contextmanager
def _bar(steps: Iterable[int], config: TrainConfig) -> Iterator[Iterable[int]]:
    if not config.progress or importlib.util.find_spec("tqdm") is None:
        yield steps
        return
    from tqdm.auto import tqdm

    with tqdm(steps, initial=steps.start, total=config.steps, unit="step") as bar:
        yield bar
