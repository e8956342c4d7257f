"""Trees of a grammar: parsed again by brute force, and what is asked about them."""

import pytest
import torch
from guessing import rows

from ssmlib.recall import Grammar, treecall
from ssmlib.recall.treecall import DIVIDER, TERMINALS, _choose, _grow, treecall_chance
from ssmlib.train.task import UNSCORED

SMALL = Grammar.random(1, terminals=6, nonterminals=4, rules=2, symbols=4, depth=3)


def plain(*rules: list[list[int]], heads: list[int], terminals: int) -> Grammar:
    """A grammar in which nonterminal i has these rules, all alike, and one head, heads[i]."""
    widest, most = max(len(rule) for some in rules for rule in some), max(map(len, rules))
    written = torch.full((len(rules), most, widest), -1)
    odds, head_odds = torch.zeros(len(rules), most), torch.zeros(len(rules), terminals)
    for i, some in enumerate(rules):
        head_odds[i, heads[i]] = 1
        for j, rule in enumerate(some):
            written[i, j, : len(rule)] = torch.tensor(rule)
            odds[i, j] = 1 / len(some)
    return Grammar(written, odds, head_odds, torch.zeros(terminals, terminals, dtype=torch.bool))


# A -> b C with head a, C -> d e with head c; and D -> D D d, which never ends
TREE = plain([[1, -3]], [[3, 4]], heads=[0, 2], terminals=5)
ENDLESS = plain([[-2, -2, 1]], heads=[0], terminals=2)


def test_a_tree_is_written_as_the_docstring_says():
    symbol, parent = _grow(64, 9, TREE, torch.Generator().manual_seed(0))
    wanted = {
        (1, 3, 4, 2, 0): (4, 3, 3, 4, -1),  # b d e c a: of A
        (3, 4, 2): (2, 2, -1),  # d e c: of C
    }
    seen = set()
    for row, above in zip(symbol.tolist(), parent.tolist(), strict=True):
        tree = tuple(token for token in row if token >= 0)
        assert row == [*tree] + [-1] * (9 - len(tree))
        assert tuple(above[: len(tree)]) == wanted[tree]
        assert above[len(tree) :] == [-1] * (9 - len(tree))
        seen.add(tree)
    assert seen == set(wanted)


def can_write(grammar: Grammar, symbols: list[int], parents: list[int]) -> bool:
    """Is there a nonterminal whose rules write this tree? Its root is the last symbol."""
    children = {
        i: [j for j, above in enumerate(parents) if above == i] for i in range(len(parents))
    }

    def fits(what: int, root: int) -> bool:
        if what >= 0:
            return not children[root] and symbols[root] == what
        rules = grammar.rules[-2 - what].tolist()
        usable = [[s for s in rule if s != -1] for rule in rules]
        if grammar.head_odds[-2 - what, symbols[root]] == 0:
            return False
        return any(
            rule and len(rule) == len(children[root]) and all(map(fits, rule, children[root]))
            for rule in usable
        )

    return any(fits(-2 - i, len(symbols) - 1) for i in range(len(grammar.rules)))


def test_every_tree_is_one_of_the_grammar():
    symbol, parent = _grow(200, 14, SMALL, torch.Generator().manual_seed(3))
    sizes = (symbol >= 0).sum(1).tolist()
    assert sum(size > 0 for size in sizes) > 100
    for row, above, size in zip(symbol.tolist(), parent.tolist(), sizes, strict=True):
        if size:
            assert all(place > i for i, place in enumerate(above[: size - 1]))
            assert above[size - 1] == -1
            assert can_write(SMALL, row[:size], above[:size])


def test_trees_that_do_not_fit_are_left_out_whole():
    big, _ = _grow(400, 40, SMALL, torch.Generator().manual_seed(0))
    small, _ = _grow(400, 5, SMALL, torch.Generator().manual_seed(0))
    fits = ((big >= 0).sum(1) <= 5) & (big[:, 0] >= 0)
    assert 50 < fits.sum() < 350
    assert torch.equal(small[fits], big[fits, :5])
    assert (small[~fits] == -1).all()


