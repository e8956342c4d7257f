"""Saying a string again: all of it, or what came after a few letters that are given.

copying              $ d o g | d o g .
lookup, "suffix"     $ a d o g s | d o g .      the few letters, "d o", come last
lookup, "prefix"     $ d o | a d o g s | g .    they come first: one knows what to wait for
"""

import torch
from torch import Tensor

from ssmlib.recall.drawing import Batch, Device, pack, source, whole
from ssmlib.shapes import check_number
from ssmlib.train.task import UNSCORED

DOLLAR, BAR, STOP, LETTERS = 1, 2, 3, 4  # 0 is padding; letters begin at 4
KINDS = ("prefix", "suffix")


def copying(
    batch: int,
    length: int,
    shortest: int,
    longest: int,
    seed: int,
    letters: int = 26,
    packed: bool = False,
    device: Device = "cpu",
) -> Batch:
    """Repeat a string after a bar, each letter the target under the token before it.

    An example is 1, the string, 2, the string, 3: shortest to longest letters, drawn evenly, each
    one of `letters`, numbered from 4. packed: fill t tokens with examples, of which the last may be
    cut, shown and not asked, as in training; otherwise one example and padding, as in testing,
    where the row counts if every letter is right. The closing 3 is not asked, so that who knows
    nothing is right once in `letters` (published: it is). Jelassi et al. 2024, section 3 and code.
    Raises ValueError for a length below 2 longest + 3, or shortest > longest.
    """
    check_number(low=1, whole=True, batch=batch, shortest=shortest, letters=letters)
    check_number(low=shortest, whole=True, longest=longest)
    check_number(low=2 * longest + 3, whole=True, length=length)
    generator = source(seed, device)
    n = length // (2 * shortest + 3) + 1 if packed else 1
    size = whole(shortest, longest + 1, (batch, n), generator)
    text = LETTERS + whole(0, letters, (batch, n, longest), generator)
    at = torch.arange(2 * longest + 3, device=device)
    long = size[:, :, None]
    tokens = torch.where(at <= long, _letter(text, at - 1), _letter(text, at - long - 2))
    tokens = _marks(tokens, at, {DOLLAR: 0 * long, BAR: long + 1, STOP: 2 * long + 2})
    is_asked = (at > long) & (at < 2 * long + 1)
    targets = _letter(text, at - long - 1).masked_fill(~is_asked, UNSCORED)
    return pack(tokens, targets, 2 * size + 3, length)


def lookup(
    batch: int,
    length: int,
    shortest: int,
    longest: int,
    given: int,
    answer: int,
    seed: int,
    kind: str = "suffix",
    letters: int = 26,
    packed: bool = False,
    device: Device = "cpu",
) -> Batch:
    """Say the `answer` letters of a string that follow where `given` letters first stand in it.

    kind "suffix": 1, the string, 2, the given letters, the answer, 3: everything has to be kept.
    "prefix": 1, the given letters, 2, the string, 2, the answer, 3: it is known what to wait for.
    The given letters are those at a place of the string drawn evenly among those with an answer
    behind them. Targets stand under the token before each letter of the answer; `packed` and the
    rest are as in `copying`. Jelassi et al. 2024, section 3 ("n-gram lookup").
    Raises ValueError for strings shorter than given + answer, a length that does not hold one
    example, or another kind.
    """
    check_number(low=1, whole=True, batch=batch, given=given, answer=answer, letters=letters)
    check_number(low=given + answer, whole=True, shortest=shortest)
    check_number(low=shortest, whole=True, longest=longest)
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    extra = given + answer + (4 if kind == "prefix" else 3)
    check_number(low=longest + extra, whole=True, length=length)
    generator = source(seed, device)
    n = length // (shortest + extra) + 1 if packed else 1
    size = whole(shortest, longest + 1, (batch, n), generator)
    text = LETTERS + whole(0, letters, (batch, n, longest), generator)
    drawn = torch.rand(batch, n, generator=generator, device=device)
    place = (drawn * (size - given - answer + 1)).long().clamp_max(size - given - answer)
    start = _first_match(text, place, given)[:, :, None]
    at, long = torch.arange(longest + extra, device=device), size[:, :, None]
    if kind == "prefix":
        asks = given + 2 + long  # the place under which the first letter of the answer is asked
        tokens = _letter(text, torch.where(at <= given, start + at - 1, at - given - 2))
        marks = {DOLLAR: 0 * long, BAR: torch.cat([0 * long + given + 1, asks], dim=2)}
    else:
        asks = long + 1 + given
        tokens = _letter(text, torch.where(at <= long, at - 1, start + at - long - 2))
        marks = {DOLLAR: 0 * long, BAR: long + 1}
    answers = _letter(text, start + given + at - asks)
    before = _letter(text, start + given + at - asks - 1)
    tokens = torch.where(at > asks, before, tokens)
    tokens = _marks(tokens, at, marks | {STOP: asks + answer + 1})
    is_asked = (at >= asks) & (at < asks + answer)
    return pack(tokens, answers.masked_fill(~is_asked, UNSCORED), size + extra, length)


def _letter(text: Tensor, place: Tensor) -> Tensor:
    """text (b n l) at places (… w), of which those out of it give any letter."""
    place = place.expand(*text.shape[:2], -1)
    return text.gather(2, place.clamp(0, text.shape[2] - 1))


def _marks(tokens: Tensor, at: Tensor, marks: dict[int, Tensor]) -> Tensor:
    for mark, places in marks.items():
        for place in places.unbind(2):
            tokens = tokens.masked_fill(at == place[:, :, None], mark)
    return tokens


def _first_match(text: Tensor, place: Tensor, given: int) -> Tensor:
    """Where the `given` letters of text (b n l) at place (b n) stand for the first time."""
    grams = text.unfold(2, given, 1)  # b n long-given+1 given
    wanted = grams.gather(2, place[:, :, None, None].expand(-1, -1, 1, given))
    return (grams == wanted).all(3).long().argmax(2)
