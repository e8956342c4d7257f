"""What a model is trained on: where batches come from, and how well an answer does."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

Batch = tuple[Tensor, Tensor]
Draw = Callable[[int], Batch]
UNSCORED = -100


@dataclass(frozen=True)
class Task:
    """draw(seed) gives a batch, (inputs, targets), on the device of the model.

    tests: more such functions by name, for evaluation at other lengths; the columns of a row begin
    with the name. By default "test", which is `draw` on seeds that no training step uses.
    Integer targets are classes, -100 where nothing is asked, and the model's last axis scores them:
    the loss is the cross entropy, the score the share that is right. Real targets have the shape of
    the model's output: the loss is the mean squared error, the score its root.
    """

    draw: Draw
    tests: Mapping[str, Draw] = field(default_factory=dict)

    def evaluations(self) -> Mapping[str, Draw]:
        return self.tests or {"test": self.draw}


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean loss of a batch, in float32 or wider."""
    if targets.is_floating_point():
        return F.mse_loss(outputs.to(torch.promote_types(outputs.dtype, torch.float32)), targets)
    logits = outputs.to(torch.promote_types(outputs.dtype, torch.float32)).flatten(0, -2)
    return F.cross_entropy(logits, targets.flatten(), ignore_index=UNSCORED)


def tally(outputs: Tensor, targets: Tensor) -> Tensor:
    """(3,) float64: the loss summed over what is scored, what is right of it, how much it is."""
    if targets.is_floating_point():
        squares = (outputs.double() - targets.double()).square().sum()
        return torch.stack([squares, squares, torch.full_like(squares, targets.numel())])
    logits, targets = outputs.double().flatten(0, -2), targets.flatten()
    total = F.cross_entropy(logits, targets, ignore_index=UNSCORED, reduction="sum")
    scored = targets != UNSCORED
    right = (logits.argmax(-1) == targets) & scored
    return torch.stack([total, right.sum().double(), scored.sum().double()])


def seed_of(*parts: str | int) -> int:
    """A seed, 63 bits, that depends on every part and on their order."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
