"""ssmlib.tasks: generated data is what it says, and a pure function of its seed."""

import math
import statistics

import pytest
import torch

from ssmlib.tasks import delay, digits, listops, reconstruct, white_noise
from ssmlib.tasks.glyphs import _distances
from ssmlib.tasks.lists import DIGIT, END, LIST, PADDING, WORDS, words
from ssmlib.tasks.signals import autocovariance

GENERATORS = [
    lambda seed: delay(3, 40, 7, 0.25, seed),
    lambda seed: reconstruct(3, 40, 7, 0.25, seed),
    lambda seed: digits(3, seed, side=12),
    lambda seed: listops(3, 20, seed),
]


@pytest.mark.parametrize("generate", GENERATORS)
def test_equal_seeds_give_equal_bits_and_no_other_randomness_is_touched(generate):
    before = torch.get_rng_state()
    one, same, other = generate(5), generate(5), generate(6)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0], other[0])


@pytest.mark.parametrize(
    ("length", "cutoff"), [(64, 0.25), (63, 0.25), (64, 0.5), (63, 0.5), (64, 1 / 64)]
)
def test_noise_has_the_size_and_the_band_that_it_says(length, cutoff):
    x = white_noise(4000, length, cutoff, 0).double()
    power = torch.fft.rfft(x).abs().square().mean(0)
    cycles = math.floor(cutoff * length)
    assert power[0] < 1e-9
    assert cycles == length // 2 or power[cycles + 1 :].max() < 1e-9
    assert power[1 : cycles + 1].min() > 0.4 * power[1]  # all alike; half at the mirror, 1/2
    assert abs(x.square().mean().sqrt() - 0.5) < 0.01
    products = torch.stack([(x[:, 0] * x[:, i]).mean() for i in range(length)])
    assert (products - autocovariance(length, cutoff)).abs().max() < 0.03


def test_delay_says_what_came_before():
    x, y = delay(2, 50, 9, 0.3, 1)
    assert x.shape == y.shape == (2, 50, 1)
    assert torch.equal(y[:, 9:], x[:, :-9])
    assert (y[:, :9] == 0).all()
    assert all(torch.equal(z, x) for z in delay(2, 50, 0, 0.3, 1))


def test_reconstruct_says_the_last_inputs_oldest_first():
    x, y = reconstruct(2, 50, 9, 0.3, 1)
    assert torch.equal(y, x[:, -9:, 0])


def test_digits_are_ten_kinds_of_ink():
    x, labels = digits(2000, 0, side=16)
    assert x.shape == (2000, 256, 1)
    counts = torch.bincount(labels, minlength=10)
    assert counts.min() > 150
    clean, _ = digits(200, 0, side=16, noise=0.0)
    assert clean.min() >= 0
    assert 0.9 < clean.max() <= 1
    assert (clean.amax((1, 2)) > 0.8).all()  # no drawing left the picture


def test_digits_can_be_told_apart_by_their_mean_pictures():
    """Well above chance, and far from solved: what is left is for a model to learn."""
    (train, labels), (test, truth) = digits(2000, 0, side=14), digits(500, 1, side=14)
    means = torch.stack([train[labels == i].mean(0) for i in range(10)])
    nearest = (test[:, None] - means).square().sum((2, 3)).argmin(1)
    assert 0.5 < (nearest == truth).float().mean() < 0.95


def test_without_jitter_and_noise_every_7_is_the_same():
    x, labels = digits(200, 0, side=14, jitter=0.0, noise=0.0)
    sevens = x[labels == 7]
    assert (sevens - sevens[0]).abs().max() < 1e-5
    assert (x[labels == 1][0] - sevens[0]).abs().max() > 0.5


def test_distances_to_segments(seeded):
    segments = seeded.uniform(2, 3, 2, 2).float()
    got = _distances(segments, 9).sqrt()
    along = torch.linspace(0, 1, 2001)[:, None, None, None]
    start, stop = segments.unbind(2)
    dots = (start + along * (stop - start)[None]).squeeze(1)  # 2001 dots on each segment
    pixel = (torch.arange(9) + 0.5) / 9
    for row, column in ((0, 0), (3, 7), (8, 8)):
        here = torch.stack([pixel[column], pixel[row]])
        want = (dots - here).norm(dim=-1).amin(0)
        assert (got[:, :, row, column] - want).abs().max() < 1e-3


