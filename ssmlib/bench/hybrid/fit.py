"""Some models of the experiment, trained side by side, and asked about each kind of the stream."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssmlib.bench.hybrid.cases import Case, Size
from ssmlib.bench.ledger import Ledger, Row
from ssmlib.bench.selection.fit import built, train_together
from ssmlib.bench.selection.sweep import trained
from ssmlib.train import TrainConfig, seed_of
from ssmlib.train.task import tally


@dataclass(frozen=True)
class Cell:
    """A case, how it is trained, and on which device ("cuda" or "cpu")."""

    case: Case
    size: Size
    lr: float
    seed: int
    device: str

    @property
    def labels(self) -> dict[str, str | float | int]:
        size = self.size
        shared = {"layers": size.layers, "d": size.d, "length": size.length, "steps": size.steps}
        return self.case.labels | shared | {"lr": self.lr, "seed": self.seed}

    @property
    def config(self) -> TrainConfig:
        return TrainConfig(
            steps=self.size.steps,
            lr=self.lr,
            schedule=self.size.schedule,
            warmup=self.size.steps // 20,
            seed=self.seed,
            captured=self.device.startswith("cuda"),
        )

    def draw(self, batch: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
        return self.size.stream.draw(batch, seed, self.device)


def fit(cells: Sequence[Cell]) -> list[list[Row]]:
    """Train the cells' models together; a row of each, unlabelled.

    A row: parameters, seconds of the training divided by the number of cells, what `asked` finds,
    and status: "ok" or "diverged".
    """
    models = [built(cell) for cell in cells]
    began = time.monotonic()
    losses = train_together(models, cells)
    seconds = (time.monotonic() - began) / len(cells)
    found = []
    for cell, model, loss in zip(cells, models, losses, strict=True):
        row: Row = {"parameters": sum(p.numel() for p in model.parameters()), "seconds": seconds}
        row |= asked(model, cell)
        values = [v for v in row.values() if isinstance(v, float)]
        whole = math.isfinite(loss) and all(map(math.isfinite, values))
        row = {k: v if math.isfinite(v) else None for k, v in row.items()}
        found.append([row | {"status": "ok" if whole else "diverged"}])
    return found


@torch.no_grad()
def asked(model: nn.Module, cell: Cell) -> Row:
    """text_loss, text_accuracy, and so on for each kind of the stream; and their mean loss."""
    model.eval()
    row: Row = {}
    for kind in cell.size.stream.kinds:
        sums = torch.zeros(3, dtype=torch.float64, device=cell.device)
        for i in range(cell.size.test_batches):
            seed = seed_of("hybrid", kind, i)
            tokens, targets = cell.size.stream.ask(kind, cell.size.batch, seed, cell.device)
            sums += tally(model(tokens)[0], targets)
        total, right, count = sums.tolist()
        row |= {f"{kind}_loss": total / count, f"{kind}_accuracy": right / count}
    losses = [row[f"{kind}_loss"] for kind in cell.size.stream.kinds]
    return row | {"loss": sum(losses) / len(losses)}


def sweep(
    cases: Sequence[Case], size: Size, ledger: Ledger, device: str, together: int
) -> Iterator[Row]:
    """Every case at every rate with seed 0; then the other seeds at the rate with the least loss.

    Raises OutOfTime where the ledger says so.
    """
    least: dict[tuple, tuple[float, float]] = {}
    wave = [Cell(case, size, lr, 0, device) for lr in size.lrs for case in cases]
    for cell, rows in trained(wave, ledger, together, fit):
        yield from rows
        loss = math.inf if rows[0]["loss"] is None else rows[0]["loss"]
        least[cell.case.name] = min(least.get(cell.case.name, (math.inf, cell.lr)), (loss, cell.lr))
    wave = [
        Cell(case, size, least[case.name][1], seed, device)
        for case in cases
        for seed in range(1, size.seeds)
    ]
    for _, rows in trained(wave, ledger, together, fit):
        yield from rows
