"""Every task with its chance level and the size of its vocabulary, and how answers are counted."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ssmlib.recall.copying import LETTERS, copying, lookup
from ssmlib.recall.drawing import Batch
from ssmlib.recall.mad import compression, memorization, motifs, repeats
from ssmlib.recall.mqar import mqar
from ssmlib.recall.needles import DIGITS, needle, needle_vocab
from ssmlib.recall.pairs import (
    associative_recall,
    associative_recall_vocab,
    joint_recall,
    joint_recall_vocab,
)
from ssmlib.recall.regression import regression
from ssmlib.recall.streams import induction, selective_copying
from ssmlib.recall.treecall import treecall, treecall_chance
from ssmlib.shapes import check
from ssmlib.train.task import UNSCORED


@dataclass(frozen=True)
class Kind:
    """A task; chance and vocab take its arguments without batch and seed.

    chance: the score of the best guess by one who reads no token, the score being that of
    `ssmlib.train`: the share of answers that are right, or for numbers the root mean squared error.
    vocab: how many tokens there are; None where inputs are numbers.
    """

    draw: Callable[..., Batch]
    chance: Callable[..., float]
    vocab: Callable[..., int] | None


def _letters(letters: int = 26, **_: object) -> int:
    return LETTERS + letters


def _alphabet(alphabet: str = DIGITS, words: int = 20, **_: object) -> int:
    return needle_vocab(words, alphabet)


def _blind_needle(alphabet: str = DIGITS, secret: str | None = None, **_: object) -> float:
    if secret is None:
        return 1 / len(alphabet)
    return max(secret.count(letter) for letter in secret) / len(secret)


TASKS: dict[str, Kind] = {
    "mqar": Kind(mqar, lambda vocab, **_: 1 / (vocab - vocab // 2), lambda vocab, **_: vocab),
    "associative_recall": Kind(
        associative_recall,
        lambda values, **_: 1 / len(values),
        lambda keys, values, joined=False, **_: associative_recall_vocab(keys, values, joined),
    ),
    "joint_recall": Kind(
        joint_recall,
        lambda values, **_: 1 / values,
        lambda contexts, keys, values: joint_recall_vocab(contexts, keys, values),
    ),
    "copying": Kind(copying, lambda letters=26, **_: 1 / letters, _letters),
    "lookup": Kind(lookup, lambda letters=26, **_: 1 / letters, _letters),
    "selective_copying": Kind(
        selective_copying, lambda vocab, **_: 1 / (vocab - 2), lambda vocab, **_: vocab
    ),
    "induction": Kind(induction, lambda vocab, **_: 1 / (vocab - 1), lambda vocab, **_: vocab),
    "needle": Kind(needle, _blind_needle, _alphabet),
    "treecall": Kind(treecall, treecall_chance, lambda grammar, **_: grammar.vocab_size),
    "regression": Kind(regression, lambda d, noise=0.0, **_: math.hypot(d**0.5, noise), None),
    "repeats": Kind(
        repeats,
        lambda vocab, noise_vocab=0, **_: 1 / -(-(vocab - noise_vocab) // 2),
        lambda vocab, **_: vocab,
    ),
    "motifs": Kind(motifs, lambda vocab, **_: 1 / (vocab // 2), lambda vocab, **_: vocab),
    "compression": Kind(compression, lambda vocab, **_: 1 / (vocab - 1), lambda vocab, **_: vocab),
    "memorization": Kind(
        memorization, lambda vocab, **_: 1 / ((vocab - 1) // 2), lambda vocab, **_: vocab
    ),
}


def sequence_accuracy(logits: Tensor, targets: Tensor) -> float:
    """The share of sequences in which every answer is right, of those that ask for one.

    logits (b t v), targets (b t): how copying and needles are scored where they were published.
    """
    check(logits=(logits, "b t v"), targets=(targets, "b t"))
    asked = targets != UNSCORED
    right = ((logits.argmax(-1) == targets) | ~asked).all(1)
    return right[asked.any(1)].double().mean().item()
