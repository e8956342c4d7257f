"""One model, trained once and asked at several lengths."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssmlib.bench.longrange.ledger import Row
from ssmlib.bench.selection.cases import Case, Size
from ssmlib.train import Task, TrainConfig, seed_of, train
from ssmlib.train.task import UNSCORED

AT_ONCE = 2**20  # tokens in one call of the model
MOST, FEWEST = 512, 64  # sequences that a length is tested on


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


def fit(cell: Cell) -> list[Row]:
    """Train the cell's model, and return a row per length, without the cell's labels.

    A row: parameters, d_model, seconds of the training, its last loss, "captured", length,
    sequences, accuracy and status. A run that diverged, or could not be captured and so was not,
    says so.
    """
    size, experiment, device = cell.size, cell.case.experiment, torch.device(cell.device)
    model = built(cell)
    task = Task(lambda seed: size.draw(experiment, size.batch, size.length, seed, device))
    config = TrainConfig(
        steps=size.steps,
        lr=cell.lr,
        schedule=size.schedule,
        warmup=size.steps // 20,
        seed=cell.seed,
        captured=device.type == "cuda",
    )
    began = time.monotonic()
    last = train(model, task, config)[-1]
    seconds = time.monotonic() - began
    common = {
        "d_model": cell.case.model.d_model,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": seconds,
        "loss": last["loss"],
    }
    return [
        common | row | {"status": last["status"]}
        for row in asked_lengths(model, cell, last["status"])
    ]


def built(cell: Cell) -> nn.Module:
    """The model as the cell's seed draws it, on the CPU, so that every device trains the same."""
    with torch.random.fork_rng([]):
        torch.manual_seed(cell.seed)
        return cell.case.model.build().to(cell.device)


def asked_lengths(model: nn.Module, cell: Cell, status: str) -> Iterator[Row]:
    """length, sequences and accuracy, for each length that the case is asked about."""
    for length in cell.size.tested:
        if length > cell.case.longest or (status != "ok" and length != cell.size.length):
            continue
        count = min(MOST, max(FEWEST, AT_ONCE // length))
        seed = seed_of("selection", length)
        tokens, targets = cell.size.draw(cell.case.experiment, count, length, seed, cell.device)
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
            logits, state = model(x, state)
            state = state if in_pieces else None
            right += ((logits.argmax(-1) == y) & (y != UNSCORED)).sum()
    return right.item() / (targets != UNSCORED).sum().item()
