"""How a model is trained: the schedule, and which parameters the optimizer treats alike."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from torch import nn

from ssmlib.shapes import check_number

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
}
PRECISIONS = ("float32", "bfloat16")
ASIDE = ("evaluate_every", "checkpoint", "checkpoint_every", "progress")  # change no parameter


@dataclass(frozen=True)
class TrainConfig:
    """AdamW for `steps` batches.

    lr: its highest learning rate, reached linearly after `warmup` steps, then as SCHEDULES say.
    slow_lr: the highest for parameters that a module names in its `slow`, which get no decay.
    clip: the largest norm of the gradient, None for any. seed: of the batches and of dropout.
    precision: "bfloat16" is autocast. evaluate_every: steps between rows; None for one row, the
    last. test_batches: how many each evaluation draws. checkpoint: a file, written every
    checkpoint_every steps and with each row, from which the same call continues. captured: run
    the step as a CUDA graph, for models so small that launching their kernels takes longer than
    they do. progress: a bar, where tqdm is installed.
    """

    steps: int
    lr: float = 1e-3
    slow_lr: float = 1e-3
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = "cosine"
    warmup: int = 0
    clip: float | None = 1.0
    seed: int = 0
    precision: str = "float32"
    evaluate_every: int | None = None
    test_batches: int = 8
    checkpoint: str | Path | None = None
    checkpoint_every: int = 1000
    captured: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        check_number(low=1, whole=True, steps=self.steps, test_batches=self.test_batches)
        check_number(low=1, whole=True, checkpoint_every=self.checkpoint_every)
        check_number(low=0, lr=self.lr, slow_lr=self.slow_lr, weight_decay=self.weight_decay)
        check_number(low=0, high=self.steps, whole=True, warmup=self.warmup)
        check_number(whole=True, seed=self.seed)
        if self.clip is not None:
            check_number(low=1e-12, clip=self.clip)
        if self.evaluate_every is not None:
            check_number(low=1, whole=True, evaluate_every=self.evaluate_every)
        for name, known in (("schedule", SCHEDULES), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}"
                )

    def scale(self, step: int) -> float:
        """The share of the highest learning rate at a step, from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return SCHEDULES[self.schedule]((step - self.warmup) / max(self.steps - self.warmup, 1))

    def identity(self) -> dict[str, str]:
        """What a checkpoint must agree with: everything that decides the parameters."""
        names = [f.name for f in fields(self) if f.name not in ASIDE]
        return {name: repr(getattr(self, name)) for name in names}


def param_groups(model: nn.Module, config: TrainConfig) -> list[dict]:
    """Three groups for AdamW: matrices; vectors and scalars, without decay; and slow parameters.

    A module names in `slow` those of its parameters that set time scales, as `named_parameters`
    does: a step that is right for a weight matrix throws them far, and decay would pull them to an
    arbitrary value. They get min(lr, slow_lr) (Gu, Goel and Ré 2022, appendix).
    """
    slow = {
        id(own)
        for module in model.modules()
        for name, own in module.named_parameters()
        if name in getattr(module, "slow", ())
    }
    learned = [p for p in model.parameters() if p.requires_grad]
    plain = [p for p in learned if id(p) not in slow]
    lr = {"lr": config.lr, "top": config.lr}
    low = dict.fromkeys(lr, min(config.lr, config.slow_lr))
    groups = [
        {"params": [p for p in plain if p.ndim > 1], "weight_decay": config.weight_decay, **lr},
        {"params": [p for p in plain if p.ndim <= 1], "weight_decay": 0.0, **lr},
        {"params": [p for p in learned if id(p) in slow], "weight_decay": 0.0, **low},
    ]
    return [group for group in groups if group["params"]]
