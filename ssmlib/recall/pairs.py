"""Facts as pairs, asked for once, or in a context.

associative_recall   k1 v1 k2 v2 k3 v3 ? k2          the value of one key
joint_recall         c1 k1 v k2 v c2 k2 v k1 v | c2 k1 . k2 . c1 ...   the value of (c, k)
"""

import torch
from torch import Tensor

from ssmlib.recall.drawing import (
    PADDING,
    Batch,
    Device,
    check_apart,
    check_span,
    distinct,
    noise,
    source,
    whole,
)
from ssmlib.shapes import check_number
from ssmlib.train.task import UNSCORED

MARKER = 0
START, SEPARATOR, VALUES = 1, 2, 3  # of joint recall; padding is 0, values begin at 3


def associative_recall(
    batch: int,
    pairs: int,
    keys: range,
    values: range,
    seed: int,
    repeated: bool = False,
    joined: bool = False,
    device: Device = "cpu",
) -> Batch:
    """Pairs of key and value, a marker, 0, and one of the keys: the target under it is its value.

    keys, values: the tokens that are one and the other. repeated: draw every key anew, and for each
    key of the vocabulary a value, whatever the others have (Fu et al. 2023); otherwise no key and
    no value stands twice (Arora et al. 2025). joined: say each pair as one token, max(...) + 1 +
    (key's place) len(values) + (value's place), so that nothing needs to be bound to a neighbour.
    t is 2 pairs + 2, or pairs + 2 if joined. Who knows nothing is right once in len(values).
    Raises ValueError for more pairs than keys or values unless repeated, and for vocabularies that
    share a token with each other or the marker.
    """
    check_number(low=1, whole=True, batch=batch, pairs=pairs)
    check_apart(marker=range(MARKER, MARKER + 1), keys=keys, values=values)
    if not repeated:
        check_number(high=min(len(keys), len(values)), pairs=pairs)
    generator = source(seed, device)
    if repeated:
        key = whole(0, len(keys), (batch, pairs), generator)
        value = whole(0, len(values), (batch, len(keys)), generator).gather(1, key)
    else:
        key = distinct(batch, len(keys), pairs, generator)
        value = distinct(batch, len(values), pairs, generator)
    asked = _one_of_those_shown(key, len(keys), generator)
    if joined:
        shown = max(keys.stop, values.stop) + len(values) * key + value
    else:
        shown = torch.stack([key + keys.start, value + values.start], dim=2).flatten(1)
    marker = torch.full((batch, 1), MARKER, device=device)
    tokens = torch.cat([shown, marker, keys.start + key.gather(1, asked)], dim=1)
    targets = torch.full_like(tokens, UNSCORED)
    targets[:, -1:] = values.start + value.gather(1, asked)
    return tokens, targets


def associative_recall_vocab(keys: range, values: range, joined: bool = False) -> int:
    """How many tokens there are."""
    top = max(keys.stop, values.stop)
    return top + len(keys) * len(values) if joined else top


def _one_of_those_shown(key: Tensor, kinds: int, generator: torch.Generator) -> Tensor:
    """(b, 1) where one of the keys (b pairs) stands, each key equally likely however often."""
    order = noise((len(key), kinds), generator).gather(1, key)
    return order.argmax(1, keepdim=True)


def joint_recall(
    batch: int,
    contexts: int | tuple[int, int],
    keys: int | tuple[int, int],
    values: int,
    seed: int,
    device: Device = "cpu",
) -> Batch:
    """The value of a key depends on its context: a table, said once, then asked in another order.

    A row draws how many contexts and keys it has (a number, or the least and the most of it), and
    of that many a table of `values` kinds. It says 1; every context, each followed by every key
    with its value, all orders drawn anew; 2; and the same again in other orders. In this second
    half the target under a key is its value, which then follows. The rest is padding, 0: t is
    2 + 2 contexts (2 keys + 1) of the most. Tokens: 3 ... are values, then keys, then contexts.
    Who knows nothing is right once in `values`. Zhan et al. 2025, section 3 and their code.
    Raises ValueError for sizes below 1, or a least above the most.
    """
    check_number(low=1, whole=True, batch=batch, values=values)
    (c_low, c), (k_low, k) = check_span("contexts", contexts), check_span("keys", keys)
    generator = source(seed, device)
    some_c = whole(c_low, c + 1, (batch, 1), generator)
    some_k = whole(k_low, k + 1, (batch, 1), generator)
    table = VALUES + whole(0, values, (batch, c, k), generator)
    half = c * (2 * k + 1)
    length = 2 + 2 * half
    tokens = torch.full((batch, length + 1), PADDING, device=device)  # the last collects the unused
    targets = torch.full_like(tokens, UNSCORED)
    tokens[:, 0] = START
    size = some_c * (2 * some_k + 1)
    tokens.scatter_(1, 1 + size, SEPARATOR)
    for begins, is_asked in ((torch.ones_like(size), False), (2 + size, True)):
        context, key, key_at, context_at = _lay_out(some_c, some_k, c, k, begins, length, generator)
        value = table.flatten(1).gather(1, (context[:, :, None] * k + key).flatten(1))
        tokens.scatter_(1, context_at, VALUES + values + k + context)
        tokens.scatter_(1, key_at.flatten(1), VALUES + values + key.flatten(1))
        tokens.scatter_(1, (key_at + 1).clamp_max(length).flatten(1), value)
        if is_asked:
            targets.scatter_(1, key_at.flatten(1), value)
    return tokens[:, :length].contiguous(), targets[:, :length].contiguous()


def joint_recall_vocab(
    contexts: int | tuple[int, int], keys: int | tuple[int, int], values: int
) -> int:
    """How many tokens there are."""
    return VALUES + values + check_span("keys", keys)[1] + check_span("contexts", contexts)[1]


def _lay_out(
    some_c: Tensor, some_k: Tensor, c: int, k: int, begins: Tensor, length: int, g: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Orders of contexts (b c) and keys (b c k), and their places; `length` is no place."""
    batch, device = len(some_c), g.device
    order, inner = torch.arange(c, device=device), torch.arange(k, device=device)
    context = noise((batch, c), g).masked_fill(order >= some_c, 2.0).argsort(1)
    hidden = (inner >= some_k)[:, None].expand(-1, c, -1)
    key = noise((batch, c, k), g).masked_fill(hidden, 2.0).argsort(2)
    context_at = begins + order * (2 * some_k + 1)
    key_at = context_at[:, :, None] + 1 + 2 * inner
    context_at = context_at.masked_fill(order >= some_c, length)
    unused = hidden | (order >= some_c)[:, :, None]
    return context, key, key_at.masked_fill(unused, length), context_at
