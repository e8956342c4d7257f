"""What tests of generated tasks share: are these values drawn evenly; what was asked where."""

import torch
from torch import Tensor

from ssmlib.train.task import UNSCORED


def assert_even(values: Tensor, low: int, high: int) -> None:
    """Every value of low ... high - 1 comes equally often, within five standard deviations."""
    share = 1 / (high - low)
    spread = (share * (1 - share) / values.numel()) ** 0.5
    drawn = torch.bincount(values.flatten() - low, minlength=high - low) / values.numel()
    assert len(drawn) == high - low
    assert (drawn - share).abs().max() < 5 * spread


def rows(batch: tuple[Tensor, Tensor]) -> list[tuple[list[int], dict[int, int]]]:
    """Each sequence as a list, with its answers by place."""
    tokens, targets = batch
    assert tokens.shape == targets.shape
    assert tokens.dtype == targets.dtype == torch.int64
    return [
        (said, {i: answer for i, answer in enumerate(asked) if answer != UNSCORED})
        for said, asked in zip(tokens.tolist(), targets.tolist(), strict=True)
    ]
