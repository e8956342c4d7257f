"""ListOps: [MAX 4 3 [MIN 2 8 ] 1 ] is 4. Lists of digits and lists, and what they come to.

Drawn by the grammar of Nangia and Bowman 2018 as the Long Range Arena sets it (Tay et al. 2021): an
argument is a list with probability 1/4 and a digit otherwise, a list has 2 to max_args arguments,
lists stand at most max_depth - 1 deep, and trees whose length is out of bounds are thrown away.
The Arena's lengths are 500 to 2,000 tokens; the bounds here are arguments.

All trees of a batch grow together, a token a step, each with a stack of its open lists.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmlib.shapes import check_number

WORDS = ("", *map(str, range(10)), "[MIN", "[MAX", "[MED", "[SM", "]")
PADDING, DIGIT, LIST, END = 0, 1, 11, 15  # the first token of each kind
VOCAB_SIZE = len(WORDS)
NESTED = 0.25  # probability that an argument is a list


def listops(
    batch: int,
    length: int,
    seed: int,
    shortest: int = 2,
    max_depth: int = 10,
    max_args: int = 10,
    device: str | torch.device = "cpu",
) -> tuple[Tensor, Tensor]:
    """Return tokens (b t), padded behind with PADDING to t = length, and what each comes to, (b,).

    shortest: tokens of the shortest tree kept. Raises ValueError for bounds that no tree meets.
    """
    check_number(low=1, whole=True, batch=batch)
    check_number(low=2, whole=True, max_depth=max_depth, max_args=max_args)
    check_number(low=4, whole=True, length=length)
    longest = _size(max_depth, max_args)
    check_number(low=2, high=min(length, longest), whole=True, shortest=shortest)
    generator = torch.Generator(device).manual_seed(seed)
    kept, values, found = [], [], 0
    for _ in range(1000):
        tokens, value = _grow(max(4 * batch, 1024), length, max_depth, max_args, generator)
        fits = (value >= 0) & ((tokens != PADDING).sum(1) >= shortest)
        kept.append(tokens[fits])
        values.append(value[fits])
        found += len(kept[-1])
        if found >= batch:
            return torch.cat(kept)[:batch], torch.cat(values)[:batch]
    raise ValueError(
        f"shortest, length: expected bounds that trees meet, got {found} of {batch} trees with"
        f" {shortest} to {length} tokens"
    )


def words(tokens: Tensor) -> str:
    """One sequence of tokens (t,) as text."""
    return " ".join(WORDS[i] for i in tokens.tolist() if i != PADDING)


def _size(max_depth: int, max_args: int) -> int:
    """Tokens of the largest tree."""
    size = 1
    for _ in range(max_depth - 1):
        size = 2 + max_args * size
    return size


def _grow(
    n: int, length: int, max_depth: int, max_args: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """n trees (n length) and their values (n,), -1 for those that are not closed by then."""
    device = generator.device

    def whole(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (n,), generator=generator, device=device)

    row, depth = torch.arange(n, device=device), torch.ones(n, dtype=torch.long, device=device)
    shape = (n, max_depth + 1)  # level 0 stands below the root: it collects the answer
    left = torch.zeros(shape, dtype=torch.long, device=device)  # arguments to come, per open list
    kind = torch.zeros_like(left)
    seen = torch.zeros(*shape, 10, dtype=torch.long, device=device)  # how often each digit came
    tokens = torch.zeros(n, length, dtype=torch.long, device=device)
    left[:, 1], kind[:, 1] = whole(2, max_args + 1), whole(0, 4)
    tokens[:, 0] = LIST + kind[:, 1]
    for i in range(1, length):
        closed = depth == 0
        ends = (left[row, depth] == 0) & ~closed
        nested = torch.rand(n, generator=generator, device=device) < NESTED
        opens = nested & (depth < max_depth - 1) & ~ends & ~closed
        digit, new_kind, new_left = whole(0, 10), whole(0, 4), whole(2, max_args + 1)
        value = torch.where(ends, _evaluate(kind[row, depth], seen[row, depth]), digit)
        spoken = torch.where(ends, END, torch.where(opens, LIST + new_kind, DIGIT + digit))
        tokens[:, i] = spoken.masked_fill(closed, PADDING)
        left[row, depth] -= (~ends & ~closed).long()
        depth = depth + opens.long() - ends.long()
        left[row, depth] = torch.where(opens, new_left, left[row, depth])
        kind[row, depth] = torch.where(opens, new_kind, kind[row, depth])
        seen[row, depth] = seen[row, depth].masked_fill(opens[:, None], 0)
        seen[row, depth, value] += (~opens & ~closed).long()
    answer = seen[:, 0].argmax(1)
    return tokens, torch.where(depth == 0, answer, -1)


def _evaluate(kind: Tensor, seen: Tensor) -> Tensor:
    """MIN, MAX, the median rounded down, or the sum modulo 10, of counted digits: (n,)."""
    total, up_to = seen.sum(1, keepdim=True), seen.cumsum(1)

    def ranked(k: Tensor) -> Tensor:  # the k-th smallest, from 1
        return (up_to < k).sum(1).clamp_max(9)

    low, high = ranked(torch.ones_like(total)), ranked(total)
    middle = (ranked((total + 1) // 2) + ranked(total // 2 + 1)) // 2
    both = torch.arange(10, device=seen.device)
    results = torch.stack([low, high, middle, (seen * both).sum(1) % 10], dim=1)
    return (results * F.one_hot(kind, 4)).sum(1)
