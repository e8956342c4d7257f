"""Bounds by enumeration, closed forms by simulation, lookup by the tasks themselves."""

import itertools
import math

import pytest
import torch

from ssmlib.mixers.attention import AttentionConfig
from ssmlib.mixers.hax import hash_codes
from ssmlib.recall import associative_recall, induction, mqar
from ssmlib.recall.theory import (
    attention_map,
    best_accuracy,
    bucket_size,
    copying_accuracy,
    exact_lookup,
    facts_bits,
    fetch,
    found_by_hash,
    induction_score,
    interference,
    least_squares_error,
    outer_product_accuracy,
    table_bits,
)
from ssmlib.train.task import UNSCORED


def directions(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(x, dim=-1)


def test_bits_count_what_can_be_told_apart():
    assert facts_bits(3, 4) == 6
    tables = [
        dict(zip(some, answers, strict=True))
        for some in itertools.combinations(range(5), 2)
        for answers in itertools.product(range(3), repeat=2)
    ]
    assert 2 ** table_bits(2, 5, 3) == pytest.approx(len(tables))
    assert table_bits(64, 4095, 4096) > facts_bits(64, 4096)


def test_no_memory_of_a_few_states_beats_the_bound_and_some_come_near():
    """Every way to keep 3 facts of 2 values in a few states: the best of all maps, by search."""
    inputs = list(itertools.product(range(2), repeat=3))
    for states in (1, 2, 4, 8):
        best = 0.0
        for answers in itertools.combinations(inputs, states):  # what each state would say
            right = [max(sum(map(int.__eq__, x, y)) for y in answers) for x in inputs]
            best = max(best, sum(right) / 3 / len(inputs))
        bound = best_accuracy(math.log2(states), 3, 2)
        assert best <= bound + 1e-9
        assert bound < best + 0.11


def test_the_bound_at_its_ends():
    assert best_accuracy(0, 5, 8) == pytest.approx(1 / 8)
    assert best_accuracy(15, 5, 8) == pytest.approx(1)
    assert best_accuracy(1e6, 5, 8) == pytest.approx(1)
    some = [best_accuracy(bits, 10, 16) for bits in range(0, 41, 5)]
    assert some == sorted(some)


def test_copying_needs_a_state_for_every_string():
    assert copying_accuracy(10, 5, 4) == 1
    assert copying_accuracy(8, 5, 4) == 1 / 4
    assert 0 <= copying_accuracy(8, 10**6, 26) < 1e-100


@pytest.mark.parametrize(("facts", "k", "age", "decay"), [(9, 4, 0, 1.0), (6, 16, 3, 0.8)])
def test_interference_is_what_a_sum_of_outer_products_has(facts, k, age, decay):
    keys, values = directions(40000, facts, k), directions(40000, facts, 5, seed=1)
    weight = decay ** torch.arange(facts, dtype=torch.float64)
    state = torch.einsum("bik,biv,i->bkv", keys, values, weight)
    read = torch.einsum("bk,bkv->bv", keys[:, age], state) / weight[age]
    error = (read - values[:, age]).square().sum(1).mean()
    assert error == pytest.approx(interference(facts, k, age, decay), rel=0.03)


@pytest.mark.parametrize(("facts", "k"), [(4, 8), (8, 8), (20, 8)])
def test_the_best_matrix_has_the_error_of_least_squares(facts, k):
    keys, values = directions(500, facts, k), directions(500, facts, 6, seed=1)
    state = torch.linalg.pinv(keys) @ values
    error = (keys @ state - values).square().sum(2).mean()
    assert abs(error - least_squares_error(facts, k)) < 0.02


@pytest.mark.parametrize(
    ("facts", "k", "v", "values", "low"),
    [
        (4, 16, 16, 64, 0.07),
        (16, 16, 16, 64, 0.07),
        (64, 32, 32, 64, 0.07),
        (9, 8, 64, 20, 0.03),
        (40, 8, 8, 50, 0.07),
        (64, 64, 64, 500, 0.03),
        (200, 64, 64, 500, 0.03),
    ],
)
def test_accuracy_of_a_sum_is_near_the_closed_form(facts, k, v, values, low):
    right = []
    for seed in range(20):
        codes = directions(values, v, seed=seed)
        keys = directions(10, facts, k, seed=100 + seed)
        state = torch.einsum("bik,iv->bkv", keys, codes[:facts])
        scores = torch.einsum("bik,bkv,cv->bic", keys, state, codes)
        right.append((scores.argmax(2) == torch.arange(facts)).double().mean())
    wanted = outer_product_accuracy(facts, k, v, values)
    assert -0.01 < torch.stack(right).mean() - wanted < low


def test_sums_saturate():
    some = [outer_product_accuracy(facts, 16, 16, 512) for facts in (1, 4, 16, 64, 256)]
    assert some == sorted(some, reverse=True)
    assert some[0] > 0.9
    assert some[-1] < 0.2


@pytest.mark.parametrize(("planes", "rounds", "k"), [(3, 1, 8), (6, 4, 16)])
def test_hashing_finds_as_often_as_the_closed_form_says(planes, rounds, k):
    n = 4000
    key, aside = directions(n, k), directions(n, k, seed=1)
    aside = torch.nn.functional.normalize(aside - (aside * key).sum(1, keepdim=True) * key, dim=-1)
    query = math.cos(0.5) * key + math.sin(0.5) * aside
    other = directions(n, k, seed=2)
    x = torch.stack([query, key, other])[:, None]  # 3 1 n k: as heads, each with its own planes
    codes = hash_codes(x, directions(n, rounds, planes, k, seed=3))[..., 0]  # 3 n rounds
    found = (codes[0] == codes[1]).any(1).double().mean()
    assert abs(found - found_by_hash(0.5, planes, rounds)) < 5 * 0.5 / n**0.5
    beside = (codes[0] == codes[2]).double().mean()
    assert abs(beside - bucket_size(1, planes, k)) < 5 * (2**-planes / n) ** 0.5
    assert bucket_size(1, planes, k) > 2**-planes


def test_hashing_finds_itself_and_never_the_opposite():
    assert found_by_hash(0, 10) == 1
    assert found_by_hash(math.pi, 10, 5) == 0
    assert bucket_size(4096, 10, 10**6) == pytest.approx(4, rel=0.2)


@pytest.mark.parametrize(
    "drawn",
    [
        mqar(20, 64, 12, 40, 0, filler="zero"),
        mqar(20, 64, 16, 40, 1, filler="zero"),
        induction(20, 100, 12, 0),
        associative_recall(20, 9, range(1, 20), range(20, 40), 0, repeated=True),
    ],
    ids=["mqar", "mqar full", "induction", "associative"],
)
def test_attention_with_weights_set_by_hand_answers_everything(drawn):
    tokens, targets = drawn
    asked = targets != UNSCORED
    logits = exact_lookup(tokens, 40)
    assert torch.equal(logits.argmax(-1)[asked], targets[asked])


def test_a_place_is_fetched():
    x = directions(3, 10, 4)
    for place in (0, 3, 9):
        assert torch.allclose(fetch(x, place), x[:, place])


@pytest.mark.parametrize(
    "changed", [{}, {"kv_heads": 1}, {"window": 4}, {"base": None}, {"scale": 0.3}]
)
def test_a_map_is_what_the_layer_weighs_with(changed):
    torch.manual_seed(0)
    layer = AttentionConfig(heads=2, **changed).build(8).double()
    x = directions(2, 7, 8)
    weights = attention_map(layer, x)
    assert weights.shape == (2, 2, 7, 7)
    assert torch.allclose(weights.sum(3), torch.ones(2, 2, 7, dtype=torch.float64))
    v = layer.v_proj(x).unflatten(2, (-1, 4)).transpose(1, 2).expand(-1, 2, -1, -1)
    y = layer.o_proj((weights @ v).transpose(1, 2).flatten(2))
    assert torch.allclose(layer(x)[0], y)


def test_scores_of_a_perfect_head_and_of_an_even_one():
    tokens = torch.tensor([[5, 1, 2, 5, 3, 1]])
    perfect = torch.zeros(1, 1, 6, 6)
    perfect[0, 0, 3, 1] = perfect[0, 0, 5, 2] = 1  # after the first 5, and after the first 1
    even = torch.ones(6, 6).tril() / torch.arange(1, 7)[:, None]
    both = torch.cat([perfect, even[None, None]], dim=1)
    assert induction_score(both, tokens).tolist() == pytest.approx([1, (1 / 4 + 1 / 6) / 2])
    with pytest.raises(ValueError, match="tokens: expected some token to come again, got none"):
        induction_score(both, torch.arange(6)[None])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: facts_bits(1, 0), "values: expected a whole number >= 1, got 0"),
        (lambda: table_bits(5, 4, 3), "facts: expected a whole number >= 0 <= 4, got 5"),
        (lambda: best_accuracy(-1, 2, 2), "bits: expected a finite number >= 0, got -1"),
        (lambda: copying_accuracy(1, 0, 3), "length: expected a whole number >= 1, got 0"),
        (lambda: interference(3, 4, age=3), "age: expected a whole number >= 0 <= 2, got 3"),
        (lambda: interference(3, 4, decay=0), "decay: expected a finite number >= 1e-09"),
        (lambda: outer_product_accuracy(5, 9, 9, 4), "values: expected a whole number >= 5, got 4"),
        (lambda: exact_lookup(torch.tensor([[7]]), 7), "vocab: expected a whole number >= 8"),
        (lambda: fetch(torch.rand(1, 2, 3), 2), "place: expected a whole number >= 0 <= 1, got 2"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
