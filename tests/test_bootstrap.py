"""The block bootstrap: it covers what it should, and wider where neighbours agree."""

import pytest
import torch

from ssmlib.bench.bootstrap import interval


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_interval_of_a_mean_covers_it_about_as_often_as_it_says():
    hits = 0
    for seed in range(100):
        low, middle, high = interval(torch.mean, normal(512, seed=seed), block=16, draws=100)
        assert low <= middle <= high
        hits += low < 0 < high
    assert 84 <= hits <= 99


def test_where_neighbours_agree_blocks_must_be_as_long_as_they_do():
    x = normal(64).repeat_interleave(32)  # 64 numbers that look like 2,048
    short = interval(torch.mean, x, block=1)
    long = interval(torch.mean, x, block=64)
    assert long[2] - long[0] > 3 * (short[2] - short[0])
    assert long[1] == short[1]


def test_the_series_are_drawn_together():
    x = normal(256)
    low, middle, high = interval(lambda a, b: (a - b).abs().max(), x, x.clone(), block=8)
    assert low == middle == high == 0


def test_the_same_seed_gives_the_same_interval():
    x = normal(256)
    assert interval(torch.mean, x, block=8, seed=1) == interval(torch.mean, x, block=8, seed=1)
    assert interval(torch.mean, x, block=8, seed=1) != interval(torch.mean, x, block=8, seed=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interval(torch.mean, normal(8), block=8), "block: expected two blocks or more"),
        (lambda: interval(torch.mean, normal(8), block=0), "block: expected a whole number >= 1"),
        (lambda: interval(torch.mean, normal(8), block=2, level=2), "level: expected a finite"),
        (lambda: interval(torch.mean, normal(8), normal(9)), r"series: expected .* got \[8, 9\]"),
        (lambda: interval(torch.mean), "series: expected tensors of one t, got none"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