def test_the_answer_is_the_parent_of_the_last_of_its_kind():
    """TREE has one of a kind: every question has one answer, and all are asked."""
    answers = {1: 0, 2: 0, 3: 2, 4: 2}  # child: parent, as terminals
    asked_about = set()
    for said, asked in rows(treecall(200, 9, 0, TREE)):
        end = said.index(DIVIDER)
        query = said[end + 1]
        assert query in said[:end]
        assert asked == {end + 1: answers[query - TERMINALS] + TERMINALS}
        assert said[end + 2 :] == [0] * (len(said) - end - 2)
        asked_about.add(query - TERMINALS)
    assert asked_about == set(answers)


def test_targets_are_drawn_before_their_children():
    """Of A's tree, half the questions are about a, whose children are b and c; half about c."""
    tokens, targets = treecall(6000, 9, 0, TREE)
    whole = tokens[:, 5] == DIVIDER
    answers = targets[whole][:, 6] - TERMINALS
    assert abs((answers == 0).double().mean() - 0.5) < 0.05


def test_repeated_symbols_ask_for_the_last():
    grammar = plain([[1, -3, 1]], [[1]], heads=[0, 2], terminals=3)  # 1 1 2 1 0
    for said, asked in rows(treecall(50, 9, 0, grammar)):
        if said[5] == DIVIDER:
            assert asked[6] == 0 + TERMINALS  # of the last 1, and of 2; the first's is also 0
            assert said[6] - TERMINALS in (1, 2)


def test_held_out_pairs_are_asked_in_testing_alone():
    grammar = Grammar.random(0, held_out=0.3)
    for testing in (False, True):
        tokens, targets = treecall(300, 40, 1, grammar, testing=testing)
        place = (targets != UNSCORED).long().argmax(1, keepdim=True)
        parent, child = targets.gather(1, place), tokens.gather(1, place)
        assert (grammar.held_out[parent - TERMINALS, child - TERMINALS] == testing).all()


def test_a_draw_follows_its_odds():
    odds = torch.tensor([[0.0, 0.5, 0.25, 0.25, 0.0]]).expand(40000, -1)
    drawn = _choose(odds, torch.Generator().manual_seed(0)).bincount(minlength=5) / 40000
    assert (drawn - odds[0]).abs().max() < 0.015


def test_a_grammar_is_what_its_arguments_say():
    grammar = Grammar.random(7, terminals=9, nonterminals=30, rules=3, symbols=5, depth=4)
    assert grammar.rules.shape == (30, 3, 4)
    assert (grammar.rules < 9).all()
    assert (grammar.rules >= -2 - 29).all()
    assert torch.allclose(grammar.rule_odds.sum(1), torch.ones(30))
    assert torch.allclose(grammar.head_odds.sum(1), torch.ones(30))
    assert ((grammar.rules[:, :, 0] != -1) == (grammar.rule_odds > 0)).all()
    assert not grammar.held_out.any()
    same = Grammar.random(7, terminals=9, nonterminals=30, rules=3, symbols=5, depth=4)
    assert torch.equal(same.rules, grammar.rules)
    other = Grammar.random(8, terminals=9, nonterminals=30, rules=3, symbols=5, depth=4)
    assert not torch.equal(other.rules, grammar.rules)


def test_chance_is_what_the_commonest_answer_scores():
    assert treecall_chance(9, plain([[1, 1]], heads=[0], terminals=2)) == 1.0
    assert abs(treecall_chance(9, TREE) - 3 / 4) < 0.02  # c's tree, or half of a's


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: treecall(1, 4, 0, TREE), "length: expected a whole number >= 5, got 4"),
        (lambda: treecall(1, 9, -1, TREE), "seed: expected a whole number >= 0"),
        (lambda: treecall(1, 9, 0, TREE, testing=True), "testing: expected a grammar with pairs"),
        (lambda: treecall(1, 9, 0, ENDLESS), "grammar: expected one that writes trees of 3 to 7"),
        (lambda: Grammar.random(0, symbols=1), "symbols: expected a whole number >= 2, got 1"),
        (lambda: Grammar.random(0, held_out=2), "held_out: expected a finite number >= 0 <= 1"),
        (lambda: Grammar.random(-1), "seed: expected a whole number >= 0"),
    ],
)
def test_bad_settings_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
