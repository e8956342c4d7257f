"""Associative and joint recall: answers looked up again in the tokens, refusals."""

import pytest
from guessing import assert_even, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmlib.recall import associative_recall, joint_recall
from ssmlib.recall.drawing import check_apart
from ssmlib.recall.pairs import MARKER, SEPARATOR, START, VALUES, joint_recall_vocab
from ssmlib.train.task import UNSCORED


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), st.integers(0, 6), st.integers(0, 6), st.booleans(), st.integers(0, 99))
def test_the_answer_is_what_stood_behind_the_key(pairs, more_keys, more_values, repeated, seed):
    keys = range(1, 1 + pairs + more_keys)
    values = range(keys.stop + 2, keys.stop + 2 + pairs + more_values)
    drawn = associative_recall(4, pairs, keys, values, seed, repeated)
    for said, asked in rows(drawn):
        assert len(said) == 2 * pairs + 2
        book = {}
        for key, value in zip(said[: 2 * pairs : 2], said[1 : 2 * pairs : 2], strict=True):
            assert key in keys
            assert value in values
            assert book.setdefault(key, value) == value
        assert repeated or len(book) == len(set(book.values())) == pairs
        assert said[-2] == MARKER
        assert asked == {2 * pairs + 1: book[said[-1]]}


@pytest.mark.parametrize("repeated", [False, True])
def test_joined_pairs_say_the_same(repeated):
    keys, values = range(1, 6), range(6, 13)
    apart = rows(associative_recall(50, 4, keys, values, 3, repeated))
    joined = rows(associative_recall(50, 4, keys, values, 3, repeated, joined=True))
    for (said, asked), (short, answered) in zip(apart, joined, strict=True):
        pairs = [divmod(token - 13, 7) for token in short[:4]]
        assert [part for k, v in pairs for part in (1 + k, 6 + v)] == said[:8]
        assert short[4:] == said[8:]
        assert answered == {5: asked[9]}


def test_each_key_shown_is_asked_equally_often_however_often_it_stands():
    tokens, targets = associative_recall(20000, 3, range(1, 3), range(3, 5), 0, repeated=True)
    first, second = tokens[:, 0], tokens[:, 2]
    mixed = (first == second) & (tokens[:, 4] != first)  # one key twice, the other once
    assert_even((tokens[mixed, -1] == first[mixed]).long(), 0, 2)
    assert_even(targets[:, -1], 3, 5)


@st.composite
def tables(draw):
    def span():
        least = draw(st.integers(1, 4))
        return draw(st.sampled_from([least, (least, least + draw(st.integers(0, 3)))]))

    return {"contexts": span(), "keys": span(), "values": draw(st.integers(1, 6))}


@settings(max_examples=50, deadline=None)
@given(tables(), st.integers(0, 2**63 - 1))
def test_every_cell_of_the_table_is_said_once_and_asked_once(table, seed):
    (c_low, c), (k_low, k) = (
        span if isinstance(span, tuple) else (span, span)
        for span in (table["contexts"], table["keys"])
    )
    first_key = VALUES + table["values"]
    first_context = first_key + k
    for said, asked in rows(joint_recall(5, seed=seed, **table)):
        assert len(said) == 2 + 2 * c * (2 * k + 1)
        assert max(said) < joint_recall_vocab(**table)
        end = said.index(SEPARATOR)
        spoken = [token for token in said if token != 0]
        assert said[: len(spoken)] == spoken
        assert said[0] == START
        book, again, context = {}, {}, None
        for i in range(1, len(spoken)):
            if said[i] >= first_context:
                context = said[i]
            elif said[i] >= first_key:
                half = book if i < end else again
                assert (context, said[i]) not in half
                half[context, said[i]] = said[i + 1]
                assert asked.get(i) == (None if i < end else book[context, said[i]])
        assert book == again
        contexts, keys = {cell[0] for cell in book}, {cell[1] for cell in book}
        assert len(book) == len(contexts) * len(keys) == len(asked)
        assert c_low <= len(contexts) <= c
        assert k_low <= len(keys) <= k
        assert contexts == set(range(first_context, first_context + len(contexts)))
        assert keys == set(range(first_key, first_key + len(keys)))


def test_the_answer_follows_from_the_context_and_from_nothing_less():
    """Even over the values, also given the key, its place, and what the key has elsewhere."""
    tokens, targets = joint_recall(8000, 2, 2, 3, seed=0)
    assert_even(targets[targets != UNSCORED], 3, 6)
    asked = (targets != UNSCORED).nonzero().view(8000, 4, 2)[:, 0, 1]
    assert (asked == asked[0]).all()
    place = int(asked[0])
    answer, key = targets[:, place], tokens[:, place]
    said_first = (tokens[:, 1:10] == key[:, None]).long().argmax(1, keepdim=True) + 1
    elsewhere = tokens.gather(1, said_first + 1)[:, 0]
    same_context = tokens[:, 1] == tokens[:, 12]
    for value in range(3, 6):
        assert_even(answer[~same_context & (elsewhere == value)], 3, 6)


def test_orders_are_drawn_anew():
    tokens, _ = joint_recall(9000, 3, 2, 2, seed=0)
    first, second = tokens[:, 1] - 7, tokens[:, 17] - 7  # the first context of either half
    assert_even(3 * first + second, 0, 9)


def test_sizes_are_drawn_evenly():
    tokens, targets = joint_recall(6000, (2, 4), (1, 3), 2, seed=0)
    contexts = (tokens >= VALUES + 2 + 3).sum(1) // 2
    keys = (targets != UNSCORED).sum(1) // contexts
    assert_even(3 * (contexts - 2) + keys - 1, 0, 9)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pairs": 6}, "pairs: expected a finite number <= 5, got 6"),
        ({"values": range(9, 12)}, "pairs: expected a finite number <= 3, got 4"),
        ({"values": range(5, 12)}, r"values: expected tokens apart from keys=range\(1, 6\), got"),
        ({"keys": range(5)}, r"keys: expected tokens apart from marker=range\(0, 1\), got"),
        ({"keys": range(1, 9, 2)}, r"keys: expected a range of tokens >= 0 with step 1, got"),
        ({"keys": range(0)}, r"keys: expected a range of tokens >= 0 with step 1, got"),
        ({"pairs": 0}, "pairs: expected a whole number >= 1, got 0"),
        ({"seed": -1}, "seed: expected a whole number >= 0"),
    ],
)
def test_bad_settings_of_associative_recall_are_refused(changed, message):
    usual = {"batch": 1, "pairs": 4, "keys": range(1, 6), "values": range(6, 13), "seed": 0}
    with pytest.raises(ValueError, match=message):
        associative_recall(**usual | changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"contexts": 0}, "contexts: expected a whole number >= 1, got 0"),
        ({"keys": (3, 2)}, "most of keys: expected a whole number >= 3, got 2"),
        ({"values": 0}, "values: expected a whole number >= 1, got 0"),
        ({"seed": -5}, "seed: expected a whole number >= 0"),
    ],
)
def test_bad_settings_of_joint_recall_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        joint_recall(**{"batch": 1, "contexts": 2, "keys": 2, "values": 2, "seed": 0} | changed)


def test_vocabularies_may_touch():
    check_apart(one=range(3), two=range(3, 5), three=range(7, 9))
