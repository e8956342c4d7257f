"""Copying and lookup, read as text: answers again by Python's strings, refusals."""

import pytest
import torch
from guessing import assert_even, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmlib.recall import copying, lookup
from ssmlib.train.task import UNSCORED

SIGNS = "*$|."


def read(tokens: list[int]) -> str:
    return "".join(SIGNS[i] if i < 4 else chr(ord("a") + i - 4) for i in tokens)


def examples(said: list[int], asked: dict[int, int]) -> list[tuple[str, dict[int, str], bool]]:
    """The examples of a row: the text, its answers by place, and whether it is whole."""
    text = read(said).rstrip("*")
    assert "*" not in text
    found, start = [], 0
    for part in text.split("$")[1:]:
        here = {i - start: read([a]) for i, a in asked.items() if start <= i <= start + len(part)}
        found.append(("$" + part, here, part.endswith(".")))
        start += 1 + len(part)
    assert sum(len(here) for _, here, _ in found) == len(asked)
    return found


sizes = st.tuples(st.integers(1, 6), st.integers(0, 6), st.integers(0, 30))


@settings(max_examples=50, deadline=None)
@given(sizes, st.integers(1, 26), st.booleans(), st.integers(0, 2**63 - 1))
def test_a_string_is_said_twice(size, letters, packed, seed):
    shortest, longest = size[0], size[0] + size[1]
    length = 2 * longest + 3 + size[2]
    for said, asked in rows(copying(4, length, shortest, longest, seed, letters, packed)):
        assert len(said) == length
        found = examples(said, asked)
        assert packed or len(found) == 1
        assert not packed or 0 not in said
        assert all(whole for _, _, whole in found[:-1])
        for text, answers, whole in found:
            if not whole:
                assert not answers
                continue
            string, again = text[1:-1].split("|")
            assert string == again
            assert shortest <= len(string) <= longest
            assert max(string) < chr(ord("a") + letters)
            bar = text.index("|")
            assert answers == {bar + i: letter for i, letter in enumerate(string)}


@settings(max_examples=80, deadline=None)
@given(sizes, st.integers(1, 3), st.integers(1, 4), st.integers(1, 26), st.booleans(), st.data())
def test_the_answer_follows_the_first_place_of_what_is_given(
    size, given_letters, answer, letters, packed, data
):
    kind = data.draw(st.sampled_from(["prefix", "suffix"]))
    shortest = given_letters + answer - 1 + size[0]
    longest = shortest + size[1]
    length = longest + given_letters + answer + 4 + size[2]
    seed = data.draw(st.integers(0, 2**63 - 1))
    drawn = lookup(4, length, shortest, longest, given_letters, answer, seed, kind, letters, packed)
    for said, asked in rows(drawn):
        found = examples(said, asked)
        for text, answers, whole in found:
            if not whole:
                assert not answers
                continue
            parts = text[1:-1].split("|")
            if kind == "prefix":
                wanted, string, reply = parts
            else:
                string, wanted = parts[0], parts[1][:given_letters]
                reply = parts[1][given_letters:]
            assert shortest <= len(string) <= longest
            assert (len(wanted), len(reply)) == (given_letters, answer)
            begin = string.index(wanted) + given_letters
            assert reply == string[begin : begin + answer]
            first = len(text) - 1 - answer - 1
            assert answers == {first + i: letter for i, letter in enumerate(reply)}


def test_answers_are_even_and_strings_too():
    _, targets = copying(4000, 23, 4, 10, 0, letters=5)
    assert_even(targets[targets != UNSCORED], 4, 9)
    first = targets.gather(1, (targets != UNSCORED).long().argmax(1, keepdim=True))
    assert_even(first, 4, 9)
    long = (targets != UNSCORED).sum(1)
    assert_even(long, 4, 11)


@pytest.mark.parametrize("kind", ["prefix", "suffix"])
def test_what_is_asked_stands_anywhere(kind):
    tokens, targets = lookup(6000, 20, 8, 8, 2, 2, 0, kind, letters=26)
    text = tokens[:, 1:9] if kind == "suffix" else tokens[:, 4:12]
    wanted = tokens[:, 10:12] if kind == "suffix" else tokens[:, 1:3]
    place = (text.unfold(1, 2, 1) == wanted[:, None]).all(2).long().argmax(1)
    early = (place == 0).double().mean()
    assert abs(early - 1 / 5) < 0.03  # 26² pairs of letters: one comes twice now and then
    answers = targets[targets != UNSCORED].view(-1, 2)
    assert_even(answers[:, 0], 4, 30)


def test_padding_stands_behind_a_single_example():
    tokens, targets = copying(3, 40, 3, 3, 0)
    assert (tokens[:, 9:] == 0).all()
    assert (targets[:, 9:] == UNSCORED).all()
    assert torch.equal(tokens[:, 1:4], targets[:, 4:7])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"length": 12}, "length: expected a whole number >= 13, got 12"),
        ({"shortest": 6}, "longest: expected a whole number >= 6, got 5"),
        ({"shortest": 0}, "shortest: expected a whole number >= 1, got 0"),
        ({"letters": 0}, "letters: expected a whole number >= 1, got 0"),
        ({"seed": -1}, "seed: expected a whole number >= 0"),
    ],
)
def test_bad_settings_of_copying_are_refused(changed, message):
    usual = {"batch": 1, "length": 20, "shortest": 2, "longest": 5, "seed": 0}
    with pytest.raises(ValueError, match=message):
        copying(**usual | changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shortest": 4}, "shortest: expected a whole number >= 5, got 4"),
        ({"length": 18}, "length: expected a whole number >= 19, got 18"),
        ({"length": 17, "kind": "suffix"}, "length: expected a whole number >= 18, got 17"),
        ({"kind": "infix"}, "kind: expected one of prefix, suffix, got 'infix'"),
        ({"answer": 0}, "answer: expected a whole number >= 1, got 0"),
        ({"seed": -1}, "seed: expected a whole number >= 0"),
    ],
)
def test_bad_settings_of_lookup_are_refused(changed, message):
    usual = {
        "batch": 1,
        "length": 40,
        "shortest": 6,
        "longest": 10,
        "given": 2,
        "answer": 3,
        "seed": 0,
        "kind": "prefix",
    }
    with pytest.raises(ValueError, match=message):
        lookup(**usual | changed)
