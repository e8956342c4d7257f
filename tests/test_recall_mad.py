"""MAD's tasks: what came before is looked up again, tables are the same, refusals."""

import pytest
import torch
from guessing import assert_even, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmlib.recall import compression, memorization, motifs, repeats
from ssmlib.train.task import UNSCORED


@settings(max_examples=60, deadline=None)
@given(
    st.integers(3, 40),
    st.integers(2, 12),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(1, 5),
    st.integers(0, 2**63 - 1),
)
def test_a_key_that_came_before_is_asked(length, spoken, noise, noise_vocab, seed):
    drawn = repeats(4, length, spoken + noise_vocab, seed, noise, noise_vocab)
    for said, asked in rows(drawn):
        assert len(said) == length
        book, wanted = {}, {}
        for i in range(0, length, 2):
            key = said[i]
            if key >= spoken:
                assert all(spoken <= token < spoken + noise_vocab for token in said[i : i + 2])
                assert noise
                continue
            assert 0 <= key < spoken // 2
            if key in book:
                wanted[i] = book[key]
            if i + 1 < length:
                assert spoken // 2 <= said[i + 1] < spoken
                assert book.setdefault(key, said[i + 1]) == said[i + 1]
        assert asked == wanted
        assert max(asked) == (length - 1) // 2 * 2


def test_noise_comes_as_often_as_it_says_and_values_are_even():
    tokens, targets = repeats(4000, 41, 12, 0, noise=0.4, noise_vocab=4)
    share = (tokens[:, :40:2] >= 8).double().mean()
    assert abs(share - 0.4 * 19 / 20) < 0.01  # one pair of the twenty is never noise
    assert_even(targets[:, 40], 4, 8)  # one answer a row: within a row they repeat each other
    assert_even(tokens[:, ::2][tokens[:, ::2] >= 8], 8, 12)


def test_the_last_key_is_any_of_those_shown():
    tokens, _ = repeats(20000, 7, 4, 0)
    keys = tokens[:, 0:6:2]
    mixed = keys.sum(1) == 1  # key 1 once, key 0 twice
    assert_even(tokens[mixed, 6], 0, 2)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 2), st.integers(0, 2)),
    st.tuples(st.integers(1, 2), st.integers(0, 2)),
    st.integers(0, 30),
    st.integers(0, 8),
    st.integers(0, 2**63 - 1),
)
def test_a_motif_that_came_before_is_asked_token_by_token(key, value, more, extra, seed):
    key_size, value_size = (key[0], sum(key)), (value[0], sum(value))
    vocab = 1 + 2 * max(key_size[1], value_size[1]) + extra
    keys = (vocab - 1) // 2
    length = 2 * (key_size[1] + value_size[1]) + more
    drawn = motifs(4, length, vocab, seed, key_size, value_size)
    for said, asked in rows(drawn):
        assert len(said) == length
        text = [token for token in said if token]
        assert said == text + [0] * (length - len(text))
        pairs, i = [], 0
        while i < len(text):
            k = i
            while text[k] <= keys:
                k += 1
            v = k
            while v < len(text) and text[v] > keys:
                v += 1
            pairs.append((i, k, v))
            i = v
        book, wanted = {}, {}
        for start, middle, end in pairs:
            name, answer = tuple(text[start:middle]), tuple(text[middle:end])
            assert len(set(name)) == len(name)
            assert len(set(answer)) == len(answer)
            assert key_size[0] <= len(name) <= key_size[1]
            assert value_size[0] <= len(answer) <= value_size[1]
            if name in book:
                wanted |= {middle - 1 + j: token for j, token in enumerate(answer)}
            assert book.setdefault(name, answer) == answer
        assert asked == wanted
        assert max(asked) == len(text) - 2, "the last pair is a question"


def test_motifs_are_even():
    tokens, targets = motifs(6000, 24, 9, 0)
    first = targets.gather(1, (targets != UNSCORED).long().argmax(1, keepdim=True))
    assert_even(first, 5, 9)
    assert_even(tokens[:, 0], 1, 5)


def test_compression_asks_for_everything_but_the_mark():
    tokens, targets = compression(5000, 6, 5, 0)
    assert (tokens[:, -1] == 4).all()
    assert torch.equal(tokens[:, :-1], targets[:, :-1])
    assert (targets[:, -1] == UNSCORED).all()
    assert_even(tokens[:, 0], 0, 4)


@pytest.mark.parametrize(("length", "vocab"), [(2, 3), (7, 10), (32, 256)])
def test_the_table_is_the_same_for_every_seed(length, vocab):
    keys, book = (vocab - 1) // 2, {}
    for seed in range(5):
        for said, asked in rows(memorization(8, length, vocab, seed)):
            assert said[1::2] == [vocab - 1] * (length // 2)
            assert set(asked) == set(range(1, length, 2))
            for i, answer in asked.items():
                assert 0 <= said[i - 1] < keys <= answer < vocab - 1
                assert book.setdefault(said[i - 1], answer) == answer
    assert len(set(book.values())) == len(book)
    tokens, targets = memorization(8, length, vocab, 0, table=1)
    assert torch.equal(tokens, memorization(8, length, vocab, 0)[0])
    assert vocab < 10 or not torch.equal(targets, memorization(8, length, vocab, 0)[1])


def test_keys_are_drawn_evenly():
    tokens, _ = memorization(5000, 4, 11, 0)
    assert_even(tokens[:, ::2], 0, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: repeats(1, 2, 8, 0), "length: expected a whole number >= 3, got 2"),
        (lambda: repeats(1, 8, 5, 0, 0.1, 4), "vocab: expected a whole number >= 6, got 5"),
        (lambda: repeats(1, 8, 8, 0, 0.1), "noise: expected a finite number >= 0 <= 0, got 0.1"),
        (lambda: repeats(1, 8, 8, -1), "seed: expected a whole number >= 0"),
        (lambda: motifs(1, 11, 16, 0), "length: expected a whole number >= 12, got 11"),
        (lambda: motifs(1, 40, 6, 0), "vocab: expected a whole number >= 7, got 6"),
        (lambda: motifs(1, 40, 16, 0, (3, 2)), "least of key_size: expected .* <= 2, got 3"),
        (lambda: compression(1, 1, 8, 0), "length: expected a whole number >= 2, got 1"),
        (lambda: compression(1, 8, 8, -2), "seed: expected a whole number >= 0"),
        (lambda: memorization(1, 8, 2, 0), "vocab: expected a whole number >= 3, got 2"),
        (lambda: memorization(0, 8, 8, 0), "batch: expected a whole number >= 1, got 0"),
    ],
)
def test_bad_settings_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
