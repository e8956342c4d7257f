"""Multi-query associative recall: pairs first, then every key once more, asking for its value.

said     k1 v1 k2 v2  .  .  k2  .  .  .  k1  .
asked     .  .  .  .  .  .  v2  .  .  .  v1  .
"""

import torch

from ssmlib.recall.drawing import Batch, Device, distinct, distinct_weighted, source
from ssmlib.shapes import check_number
from ssmlib.train.task import UNSCORED

FILLERS = ("random", "zero")


def mqar(
    batch: int,
    length: int,
    pairs: int,
    vocab: int,
    seed: int,
    filler: str = "random",
    power: float = 0.01,
    passes: int = 1,
    device: Device = "cpu",
) -> Batch:
    """Say each of `pairs` keys once more after all pairs were shown; the target is its value.

    Keys are 1 ... vocab // 2 - 1 and values vocab // 2 ... vocab - 1, no two alike in a sequence.
    The pairs come first, `passes` times over in one order. Behind them lie (t - 2 passes pairs)
    // 2 slots of two tokens; slot i = 1, 2, ... is taken by a query in proportion to
    i^(power - 1) (power = 1: all alike), the key first in its slot, its answer the target under it.
    Slots are drawn for the pairs in their order, as published: with power < 1 the first pair is
    likelier to be asked early.
    filler: every token that is neither: "zero", or "random" over the whole vocabulary, so that a
    key may stand there unasked.
    Who knows nothing is right once in vocab - vocab // 2; who picks among the values shown, once
    in `pairs`. Arora et al. 2023, section 3 and appendix; repeated passes are Arora et al. 2024.
    Raises ValueError for more pairs than keys, a length below (2 passes + 2) pairs, or a filler
    that is not named above.
    """
    check_number(low=1, whole=True, batch=batch, passes=passes)
    check_number(low=4, whole=True, vocab=vocab)
    half = vocab // 2
    check_number(low=1, high=half - 1, whole=True, pairs=pairs)
    check_number(low=2 * (passes + 1) * pairs, whole=True, length=length)
    check_number(low=0, power=power)
    if filler not in FILLERS:
        raise ValueError(f"filler: expected one of {', '.join(FILLERS)}, got {filler!r}")
    generator = source(seed, device)
    keys = 1 + distinct(batch, half - 1, pairs, generator)
    values = half + distinct(batch, vocab - half, pairs, generator)
    shown = torch.stack([keys, values], dim=2).flatten(1).repeat(1, passes)
    slots = torch.arange(1, (length - shown.shape[1]) // 2 + 1, device=device, dtype=torch.float64)
    slot = distinct_weighted(batch, slots ** (power - 1), pairs, generator)
    places = shown.shape[1] + 2 * slot
    if filler == "random":
        tokens = torch.randint(vocab, (batch, length), generator=generator, device=device)
    else:
        tokens = torch.zeros(batch, length, dtype=torch.long, device=device)
    tokens[:, : shown.shape[1]] = shown
    tokens.scatter_(1, places, keys)
    targets = torch.full_like(tokens, UNSCORED).scatter_(1, places, values)
    return tokens, targets
