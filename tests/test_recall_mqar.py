"""Multi-query associative recall: answers again by brute force, nothing to guess from, refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmlib.recall import mqar
from ssmlib.train.task import UNSCORED


@st.composite
def arguments(draw):
    pairs, passes = draw(st.integers(1, 9)), draw(st.integers(1, 3))
    return {
        "batch": draw(st.integers(1, 5)),
        "length": 2 * (passes + 1) * pairs + draw(st.integers(0, 21)),
        "pairs": pairs,
        "vocab": draw(st.integers(2 * pairs + 2, 60)),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "filler": draw(st.sampled_from(["random", "zero"])),
        "power": draw(st.sampled_from([0.01, 1.0, 2.0])),
        "passes": passes,
    }


@settings(max_examples=60, deadline=None)
@given(arguments())
def test_every_key_is_asked_once_and_the_answer_stood_behind_it(drawn):
    tokens, targets = mqar(**drawn)
    assert tokens.shape == targets.shape == (drawn["batch"], drawn["length"])
    assert tokens.dtype == targets.dtype == torch.int64
    pairs, half = drawn["pairs"], drawn["vocab"] // 2
    shown = 2 * pairs * drawn["passes"]
    for said, asked in zip(tokens.tolist(), targets.tolist(), strict=True):
        book = dict(zip(said[0 : 2 * pairs : 2], said[1 : 2 * pairs : 2], strict=True))
        assert said[:shown] == said[: 2 * pairs] * drawn["passes"]
        assert len(book) == len(set(book.values())) == pairs
        assert all(1 <= key < half <= value < drawn["vocab"] for key, value in book.items())
        places = [i for i, answer in enumerate(asked) if answer != UNSCORED]
        assert all(i >= shown and (i - shown) % 2 == 0 for i in places)
        assert sorted(said[i] for i in places) == sorted(book)
        assert all(asked[i] == book[said[i]] for i in places)
        rest = [token for i, token in enumerate(said) if i >= shown and i not in places]
        assert all(0 <= token < drawn["vocab"] for token in rest)
        assert drawn["filler"] == "random" or not any(rest)


def test_a_blind_guess_and_a_guess_among_the_values_shown():
    """No value, no pair of the list and no place is better than another."""
    tokens, targets = mqar(4000, 16, 3, 12, seed=0)
    asked = targets != UNSCORED
    answers = targets[asked]
    share = torch.bincount(answers - 6, minlength=6) / len(answers)
    assert (share - 1 / 6).abs().max() < 5 * (5 / 36 / len(answers)) ** 0.5
    rank = (tokens[:, None, 1:6:2] == targets[:, :, None])[asked].long().argmax(1)
    share = torch.bincount(rank, minlength=3) / len(rank)
    assert (share - 1 / 3).abs().max() < 1e-9  # every pair is asked once in every sequence
    first = asked.long().argmax(1)
    answered = (tokens[:, 1:6:2] == targets.gather(1, first[:, None])).long().argmax(1)
    share = torch.bincount(answered, minlength=3) / len(answered)
    # the pair that is drawn first is likelier to stand early, as in the published generator
    assert share.argmax() == 0


def test_even_places_tell_nothing_about_the_pair():
    tokens, targets = mqar(8000, 16, 3, 12, seed=0, power=1.0)
    first = (targets != UNSCORED).long().argmax(1)
    answered = (tokens[:, 1:6:2] == targets.gather(1, first[:, None])).long().argmax(1)
    share = torch.bincount(answered, minlength=3) / len(answered)
    assert (share - 1 / 3).abs().max() < 5 * (2 / 9 / len(answered)) ** 0.5


def test_gaps_follow_the_power_law():
    """One pair: slot i is taken in proportion to i^(power - 1)."""
    _, targets = mqar(40000, 12, 1, 8, seed=0, filler="zero", power=0.5)
    slot = (targets != UNSCORED).long().argmax(1).sub(2).div(2, rounding_mode="floor")
    weight = torch.arange(1, 6).double() ** -0.5
    wanted = weight / weight.sum()
    share = torch.bincount(slot, minlength=5) / len(slot)
    assert ((share - wanted).abs() < 5 * (wanted * (1 - wanted) / len(slot)) ** 0.5).all()


def test_equal_seeds_give_equal_batches_and_leave_other_randomness_alone():
    torch.manual_seed(0)
    expected = torch.rand(())
    torch.manual_seed(0)
    one, two, other = (mqar(4, 32, 4, 64, seed=seed) for seed in (1, 1, 2))
    assert torch.rand(()) == expected
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[0], other[0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pairs": 6}, "pairs: expected a whole number >= 1 <= 5, got 6"),
        ({"length": 15}, "length: expected a whole number >= 16, got 15"),
        ({"length": 16, "passes": 2}, "length: expected a whole number >= 24, got 16"),
        ({"vocab": 3}, "vocab: expected a whole number >= 4, got 3"),
        ({"seed": -1}, "seed: expected a whole number >= 0"),
        ({"batch": 0}, "batch: expected a whole number >= 1, got 0"),
        ({"filler": "noise"}, "filler: expected one of random, zero, got 'noise'"),
        ({"power": -1.0}, "power: expected a finite number >= 0, got -1.0"),
    ],
)
def test_bad_settings_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        mqar(**({"batch": 1, "length": 16, "pairs": 4, "vocab": 12, "seed": 0} | changed))