def evaluate(text):
    """ListOps by a stack of lists."""
    rules = {
        "[MIN": min,
        "[MAX": max,
        "[MED": lambda a: int(statistics.median(a)),
        "[SM": lambda a: sum(a) % 10,
    }
    stack, kinds = [[]], []
    for word in text.split():
        if word in rules:
            kinds.append(word)
            stack.append([])
        elif word == "]":
            arguments = stack.pop()
            assert len(arguments) >= 2
            stack[-1].append(rules[kinds.pop()](arguments))
        else:
            stack[-1].append(int(word))
    assert len(stack) == 1
    assert len(stack[0]) == 1
    return stack[0][0]


@pytest.mark.parametrize(("depth", "arguments"), [(10, 10), (2, 10), (4, 3)])
def test_listops_evaluates_right(depth, arguments):
    tokens, values = listops(300, 24, 0, max_depth=depth, max_args=arguments)
    assert [evaluate(words(row)) for row in tokens] == values.tolist()
    opened = ((tokens >= LIST) & (tokens < END)).long()
    deep = (opened - (tokens == END).long()).cumsum(1)
    assert 1 <= deep.max() <= depth - 1


def test_listops_keeps_its_bounds_and_pads_behind():
    tokens, _ = listops(200, 30, 0, shortest=20)
    lengths = (tokens != PADDING).sum(1)
    assert lengths.min() >= 20
    assert lengths.max() <= 30
    assert all((row[n:] == PADDING).all() for row, n in zip(tokens, lengths, strict=True))
    assert (tokens[:, 0] >= LIST).all()
    assert torch.equal(tokens.unique(), torch.arange(len(WORDS)))


def test_listops_draws_by_the_grammar():
    tokens, _ = listops(3000, 200, 0, max_depth=3)  # long enough to throw hardly any away
    digit = (tokens >= DIGIT) & (tokens < LIST)
    opened = (tokens >= LIST) & (tokens < END)
    kinds = torch.bincount(tokens[:, 0], minlength=END)[LIST:END] / 3000
    assert (kinds - 0.25).abs().max() < 0.05
    deep = (opened.long() - (tokens == END).long()).cumsum(1)
    under_root = (digit & (deep == 1)).sum(), (opened & (deep == 2)).sum()
    assert abs(under_root[1] / (under_root[0] + under_root[1]) - 0.25) < 0.02
    roots = (digit & (deep == 1)).sum(1) + (opened & (deep == 2)).sum(1)
    assert torch.equal(roots.unique(), torch.arange(2, 11))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: white_noise(0, 8, 0.25, 0), "batch: expected a whole number >= 1, got 0"),
        (lambda: white_noise(1, 8, 0.6, 0), "cutoff: expected a finite number >= 0.125 <= 0.5"),
        (lambda: white_noise(1, 8, 0.1, 0), "cutoff: expected a finite number >= 0.125"),
        (lambda: delay(1, 8, 8, 0.25, 0), "lag: expected a whole number >= 0 <= 7, got 8"),
        (lambda: reconstruct(1, 8, 9, 0.25, 0), "memory: expected a whole number >= 1 <= 8"),
        (lambda: digits(1, 0, side=4), "side: expected a whole number >= 8, got 4"),
        (lambda: digits(1, 0, noise=-1.0), "noise: expected a finite number >= 0"),
        (lambda: listops(1, 3, 0), "length: expected a whole number >= 4, got 3"),
        (lambda: listops(1, 9, 0, shortest=10), "shortest: expected a whole number >= 2 <= 9"),
        (lambda: listops(1, 99, 0, shortest=9, max_depth=2, max_args=3), "shortest: .* <= 5"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bounds_that_no_tree_meets_are_refused(monkeypatch):
    none = torch.zeros(8, 20, dtype=torch.long), torch.full((8,), -1)
    monkeypatch.setattr("ssmlib.tasks.lists._grow", lambda *a: none)
    with pytest.raises(ValueError, match="got 0 of 5 trees with 2 to 20 tokens"):
        listops(5, 20, 0)
