"""What is picked out of a stream of noise: its items in order, or what followed a trigger.

selective_copying   repeat the marked-out tokens of a noisy stream, in order
induction           say what followed the trigger, the one time it was seen before
"""

import torch

from ssmlib.recall.drawing import Batch, Device, source
from ssmlib.shapes import check_number
from ssmlib.train.task import UNSCORED

NOISE = 0


def selective_copying(
    batch: int,
    length: int,
    items: int,
    vocab: int,
    seed: int,
    device: Device = "cpu",
) -> Batch:
    """Remember `items` tokens that come at random places in noise, and repeat them at the end.

    The stream is t - items tokens: 0 is noise, and at places drawn without replacement stand the
    items, each one of 1 ... vocab - 2, all alike. Then comes vocab - 1, the order to repeat, as
    often, and the target under the k-th is the k-th item. Who knows nothing is right once in
    vocab - 2. How far back an item lies depends on the noise, which is what a time-invariant layer
    cannot follow. Gu and Dao 2023, table 1; the L of their generator is t - 2 items.
    Raises ValueError for fewer than 3 tokens of vocabulary, or a stream shorter than its items.
    """
    check_number(low=1, whole=True, batch=batch, items=items)
    check_number(low=2 * items, whole=True, length=length)
    check_number(low=3, whole=True, vocab=vocab)
    generator = source(seed, device)
    order = torch.rand(batch, length - items, generator=generator, device=device)
    places = order.topk(items).indices.sort().values
    drawn = torch.randint(1, vocab - 1, (batch, items), generator=generator, device=device)
    tokens = torch.full((batch, length), NOISE, device=device)
    tokens.scatter_(1, places, drawn)
    tokens[:, length - items :] = vocab - 1
    targets = torch.full_like(tokens, UNSCORED)
    targets[:, length - items :] = drawn
    return tokens, targets


def induction(batch: int, length: int, vocab: int, seed: int, device: Device = "cpu") -> Batch:
    """Say at the last token, a trigger, what came after the trigger the first time.

    Tokens are drawn from 0 ... vocab - 2, all alike; the trigger, vocab - 1, stands at one place
    among the first t - 2, drawn evenly, and at the last. The last target is the token after the
    first trigger, and nothing else is asked. Who knows nothing is right once in vocab - 1. Gu and
    Dao 2023, table 2 (there, as in the code of Fu et al. 2023, one token of the vocabulary is never
    used).
    Raises ValueError for a length below 3 or fewer than 2 tokens of vocabulary.
    """
    check_number(low=1, whole=True, batch=batch)
    check_number(low=3, whole=True, length=length)
    check_number(low=2, whole=True, vocab=vocab)
    generator = source(seed, device)
    tokens = torch.randint(vocab - 1, (batch, length), generator=generator, device=device)
    place = torch.randint(length - 2, (batch, 1), generator=generator, device=device)
    tokens.scatter_(1, place, vocab - 1)
    tokens[:, -1] = vocab - 1
    targets = torch.full_like(tokens, UNSCORED)
    targets[:, -1:] = tokens.gather(1, place + 1)
    return tokens, targets
