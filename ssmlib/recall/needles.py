"""A secret somewhere in a long text that says nothing, asked for at the end.

said     the grass is green the ? 4 7 1 grass is green the grass is ? 4 7
asked     .    .   .   .     .  . . . .  .    .    .    .    .    . 4 7 1
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ssmlib.recall.drawing import Batch, Device, source, whole
from ssmlib.shapes import check_number
from ssmlib.train.task import UNSCORED

MARK = 0
HAY = ("repeat", "random")
DIGITS = "0123456789"
CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def needle(
    batch: int,
    length: int,
    seed: int,
    symbols: int = 5,
    alphabet: str = DIGITS,
    depth: float | None = None,
    hay: str = "repeat",
    words: int = 20,
    secret: str | None = None,
    device: Device = "cpu",
) -> Batch:
    """Hide a mark, 0, and `symbols` of the alphabet in a text; ask for them after a second mark.

    The text is t - 2 symbols - 1 tokens of 1 ... words: "repeat", that sentence over and over from
    a place drawn at random, or "random", each word drawn. Symbols are numbered behind the words,
    each drawn evenly, or all rows keep the given secret. depth: 0 hides it at the very beginning, 1
    directly before the question, None anywhere, drawn evenly. The targets of the last `symbols`
    tokens, the second mark and all symbols but one, are the symbols. Who knows nothing is right
    once in len(alphabet), or with a secret always. Passkeys: Mohtashami and Jaggi 2023; depth and
    length as a grid: Kamradt 2023.
    Raises ValueError for a length below 2 symbols + 1, a repeated letter of the alphabet, or a
    secret that is not `symbols` of its letters.
    """
    check_number(low=1, whole=True, batch=batch, symbols=symbols, words=words)
    check_number(low=2 * symbols + 1, whole=True, length=length)
    _check_secret(symbols, alphabet, secret)
    generator = source(seed, device)
    size = length - 2 * symbols - 1
    text = _text(hay, batch, size, words, generator)
    if depth is None:
        place = whole(0, size + 1, (batch, 1), generator)
    else:
        check_number(low=0, high=1, depth=depth)
        place = torch.full((batch, 1), round(depth * size), device=device)
    drawn = whole(0, len(alphabet), (batch, symbols), generator)
    if secret is not None:
        drawn = torch.tensor([alphabet.index(c) for c in secret], device=device).expand(batch, -1)
    hidden = torch.cat([torch.zeros_like(place), drawn + 1 + words], dim=1)
    at = torch.arange(length - symbols, device=device).expand(batch, -1)
    after = (at > place + symbols).long()
    said = torch.cat([text, text.new_zeros(batch, 1)], dim=1)  # so that nothing reads beyond
    said = said.gather(1, (at - after * (symbols + 1)).clamp_max(size))
    said = said.scatter(1, place + torch.arange(symbols + 1, device=device), hidden)
    tokens = torch.cat([said, hidden[:, :-1]], dim=1)
    targets = torch.full_like(tokens, UNSCORED)
    targets[:, -symbols:] = hidden[:, 1:]
    return tokens, targets


def _text(hay: str, batch: int, size: int, words: int, generator: torch.Generator) -> Tensor:
    """(batch size) of 1 ... words."""
    if hay not in HAY:
        raise ValueError(f"hay: expected one of {', '.join(HAY)}, got {hay!r}")
    if hay == "random":
        return 1 + whole(0, words, (batch, size), generator)
    phase = whole(0, words, (batch, 1), generator)
    return 1 + (phase + torch.arange(size, device=generator.device)) % words


def _check_secret(symbols: int, alphabet: str, secret: str | None) -> None:
    if not alphabet or len(set(alphabet)) != len(alphabet):
        raise ValueError(f"alphabet: expected different letters, got {alphabet!r}")
    if secret is not None and (len(secret) != symbols or set(secret) - set(alphabet)):
        raise ValueError(f"secret: expected {symbols} letters of {alphabet}, got {secret!r}")


def needle_vocab(words: int = 20, alphabet: str = DIGITS) -> int:
    """How many tokens there are."""
    return 1 + words + len(alphabet)


def spell(tokens: Tensor, words: int = 20, alphabet: str = DIGITS) -> str:
    """What a row of `needle`, (t,), says: ? for the mark, · for a word of the text."""
    return "".join(
        "?" if i == MARK else "·" if i <= words else alphabet[i - words - 1]
        for i in tokens.tolist()
    )


def needle_grid(
    lengths: Iterable[int], depths: Iterable[float], batch: int, **common: Any
) -> dict[str, Callable[[int], Batch]]:
    """The tests of a Task: for each length and depth, named "512@0.25", a function of the seed."""
    depths = list(depths)
    return {
        f"{length}@{depth:g}": partial(_at, length, depth, batch, common)
        for length in lengths
        for depth in depths
    }


def _at(length: int, depth: float, batch: int, common: dict[str, Any], seed: int) -> Batch:
    return needle(batch, length, seed, depth=depth, **common)
