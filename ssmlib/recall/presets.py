"""Published settings of the tasks, by name, and what a guess is worth in each.

`PRESETS["mqar/zoology-256"]` says what was trained on and what was tested, as arguments of the
task; `preset.draw(batch, seed)` draws from its hardest test.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ssmlib.recall.drawing import Batch, Device
from ssmlib.recall.mqar import mqar

Setting = Mapping[str, Any]


@dataclass(frozen=True)
class Kind:
    """A task, and chance(**setting): the score of the best guess by one who reads no token.

    The score is that of `ssmlib.train`: the share of answers that are right.
    """

    draw: Callable[..., Batch]
    chance: Callable[..., float]


TASKS: dict[str, Kind] = {
    "mqar": Kind(mqar, lambda vocab, **_: 1 / (vocab - vocab // 2)),
}


@dataclass(frozen=True)
class Preset:
    """One published setting: arguments of the task, without batch and seed.

    trained: what training mixes, or goes through in this order where `note` says so. tested: what
    is evaluated; the last is the hardest. source: a key of the book's references. note: what a
    reader of the source should know.
    """

    task: str
    trained: tuple[Setting, ...]
    tested: tuple[Setting, ...]
    source: str
    note: str = ""

    def draw(self, batch: int, seed: int, device: Device = "cpu") -> Batch:
        """A batch of the hardest test: tokens (b t), targets (b t)."""
        return TASKS[self.task].draw(batch=batch, seed=seed, device=device, **self.tested[-1])

    def chance(self) -> float:
        """What a blind guess scores in the hardest test."""
        return TASKS[self.task].chance(**self.tested[-1])


def _settings(shapes: list[tuple[int, int]], **common: Any) -> tuple[Setting, ...]:
    return tuple({"length": length, "pairs": pairs, **common} for length, pairs in shapes)


def _alike(task: str, source: str, note: str = "", **setting: Any) -> Preset:
    """Tested as trained."""
    return Preset(task, (setting,), (setting,), source, note)


def _mqar() -> dict[str, Preset]:
    presets = {
        f"mqar/zoology-{length}": _alike(
            "mqar", "arora2023zoology", length=length, pairs=pairs, vocab=8192, filler="zero"
        )
        for length, pairs in [(64, 4), (128, 8), (256, 16), (512, 64)]
    }
    presets["mqar/based"] = Preset(
        "mqar",
        _settings([(64, 4), (128, 8), (256, 16), (256, 32), (256, 64)], vocab=8192),
        _settings(
            [(64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256)], vocab=8192
        ),
        "arora2024based",
        "100,000 examples of the first setting and 20,000 of each other; 1,000 of each test, whose"
        " accuracies are averaged",
    )
    for length in (256, 512, 1024):
        pairs = [length // 32, length // 16, length // 8, length // 4]
        presets[f"mqar/mamba2-{length}"] = Preset(
            "mqar",
            _settings([(length, n) for n in pairs], vocab=8192),
            _settings([(length, length // 4)], vocab=8192),
            "dao2024transformers",
            "a curriculum: training goes through the settings in this order",
        )
    return presets


PRESETS: dict[str, Preset] = _mqar()
