"""Bytes of English that every Python carries: its language reference, in `pydoc_data.topics`.

The topics are sections of one text, and long ones hold short ones word for word: almost a fifth of
it is repetition, which a split by topics alone would put on both sides. `corpus` keeps each
paragraph once, in the longest topic that has it, and holds out whole topics of which no paragraph
stands in what is left. The text grows with each release of Python, so results say which was read.
"""

import math
import sys
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssmlib.mixers.mamba import Mamba
from ssmlib.model import LanguageModel
from ssmlib.shapes import check, check_number
from ssmlib.train.task import Batch, Task, tally

HELD_OUT = ("assignment", "augassign", "calls", "comparisons", "import", "in")
SHORT = 60  # characters: what is shorter may stand in many places, as "See also:" does
VOCAB_SIZE = 256


class Corpus(NamedTuple):
    """Two texts as bytes (t,), int64: to train on, and held out. edition says whose they are."""

    train: Tensor
    held_out: Tensor
    edition: str


@lru_cache(maxsize=1)
def corpus() -> Corpus:
    """The language reference of the Python that runs, without repetitions."""
    from pydoc_data.topics import topics

    held = {_key(p) for name in HELD_OUT for p in _paragraphs(topics[name])}
    seen: set[str] = set()
    texts: dict[bool, list[str]] = {False: [], True: []}
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        out, kept = name in HELD_OUT, []
        for paragraph in _paragraphs(topics[name]):
            key = _key(paragraph)
            if len(key) >= SHORT and (key in seen or (key in held and not out)):
                continue
            kept.append(paragraph)
            seen.add(key)
        texts[out].append("\n\n".join(kept))
    train, held_out = (_bytes("\n\n\n".join(filter(None, texts[out]))) for out in (False, True))
    version = ".".join(map(str, sys.version_info[:3]))
    edition = f"Python {version}, {len(train)} bytes to train on and {len(held_out)} held out"
    return Corpus(train, held_out, edition)


def text_task(batch: int, length: int, device: str | torch.device = "cpu") -> Task:
    """Say the next byte: inputs and targets (b t), random pieces of the text, the targets one on.

    The test draws such pieces of the held-out text; `bits_per_byte` reads all of it, once. Losses
    are in nats. Raises ValueError for a length that the held-out text does not have.
    """
    check_number(low=1, whole=True, batch=batch)
    check_number(low=1, high=len(corpus().held_out) - 1, whole=True, length=length)
    train, held_out = corpus().train.to(device), corpus().held_out.to(device)

    def draw(text: Tensor, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        starts = torch.randint(len(text) - length, (batch, 1), generator=generator)
        pieces = text[(starts + torch.arange(length + 1)).to(text.device)]  # (b t+1)
        return pieces[:, :-1], pieces[:, 1:]

    return Task(lambda seed: draw(train, seed), {"test": lambda seed: draw(held_out, seed)})


@torch.no_grad()
def bits_per_byte(
    model: nn.Module, text: Tensor, length: int, carried: bool = False, batch: int = 16
) -> float:
    """The mean of -log2 of the probability that the model gives to each byte of text (t,).

    The first byte is given. The text is read in pieces of `length`, each from no state, so that
    every byte is asked for once, with 1 to `length` bytes before it in view; carried=True reads
    them one after the other, each from the state that the last one left.
    """
    check(text=(text, "t"))
    check_number(low=1, whole=True, length=length, batch=batch)
    state, sums = None, torch.zeros(3, dtype=torch.float64, device=text.device)
    pairs = list(zip(text[:-1].split(length), text[1:].split(length), strict=True))
    if carried:
        for inputs, targets in pairs:
            logits, state = model(inputs[None], state)
            sums += tally(logits, targets[None])
        return (sums[0] / sums[2]).item() / math.log(2)
    whole = [pair for pair in pairs if len(pair[0]) == length]
    for group in [*_groups(whole, batch), *([pair] for pair in pairs[len(whole) :])]:
        inputs, targets = (torch.stack(side) for side in zip(*group, strict=True))
        sums += tally(model(inputs)[0], targets)
    return (sums[0] / sums[2]).item() / math.log(2)


@torch.no_grad()
def delta_over_text(model: LanguageModel, tokens: Tensor) -> Tensor:
    """The time steps of every Mamba layer of the model, as it reads tokens (b t): (l b t e).

    Layers of another kind are passed through. Raises ValueError for a model without a Mamba.
    """
    check(tokens=(tokens, "b t"))
    x, found = model.embedding(tokens), []
    for layer in model.backbone.layers:
        if isinstance(layer.mixer, Mamba):
            found.append(layer.mixer.delta(layer.norm(x)))
        x, _ = layer(x)
    if not found:
        raise ValueError("model: expected a Mamba layer, got none")
    return torch.stack(found)


def frequency_bits(train: Tensor, text: Tensor) -> float:
    """Bits per byte of a model that knows how often each byte stands in train, and no more.

    Every byte is counted once more than it stands there, so that none is impossible.
    """
    counts = torch.bincount(train, minlength=VOCAB_SIZE).double() + 1
    return -(counts / counts.sum()).log2()[text].mean().item()


def _groups(items: list, size: int) -> list[list]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _paragraphs(topic: str) -> list[str]:
    return topic.strip("\n").split("\n\n")


def _key(paragraph: str) -> str:
    return " ".join(paragraph.split())


def _bytes(text: str) -> Tensor:
    return torch.tensor(list(text.encode()))
