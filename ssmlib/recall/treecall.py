"""Associative treecall: say the parent of a symbol in a tree that a grammar drew.

A grammar of nonterminals, each with its rules and with a distribution of heads. A nonterminal is
written as what its rule says, from left to right, and its own head behind, the parent of the
terminals and the heads in it:

    A -> b C  with head a,  C -> d e  with head c         b d e c a
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ssmlib.recall.drawing import PADDING, Batch, Device, any_of, source
from ssmlib.shapes import check_number
from ssmlib.train.task import UNSCORED

DIVIDER, TERMINALS = 1, 2  # 0 is padding; terminals begin at 2
ROUNDS = 200


@dataclass(frozen=True)
class Grammar:
    """What draws trees: `Grammar.random` says how it is drawn itself.

    rules: (nonterminals, rules, symbols), a symbol >= 0 for a terminal, -2 - i for nonterminal i,
    -1 for none. rule_odds: (nonterminals, rules), a probability each, head_odds: (nonterminals,
    terminals). held_out: (terminals, terminals), true where [parent, child] is kept for testing.
    """

    rules: Tensor
    rule_odds: Tensor
    head_odds: Tensor
    held_out: Tensor

    @property
    def terminals(self) -> int:
        return self.head_odds.shape[1]

    @property
    def vocab_size(self) -> int:
        """Of the sequences: the terminals, padding and the divider."""
        return TERMINALS + self.terminals

    @staticmethod
    def random(
        seed: int,
        terminals: int = 20,
        nonterminals: int = 40,
        rules: int = 5,
        symbols: int = 5,
        depth: int = 10,
        held_out: float = 0.0,
    ) -> "Grammar":
        """Draw a grammar on the CPU, as Arora et al. 2025 do.

        Each nonterminal has a level from 1 to `depth` and up to `rules` rules of up to symbols - 1
        symbols, each evenly a terminal or a nonterminal of a higher level. The odds of rules and
        of heads are drawn from all distributions alike. held_out: the share of parent and child
        pairs that are asked in testing alone.
        Raises ValueError for sizes below 1, symbols below 2, or a share that is none.
        """
        check_number(low=1, whole=True, terminals=terminals, nonterminals=nonterminals)
        check_number(low=1, whole=True, rules=rules, depth=depth)
        check_number(low=2, whole=True, symbols=symbols)
        check_number(low=0, high=1, held_out=held_out)
        generator = source(seed, "cpu")

        def some(low: int, high: int) -> int:
            return int(torch.randint(low, high, (), generator=generator))

        level = [some(1, depth + 1) for _ in range(nonterminals)]
        written = torch.full((nonterminals, rules, symbols - 1), -1)
        is_rule = torch.zeros(nonterminals, rules, dtype=torch.bool)
        for i in range(nonterminals):
            deeper = [-2 - j for j in range(nonterminals) if level[j] > level[i]]
            usable = list(range(terminals)) + deeper
            for j in range(some(1, rules + 1)):
                is_rule[i, j] = True
                for k in range(some(1, symbols)):
                    written[i, j, k] = usable[some(0, len(usable))]
        chance = torch.rand(terminals, terminals, generator=generator)
        return Grammar(
            written,
            _any_distribution(is_rule, generator),
            _any_distribution(torch.ones(nonterminals, terminals, dtype=torch.bool), generator),
            chance < held_out,
        )

    def to(self, device: Device) -> "Grammar":
        """The same on another device."""
        tensors = (self.rules, self.rule_odds, self.head_odds, self.held_out)
        return Grammar(*(tensor.to(device) for tensor in tensors))


def treecall(
    batch: int,
    length: int,
    seed: int,
    grammar: Grammar,
    testing: bool = False,
    device: Device = "cpu",
) -> Batch:
    """A tree of at most t - 2 symbols, a divider, 1, and one of its symbols: the target is its
    parent, under that symbol. The rest is padding, 0.

    Terminals are numbered from 2. What is asked: a parent, each one that can be asked equally
    likely, by one of its children, which is the last token of its kind in the sequence. testing:
    ask the grammar's held-out pairs alone, otherwise all but these. Trees of less than 3 symbols
    or more than t - 2, and those with nothing to ask, are drawn again, as in Arora et al. 2025.
    Raises ValueError for a length below 5, testing without held-out pairs, or a grammar that hardly
    ever writes such a tree.
    """
    check_number(low=1, whole=True, batch=batch)
    check_number(low=5, whole=True, length=length)
    if testing and not grammar.held_out.any():
        raise ValueError("testing: expected a grammar with pairs held out, got one with none")
    generator, grammar = source(seed, device), grammar.to(device)
    kept: list[Tensor] = []
    found = 0
    for _ in range(ROUNDS):
        symbol, parent = _grow(max(batch, 256), length - 2, grammar, generator)
        may_ask = _may_ask(symbol, parent, grammar, testing)
        fits = ((symbol >= 0).sum(1) >= 3) & may_ask.any(1)
        symbol, parent, may_ask = symbol[fits], parent[fits], may_ask[fits]
        if len(symbol):
            kept.append(_ask(symbol, parent, may_ask, length, generator))
            found += len(symbol)
        if found >= batch:
            tokens, targets = torch.cat(kept)[:batch].unbind(1)
            return tokens.contiguous(), targets.contiguous()
    raise ValueError(
        f"grammar: expected one that writes trees of 3 to {length - 2} symbols, got {found} such"
        f" trees in {ROUNDS * max(batch, 256)}"
    )


def treecall_chance(length: int, grammar: Grammar, testing: bool = False) -> float:
    """How often the commonest answer is right: counted, over 8,192 trees with seeds of their own.

    It is chosen by one half of them and scored by the other; the standard error is below 0.004.
    """
    halves = [treecall(4096, length, seed, grammar, testing)[1] for seed in (0, 1)]
    choose, score = (half[half != UNSCORED] for half in halves)
    return (score == choose.bincount().argmax()).double().mean().item()


def _any_distribution(possible: Tensor, generator: torch.Generator) -> Tensor:
    """A row of odds for each row of `possible`, zero where not, all such rows equally likely."""
    times = -torch.log1p(-torch.rand(possible.shape, generator=generator).double())
    times = times.masked_fill(~possible, 0.0)
    return (times / times.sum(1, keepdim=True)).float()


def _choose(odds: Tensor, generator: torch.Generator) -> Tensor:
    """(n,) a column for each row of odds (n m), in proportion to it."""
    up_to = odds.cumsum(1)
    drawn = torch.rand(len(odds), 1, generator=generator, device=odds.device) * up_to[:, -1:]
    return torch.searchsorted(up_to, drawn, right=True)[:, 0].clamp_max(odds.shape[1] - 1)


def _grow(n: int, size: int, g: Grammar, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """n trees: symbols (n size), -1 behind their ends, and the places of their parents, -1 for
    none. A tree that does not fit has no symbol at all.

    Every row keeps a stack of what it has still to write, and whose child that is. A parent is
    written after its children, so they note its number, and its place is filled in at the end.
    """
    symbols, device = g.rules.shape[2] + 1, generator.device  # with the head
    room, row = size + symbols + 2, torch.arange(n, device=device)
    stack = torch.zeros(n, room, dtype=torch.long, device=device)
    above = torch.full_like(stack, -1)  # the number of the parent of what stands in the stack
    own = torch.full_like(stack, -1)  # its own number, for heads
    symbol = torch.full((n, size + 1), -1, device=device)
    parent, number = torch.full_like(symbol, -1), torch.full_like(symbol, -1)
    stack[:, 0] = -2 - torch.randint(len(g.rules), (n,), generator=generator, device=device)
    high = torch.ones_like(row)  # of the stack
    written, count = torch.zeros_like(row), torch.zeros_like(row)
    for step in range(2 * size + 1):
        if step % 32 == 0 and not (high > 0).any():
            break
        is_alive = high > 0
        top = (high - 1).clamp_min(0)
        what, whose, mine = stack[row, top], above[row, top], own[row, top]
        writes, expands = is_alive & (what >= 0), is_alive & (what < -1)
        at = torch.where(writes, written, size)
        symbol[row, at], parent[row, at], number[row, at] = what, whose, mine
        written = written + writes.long()
        new = _expand((-2 - what).clamp_min(0), g, generator)
        new_above = torch.cat([whose[:, None], count[:, None].expand(-1, symbols - 1)], dim=1)
        new_own = torch.full_like(new, -1)
        new_own[:, 0] = count
        keep = new != -1
        place = top[:, None] + keep.cumsum(1) - 1
        place = torch.where(keep & expands[:, None], place, room - 1)
        stack.scatter_(1, place, new)
        above.scatter_(1, place, new_above)
        own.scatter_(1, place, new_own)
        count = count + expands.long()
        high = high - is_alive.long() + torch.where(expands, keep.sum(1), 0)
        lost = written + high > size
        high = torch.where(lost, 0, high)
        written = torch.where(lost, size + 1, written)
    return _resolve(symbol[:, :size], parent[:, :size], number[:, :size], written, high)


def _expand(which: Tensor, g: Grammar, generator: torch.Generator) -> Tensor:
    """What nonterminals (n,) come to, last symbol first: the head, and the symbols of a rule."""
    head = _choose(g.head_odds[which], generator)
    rule = g.rules[which, _choose(g.rule_odds[which], generator)]
    return torch.cat([rule, head[:, None]], dim=1).flip(1)


def _resolve(
    symbol: Tensor, parent: Tensor, number: Tensor, written: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """Turn numbers of parents into places, and empty the rows that did not come to an end."""
    n, size = symbol.shape
    complete = ((written <= size) & (high == 0))[:, None]
    places = torch.arange(size, device=symbol.device).expand(n, -1)
    where = torch.full((n, size + 2), -1, device=symbol.device)
    where.scatter_(1, torch.where(number >= 0, number, size + 1).clamp_max(size + 1), places)
    found = where.gather(1, parent.clamp(0, size))
    has = complete & (parent >= 0)
    return symbol.masked_fill(~complete, -1), found.masked_fill(~has, -1)


def _may_ask(symbol: Tensor, parent: Tensor, g: Grammar, testing: bool) -> Tensor:
    """(b t) which symbols may be asked: they have a parent, none alike comes later, right split."""
    places = torch.arange(symbol.shape[1], device=symbol.device).expand_as(symbol)
    last = torch.full((len(symbol), g.terminals + 1), -1, device=symbol.device)
    last.scatter_reduce_(1, symbol + 1, places, "amax")  # column 0 is for the unwritten
    is_last = last.gather(1, symbol + 1) == places
    head = symbol.gather(1, parent.clamp_min(0))
    is_held = g.held_out[head.clamp_min(0), symbol.clamp_min(0)]
    return (parent >= 0) & is_last & (is_held == testing)


def _ask(
    symbol: Tensor, parent: Tensor, may_ask: Tensor, length: int, generator: torch.Generator
) -> Tensor:
    """(b 2 t): tokens and targets."""
    n, size = symbol.shape
    is_target = torch.zeros(n, size + 1, dtype=torch.bool, device=symbol.device)
    is_target.scatter_(1, torch.where(may_ask, parent, size), True)
    target = any_of(is_target[:, :size], generator)[:, None]
    query = any_of(may_ask & (parent == target), generator)[:, None]
    tokens = torch.full((n, length), PADDING, device=symbol.device)
    tokens[:, :size] = torch.where(symbol >= 0, symbol + TERMINALS, PADDING)
    end = (symbol >= 0).sum(1, keepdim=True)
    tokens.scatter_(1, end, DIVIDER)
    tokens.scatter_(1, end + 1, symbol.gather(1, query) + TERMINALS)
    targets = torch.full_like(tokens, UNSCORED)
    targets.scatter_(1, end + 1, symbol.gather(1, target) + TERMINALS)
    return torch.stack([tokens, targets], dim=1)
