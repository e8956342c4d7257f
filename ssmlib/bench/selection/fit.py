"""Some models, trained side by side and asked at several lengths.

A model of a hundred thousand parameters leaves most of a GPU idle. So each has a stream of its own,
on which its step is replayed as a CUDA graph, and all learn from the same batches.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssmlib.bench.ledger import Row
from ssmlib.bench.selection.cases import Case, Size
from ssmlib.train import TrainConfig, seed_of
from ssmlib.train.step import make_optimizer, make_step, set_lr
from ssmlib.train.task import UNSCORED

AT_ONCE = 2**20  # tokens in one call of the model
FEWEST = 64  # sequences that a length is tested on


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
        shared = {"train_length": size.length, "vocab": size.vocab, "batch": size.batch}
        if self.case.experiment == "selective_copying":
            shared["items"] = size.items
        return self.case.labels | shared | {"steps": size.steps, "lr": self.lr, "seed": self.seed}

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
        return self.size.draw(self.case.experiment, batch, length, seed, self.device)


def fit(cells: Sequence[Cell]) -> list[list[Row]]:
    """Train the cells' models together, and return each one's rows, one per length, unlabelled.

    The cells are of one experiment, size and device. A row: d_model, parameters, seconds of the
    training divided by the number of cells, the mean loss of its last tenth, length, sequences,
    accuracy, and status: "ok" or "diverged".
    """
    models = [built(cell) for cell in cells]
    began = time.monotonic()
    losses = train_together(models, cells)
    seconds = (time.monotonic() - began) / len(cells)
    found = []
    for cell, model, loss in zip(cells, models, losses, strict=True):
        common = {
            "d_model": cell.case.model.d_model,
            "parameters": sum(p.numel() for p in model.parameters()),
            "seconds": seconds,
            "loss": loss if math.isfinite(loss) else None,
        }
        status = "ok" if math.isfinite(loss) else "diverged"
        rows = asked_lengths(model, cell, status)
        found.append([common | row | {"status": status} for row in rows])
    return found


def built(cell: Cell) -> nn.Module:
    """The model as the cell's seed draws it, on the CPU, so that every device trains the same."""
    with torch.random.fork_rng([]):
        torch.manual_seed(cell.seed)
        return cell.case.model.build().to(cell.device)


def train_together(models: Sequence[nn.Module], cells: Sequence[Cell]) -> list[float]:
    """Train each model as `ssmlib.train.train` would, a step of each in turn; return mean losses.

    They are those of the last tenth of the steps, before the updates.
    """
    size, on_gpu = cells[0].size, cells[0].config.captured
    assert all(cell.size == size for cell in cells)
    optimizers = [make_optimizer(m, c.config) for m, c in zip(models, cells, strict=True)]
    steps = [
        make_step(m.train(), o, c.config) for m, o, c in zip(models, optimizers, cells, strict=True)
    ]
    streams = [step.stream if on_gpu else None for step in steps]
    totals = [torch.zeros((), dtype=torch.float64, device=cell.device) for cell in cells]
    counted = -(-size.steps // 10)
    for k in range(size.steps):
        seeds = {cell.seed for cell in cells}
        batches = {s: cells[0].draw(size.batch, size.length, seed_of("train", s, k)) for s in seeds}
        for cell, optimizer, step, stream, total in zip(
            cells, optimizers, steps, streams, totals, strict=True
        ):
            if stream is not None:
                stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                set_lr(optimizer, cell.config.scale(k))
                value = step(*batches[cell.seed])
                if k >= size.steps - counted:
                    total += value
            if stream is not None:  # the memory of the batch is free when this stream is through
                for x in batches[cell.seed]:
                    x.record_stream(stream)
    if on_gpu:
        torch.cuda.synchronize()
    return [total.item() / counted for total in totals]


def asked_lengths(model: nn.Module, cell: Cell, status: str) -> Iterator[Row]:
    """length, sequences and accuracy, for each length that the case is asked about."""
    for length in cell.size.tested:
        if length > cell.case.longest or (status != "ok" and length != cell.size.length):
            continue
        count = min(cell.size.sequences, max(FEWEST, AT_ONCE // length))
        tokens, targets = cell.draw(count, length, seed_of("selection", length))
        share = accuracy(model, tokens, targets, cell.case.in_pieces)
        yield {"length": length, "sequences": count, "accuracy": share}


@torch.no_grad()
def accuracy(model: nn.Module, tokens: Tensor, targets: Tensor, in_pieces: bool) -> float:
    """The share of scored targets that the model's best guess meets.

    Sequences go through a few at a time; or, if the model keeps a state, all of them in pieces,
    so that memory does not grow with the length.
    """
    model.eval()
    b, t = tokens.shape
    rows = b if in_pieces else max(1, AT_ONCE // t)
    piece = max(1, AT_ONCE // b) if in_pieces else t
    right = torch.zeros((), dtype=torch.int64, device=tokens.device)
    for asked, wanted in zip(tokens.split(rows), targets.split(rows), strict=True):
        state = None
        for x, y in zip(asked.split(piece, 1), wanted.split(piece, 1), strict=True):
            logits, after = model(x, state)
            state = after if in_pieces else None
            right += ((logits.argmax(-1) == y) & (y != UNSCORED)).sum()
    return right.item() / (targets != UNSCORED).sum().item()
