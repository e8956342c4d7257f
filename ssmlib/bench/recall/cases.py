"""What is trained and asked: a case is a model and a course; a run, one learning rate and seed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssmlib.model import ModelConfig
from ssmlib.recall import TASKS
from ssmlib.shapes import check_number
from ssmlib.train import seed_of

Setting = Mapping[str, Any]


@dataclass(frozen=True)
class Course:
    """A task, what is drawn from it to train and to test, and for how long.

    trained: arguments of the task; of several each batch has as many rows of each. tested: those
    asked about afterwards, on `sequences` each; the first decides what is best. most_asked:
    answers due in one sequence of training, at the most. lrs: tried in this order with seed 0,
    until one solves the task. A run ends after `steps`, or when it answers a share `solved` of some
    fresh batches; more than 1 for never, where what is asked beyond the training is the point, and
    the learning rate should come to its end. seeds: in all, at the best of the rates.
    """

    task: str
    trained: tuple[Setting, ...]
    tested: tuple[Setting, ...]
    most_asked: int
    steps: int
    lrs: tuple[float, ...]
    batch: int = 64
    seeds: int = 3
    solved: float = 0.995
    sequences: int = 512
    schedule: str = "cosine"

    def __post_init__(self):
        """Raise ValueError for numbers that train nothing."""
        check_number(low=1, whole=True, steps=self.steps, batch=self.batch, seeds=self.seeds)
        for lr in self.lrs:
            check_number(low=0, lr=lr)
        if self.batch % len(self.trained):
            told = f"a multiple of {len(self.trained)} settings"
            raise ValueError(f"batch: expected {told}, got {self.batch}")

    def draw(self, count: int, seed: int, device: str | torch.device) -> tuple[Tensor, Tensor]:
        """`count` batches: tokens and targets, both (count b t)."""
        share = self.batch // len(self.trained)
        drawn = [
            TASKS[self.task].draw(
                batch=count * share, seed=seed_of(seed, i), device=device, **setting
            )
            for i, setting in enumerate(self.trained)
        ]
        return tuple(
            torch.cat([x.unflatten(0, (count, share)) for x in parts], dim=1)
            for parts in zip(*drawn, strict=True)
        )

    @property
    def labels(self) -> dict[str, str | int]:
        told = {"task": self.task, "trained": " | ".join(map(told_of, self.trained))}
        return told | {"batch": self.batch, "budget": self.steps}


@dataclass(frozen=True)
class Case:
    """A model under a name, and its course, `track` being the name of that.

    mixer: what it is made of, a name of `ssmlib.bench.recall.models`; variant: its options, "n=16".
    """

    experiment: str
    track: str
    mixer: str
    variant: str
    model: ModelConfig
    course: Course

    @property
    def labels(self) -> dict[str, str | int]:
        return {
            "experiment": self.experiment,
            "course": self.track,
            "mixer": self.mixer,
            "variant": self.variant,
            "d_model": self.model.d_model,
            **self.course.labels,
        }


@dataclass(frozen=True)
class Run:
    """A case at one learning rate, from one seed."""

    case: Case
    lr: float
    seed: int

    @property
    def labels(self) -> dict[str, str | int | float]:
        return self.case.labels | {"lr": self.lr, "seed": self.seed}


def told_of(setting: Setting) -> str:
    """A setting as a row shows it: "length=64 pairs=16"."""
    return " ".join(f"{name}={value}" for name, value in setting.items())
