"""Tasks of recall: every answer again by brute force, nothing to guess from, the same by seed."""

from functools import partial

import pytest
import torch
from guessing import assert_even

from ssmlib.recall import NOISE, induction, selective_copying
from ssmlib.train import Task, TrainConfig, train
from ssmlib.train.task import UNSCORED

TASKS = {
    "selective_copying": partial(selective_copying, items=5, vocab=9),
    "induction": partial(induction, vocab=9),
}


@pytest.mark.parametrize(
    ("length", "items", "vocab"), [(2, 1, 3), (10, 5, 4), (11, 5, 16), (64, 16, 16), (257, 3, 5)]
)
def test_what_is_repeated_is_what_was_said_in_order(length, items, vocab):
    tokens, targets = selective_copying(7, length, items, vocab, seed=3)
    assert tokens.shape == targets.shape == (7, length)
    assert tokens.dtype == targets.dtype == torch.int64
    for said, asked in zip(tokens.tolist(), targets.tolist(), strict=True):
        stream, orders = said[: length - items], said[length - items :]
        found = [token for token in stream if token != NOISE]
        assert len(found) == items
        assert all(1 <= token <= vocab - 2 for token in found)
        assert orders == [vocab - 1] * items
        assert asked == [UNSCORED] * (length - items) + found


@pytest.mark.parametrize(("length", "vocab"), [(3, 2), (3, 5), (4, 16), (256, 16), (1000, 3)])
def test_the_answer_followed_the_only_other_trigger(length, vocab):
    tokens, targets = induction(9, length, vocab, seed=5)
    assert tokens.shape == targets.shape == (9, length)
    assert tokens.dtype == targets.dtype == torch.int64
    for said, asked in zip(tokens.tolist(), targets.tolist(), strict=True):
        places = [i for i, token in enumerate(said) if token == vocab - 1]
        assert len(places) == 2
        assert places[0] < places[1] - 1
        assert places[1] == length - 1
        assert asked == [UNSCORED] * (length - 1) + [said[places[0] + 1]]
        assert all(0 <= token < vocab for token in said)


@pytest.mark.parametrize("name", TASKS)
def test_equal_seeds_give_equal_batches_and_others_do_not(name):
    once, again = TASKS[name](4, 40, seed=1), TASKS[name](4, 40, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert not torch.equal(once[0], TASKS[name](4, 40, seed=2)[0])
    torch.manual_seed(0)
    expected = torch.rand(())
    torch.manual_seed(0)
    TASKS[name](4, 40, seed=1)
    assert torch.rand(()) == expected, "the caller's random numbers went on"


@pytest.mark.parametrize("name", TASKS)
def test_a_blind_guess_is_right_by_chance_alone(name):
    """Whatever constant, and whatever the last tokens say: one in vocab - 2, one in vocab - 1."""
    tokens, targets = TASKS[name](6000, 20, seed=0)
    asked = targets != UNSCORED
    low, high = (1, 8) if name == "selective_copying" else (0, 8)
    assert (asked == asked[:1]).all()
    assert (tokens[:, asked[0]] == 8).all()  # where an answer is asked, all inputs are the same
    for answers in targets[:, asked[0]].mT:
        assert_even(answers, low, high)


def test_items_stand_anywhere_in_the_stream():
    tokens, _ = selective_copying(20000, 12, 3, 16, seed=0)
    _, places = (tokens[:, :9] != NOISE).nonzero().unbind(1)
    assert_even(places, 0, 9)
    first = places.view(-1, 3)[:, 0]
    assert first.max() == 6, "the last places are free for the last items alone"


def test_the_trigger_stands_anywhere_that_leaves_an_answer():
    tokens, _ = induction(20000, 9, 4, seed=0)
    assert_even((tokens == 3).long().argmax(1), 0, 7)


def test_answers_do_not_depend_on_one_another():
    _, targets = selective_copying(20000, 12, 2, 5, seed=0)
    first, second = (targets[:, -2:] - 1).unbind(1)
    assert_even(3 * first + second, 0, 9)


def test_what_precedes_the_trigger_and_what_follows_the_answer_says_nothing():
    """Given the answer, every other token is even: in particular no copy of it was left."""
    tokens, targets = induction(20000, 6, 4, seed=0)
    at_start = tokens[:, 0] == 3
    others = tokens[at_start][:, 2:5]
    for answer in range(3):
        assert_even(others[targets[at_start][:, -1] == answer], 0, 3)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="length: expected a whole number >= 8, got 7"):
        selective_copying(1, 7, 4, 16, seed=0)
    with pytest.raises(ValueError, match="vocab: expected a whole number >= 3, got 2"):
        selective_copying(1, 8, 4, 2, seed=0)
    with pytest.raises(ValueError, match="items: expected a whole number >= 1, got 0"):
        selective_copying(1, 8, 0, 4, seed=0)
    with pytest.raises(ValueError, match="length: expected a whole number >= 3, got 2"):
        induction(1, 2, 16, seed=0)
    with pytest.raises(ValueError, match="batch: expected a whole number >= 1, got 0"):
        induction(0, 8, 16, seed=0)


@pytest.mark.parametrize("name", TASKS)
def test_the_harness_scores_what_is_asked_and_nothing_else(name):
    """A table from a token to the next can do nothing here but chance; and it runs."""

    class Table(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scores = torch.nn.Embedding(9, 9)

        def forward(self, tokens):
            return self.scores(tokens), None

    torch.manual_seed(0)
    config = TrainConfig(steps=60, lr=0.05, test_batches=40)
    row = train(Table(), Task(lambda seed: TASKS[name](32, 24, seed=seed)), config)[-1]
    chance = 1 / 7 if name == "selective_copying" else 1 / 8
    assert abs(row["test_accuracy"] - chance) < 0.05
