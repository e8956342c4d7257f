"""The mixed stream: a text to be guessed, pairs to be recalled, strings to be said again.

Every batch is of one kind, which its seed decides, so that the kinds weigh alike whatever they ask
for; all have one shape and one vocabulary, and a model must tell them apart by what stands there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ssmlib.recall import copying, mqar
from ssmlib.shapes import check_number
from ssmlib.train.task import UNSCORED

Batch = tuple[Tensor, Tensor]
SHARPNESS = 2.0  # of the text's distributions: the standard deviation of their logits


@dataclass(frozen=True)
class Stream:
    """The stream of sequences of `length` tokens out of `vocab`.

    letters: of the text, whose next letter is drawn by the two before it. pairs: the most that are
    asked for; while training there may be fewer, down to a quarter. kinds: of KINDS, which take
    turns. longest: of the strings to be copied, None for as long as fits.
    Raises ValueError for a vocabulary below the letters or below 30, the largest letter of a copy,
    and for sizes that the tasks refuse.
    """

    length: int
    vocab: int
    pairs: int
    letters: int = 16
    kinds: tuple[str, ...] = ("text", "recall", "copy")
    longest: int | None = None

    def __post_init__(self) -> None:
        least = max(self.letters, 30 if "copy" in self.kinds else 4)
        check_number(low=least, whole=True, vocab=self.vocab)
        for kind in self.kinds:
            if kind not in KINDS:
                raise ValueError(f"kinds: expected some of {', '.join(KINDS)}, got {kind!r}")

    def draw(self, batch: int, seed: int, device: str = "cpu") -> Batch:
        """A batch to train on: tokens (b t), and targets (b t), -100 where nothing is asked."""
        kind = self.kinds[seed % len(self.kinds)]
        fewer = seed // len(self.kinds) % 3 if kind == "recall" else 0
        return self._draw(kind, batch, self.pairs >> fewer, seed, device)

    def ask(self, kind: str, batch: int, seed: int, device: str = "cpu") -> Batch:
        """A batch of one kind to test with, at its hardest."""
        return self._draw(kind, batch, self.pairs, seed, device)

    def _draw(self, kind: str, batch: int, pairs: int, seed: int, device: str) -> Batch:
        return KINDS[kind](self, batch, max(pairs, 1), seed, device)


def _text(stream: Stream, batch: int, pairs: int, seed: int, device: str) -> Batch:
    tokens = markov(batch, stream.length + 1, stream.letters, seed, device)
    targets = tokens[:, 1:].clone()
    targets[:, 0] = UNSCORED  # one letter does not tell the next
    return tokens[:, :-1], targets


def _recall(stream: Stream, batch: int, pairs: int, seed: int, device: str) -> Batch:
    sizes = batch, stream.length, pairs, stream.vocab
    return mqar(*sizes, seed, filler="zero", power=1.0, device=device)


def _copy(stream: Stream, batch: int, pairs: int, seed: int, device: str) -> Batch:
    longest = (stream.length - 3) // 2 if stream.longest is None else stream.longest
    shortest = max(longest // 2, 1)
    return copying(batch, stream.length, shortest, longest, seed, packed=True, device=device)


KINDS: dict[str, Callable[[Stream, int, int, int, str], Batch]] = {
    "text": _text,
    "recall": _recall,
    "copy": _copy,
}


def markov(batch: int, length: int, letters: int, seed: int, device: str = "cpu") -> Tensor:
    """(b t) letters, each drawn by the two before it, always from the same distributions."""
    check_number(low=2, whole=True, letters=letters)
    generator = torch.Generator(device).manual_seed(seed)
    chance = torch.rand(length, batch, 1, generator=generator, device=device)
    first = (chance[:2, :, 0] * letters).long()
    below = _cumulated(letters, device)
    said = [first[0], first[1]][:length]
    for u in chance[2:]:
        said.append((below[said[-2], said[-1]] < u).sum(-1).clamp_max(letters - 1))
    return torch.stack(said, dim=1)


def markov_loss(letters: int) -> float:
    """The least mean loss that a reader of `markov` can have, in nats: its entropy per letter."""
    p = _table(letters)
    pairs = torch.full((letters, letters), letters**-2.0, dtype=torch.float64)
    for _ in range(200):  # how often each pair of letters is met
        pairs = torch.einsum("ab,abc->bc", pairs, p)
    return -(pairs[..., None] * p * p.log()).sum().item()


@cache
def _cumulated(letters: int, device: str) -> Tensor:
    return _table(letters).cumsum(-1).float().to(device)


@cache
def _table(letters: int) -> Tensor:
    """(a a a) float64: what follows each pair of letters, and how often."""
    generator = torch.Generator().manual_seed(letters)
    logits = torch.randn(letters, letters, letters, generator=generator, dtype=torch.float64)
    return (SHARPNESS * logits).softmax(-1)
