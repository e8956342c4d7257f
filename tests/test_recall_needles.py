"""Needles: the secret is where it should be, nowhere else, and asked at the end."""

import itertools

import pytest
import torch
from guessing import assert_even, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmlib.recall import PRESETS, needle, needle_grid
from ssmlib.recall.needles import CAPITALS, needle_vocab, spell


@st.composite
def arguments(draw):
    symbols = draw(st.integers(1, 8))
    return {
        "length": 2 * symbols + 1 + draw(st.integers(0, 40)),
        "symbols": symbols,
        "alphabet": draw(st.sampled_from(["01", "abc", CAPITALS])),
        "depth": draw(st.none() | st.floats(0, 1)),
        "hay": draw(st.sampled_from(["repeat", "random"])),
        "words": draw(st.integers(1, 9)),
        "seed": draw(st.integers(0, 2**63 - 1)),
    }


@settings(max_examples=60, deadline=None)
@given(arguments())
def test_the_secret_is_hidden_once_and_asked_at_the_end(drawn):
    symbols, words, alphabet = drawn["symbols"], drawn["words"], drawn["alphabet"]
    size = drawn["length"] - 2 * symbols - 1
    for said, asked in rows(needle(5, **drawn)):
        assert len(said) == drawn["length"]
        assert max(said) < needle_vocab(words, alphabet)
        text = spell(torch.tensor(said), words, alphabet)
        before, secret, again = text.split("?")
        secret, after = secret[:symbols], secret[symbols:]
        assert set(secret) <= set(alphabet)
        assert set(before + after) <= {"·"}
        assert len(before + after) == size
        assert drawn["depth"] is None or len(before) == round(drawn["depth"] * size)
        assert again == secret[:-1]
        places = range(drawn["length"] - symbols, drawn["length"])
        answers = {i: 1 + words + alphabet.index(c) for i, c in zip(places, secret, strict=True)}
        assert asked == answers
        hay = [token for token in said[:-symbols] if 1 <= token <= words]
        if drawn["hay"] == "repeat":
            assert all(b == a % words + 1 for a, b in itertools.pairwise(hay))


def test_secrets_places_and_words_are_even():
    tokens, targets = needle(8000, 16, 0, symbols=2, alphabet="xyz", words=3, hay="random")
    first, second = (targets[:, -2:] - 4).unbind(1)
    assert_even(3 * first + second, 0, 9)
    assert_even((tokens == 0).long().argmax(1), 0, 12)
    assert_even(tokens[(tokens > 0) & (tokens < 4)], 1, 4)


def test_one_needle_says_pineapple():
    preset = PRESETS["needle/pineapple"]
    tokens, _ = preset.draw(2, seed=0)
    assert all("?PINEAPPLE·" in spell(row, alphabet=CAPITALS) for row in tokens)
    assert preset.chance() == 1 / 3  # who says P every time


def test_ten_thousand_tokens_lie_between_a_number_and_its_question():
    tokens, targets = PRESETS["needle/number"].draw(2, seed=0)
    marks = (tokens == 0).nonzero()[:, 1].view(2, 2)
    assert torch.equal(marks[:, 1] - marks[:, 0] - 21, torch.tensor([10_000, 10_000]))
    assert torch.equal(targets[:, -20:], tokens[:, 1:21])


def test_a_grid_has_a_test_for_every_length_and_depth():
    grid = needle_grid([16, 32], [0, 0.5, 1], batch=3, symbols=2)
    assert list(grid) == ["16@0", "16@0.5", "16@1", "32@0", "32@0.5", "32@1"]
    tokens, _ = grid["32@0.5"](7)
    assert tokens.shape == (3, 32)
    assert (tokens[:, 14] == 0).all()  # half of the 27 words before it
    assert torch.equal(tokens, needle(3, 32, 7, symbols=2, depth=0.5)[0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"length": 6}, "length: expected a whole number >= 7, got 6"),
        ({"depth": 1.5}, "depth: expected a finite number >= 0 <= 1, got 1.5"),
        ({"hay": "grass"}, "hay: expected one of repeat, random, got 'grass'"),
        ({"alphabet": "aab"}, "alphabet: expected different letters, got 'aab'"),
        ({"secret": "1234"}, "secret: expected 3 letters of 0123456789, got '1234'"),
        ({"secret": "12a"}, "secret: expected 3 letters of 0123456789, got '12a'"),
        ({"words": 0}, "words: expected a whole number >= 1, got 0"),
        ({"seed": -1}, "seed: expected a whole number >= 0"),
    ],
)
def test_bad_settings_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        needle(**{"batch": 1, "length": 20, "seed": 0, "symbols": 3} | changed)
