"""The tasks of MAD, mechanistic architecture design, that are not elsewhere in this room.

    repeats       k1 v1 k2 v2 k1 ?   pairs go by, and a key that comes again is asked; with `noise`
                  the noisy task. The fuzzy one, keys and values of several tokens, is `motifs`
    compression   say every token again from what is known after the last
    memorization  say the value of a key from a table that is the same in every sequence

Its sixth, selective copying, is `ssmlib.recall.selective_copying`. Poli et al. 2024 and their code.
There, losses are over all tokens while training; here answers alone are asked.
"""

import torch
from torch import Tensor

from ssmlib.recall.drawing import (
    Batch,
    Device,
    any_of,
    first_alike,
    pack,
    source,
    whole,
)
from ssmlib.shapes import check_number
from ssmlib.train.task import UNSCORED


def repeats(
    batch: int,
    length: int,
    vocab: int,
    seed: int,
    noise: float = 0.0,
    noise_vocab: int = 0,
    device: Device = "cpu",
) -> Batch:
    """Pairs of key and value without end; whenever a key came before, the target is its value.

    Of the vocab - noise_vocab first tokens the lower half are keys and the rest values. Each pair
    draws a key; its value is drawn when the key comes for the first time. With probability `noise`
    a pair is two tokens of the last noise_vocab instead. The last pair repeats one of the keys
    shown, each equally likely. Who knows nothing is right once in the number of values.
    Raises ValueError for less than 3 tokens, no room for 2 keys, or noise without a vocabulary.
    """
    check_number(low=1, whole=True, batch=batch)
    check_number(low=3, whole=True, length=length)
    check_number(low=0, whole=True, noise_vocab=noise_vocab)
    check_number(low=2 + noise_vocab, whole=True, vocab=vocab)
    check_number(low=0, high=1 if noise_vocab else 0, noise=noise)
    generator = source(seed, device)
    n, spoken = -(-length // 2), vocab - noise_vocab
    keys = spoken // 2
    key = whole(0, keys, (batch, n), generator)
    heard = torch.rand(batch, n, generator=generator, device=device) >= noise
    heard.scatter_(1, whole(0, n - 1, (batch, 1), generator), True)
    code = torch.where(heard, key, -1 - torch.arange(n, device=device))  # noise is like nothing
    is_first = first_alike(code) == torch.arange(n, device=device)
    known = is_first & heard
    known[:, -1] = False
    heard[:, -1] = True
    key[:, -1:] = key.gather(1, any_of(known, generator)[:, None])
    code[:, -1] = key[:, -1]
    first = first_alike(code)
    value = whole(keys, spoken, (batch, n), generator).gather(1, first)
    pairs = torch.stack([key, value], dim=2)
    if noise_vocab:
        babble = whole(spoken, vocab, (batch, n, 2), generator)
        pairs = torch.where(heard[:, :, None], pairs, babble)
    is_asked = heard & (first < torch.arange(n, device=device))
    answers = value.masked_fill(~is_asked, UNSCORED)
    targets = torch.stack([answers, torch.full_like(answers, UNSCORED)], dim=2)
    return pairs.flatten(1)[:, :length].contiguous(), targets.flatten(1)[:, :length].contiguous()


def motifs(
    batch: int,
    length: int,
    vocab: int,
    seed: int,
    key_size: tuple[int, int] = (1, 3),
    value_size: tuple[int, int] = (1, 3),
    device: Device = "cpu",
) -> Batch:
    """As `repeats`, but a key is several tokens, and so is a value: every one of them is asked.

    key_size, value_size: the least and the most of their tokens, drawn evenly; within a key or a
    value no token stands twice. Published: keys of 1 to 3 in training, of 3 alone in testing. Token
    0 is padding, (vocab - 1) // 2 more are keys and the rest values. The first target of a value
    stands under the last token of the key. The last pair that fits repeats a key shown before.
    Raises ValueError for a length that does not hold two pairs, or motifs longer than their
    vocabulary.
    """
    check_number(low=1, whole=True, batch=batch)
    (k_low, k), (v_low, v) = key_size, value_size
    check_number(low=1, high=k, whole=True, **{"least of key_size": k_low})
    check_number(low=1, high=v, whole=True, **{"least of value_size": v_low})
    check_number(low=1 + 2 * max(k, v), whole=True, vocab=vocab)
    check_number(low=2 * (k + v), whole=True, length=length)
    generator, keys = source(seed, device), (vocab - 1) // 2
    n = length // (k_low + v_low)
    key, k_size = _draw_motifs(batch, n, keys, k_low, k, generator)
    value, v_size = _draw_motifs(batch, n, vocab - 1 - keys, v_low, v, generator)
    sizes = k_size + v_size.gather(1, first_alike(_code(key, keys)))
    last = ((sizes.cumsum(1) + k + v <= length).sum(1)).clamp_max(n - 1)  # one more always fits
    source_of_last = any_of(torch.arange(n, device=device) < last[:, None], generator)
    rows = torch.arange(batch, device=device)
    key[rows, last], k_size[rows, last] = key[rows, source_of_last], k_size[rows, source_of_last]
    first = first_alike(_code(key, keys))
    v_size = v_size.gather(1, first)
    value = value.gather(1, first[:, :, None].expand_as(value))
    tokens, targets = _speak(key, k_size, 1 + keys + value, v_size, first)
    sizes = (k_size + v_size).masked_fill(torch.arange(n, device=device) > last[:, None], 0)
    return pack(tokens, targets, sizes, length)


def compression(batch: int, length: int, vocab: int, seed: int, device: Device = "cpu") -> Batch:
    """Random tokens of 0 ... vocab - 2, then vocab - 1; every target but the last is its token.

    For models that answer at every place from what they know after the last token, as MAD's
    decoder does: one that answers in place has nothing to remember. Who knows nothing is right once
    in vocab - 1. Raises ValueError for fewer than 2 tokens, or 2 of vocabulary.
    """
    check_number(low=1, whole=True, batch=batch)
    check_number(low=2, whole=True, length=length, vocab=vocab)
    tokens = whole(0, vocab - 1, (batch, length), source(seed, device))
    tokens[:, -1] = vocab - 1
    targets = tokens.clone()
    targets[:, -1] = UNSCORED
    return tokens, targets


def memorization(
    batch: int, length: int, vocab: int, seed: int, table: int = 0, device: Device = "cpu"
) -> Batch:
    """Key, blank, key, blank: under a blank the target is what the table has for that key.

    The table is drawn from its own seed, on the CPU, and never from `seed`: (vocab - 1) // 2 keys,
    numbered from 0, as many different values of those behind, and the blank, vocab - 1. It has to
    be learned and not read. Who knows nothing is right once in the number of keys.
    Raises ValueError for a length below 2, or fewer than 3 tokens of vocabulary.
    """
    check_number(low=1, whole=True, batch=batch)
    check_number(low=2, whole=True, length=length)
    check_number(low=3, whole=True, vocab=vocab)
    keys = (vocab - 1) // 2
    values = vocab - 1 - keys
    order = torch.randperm(values, generator=source(table, "cpu"))[:keys].to(device)
    asked = whole(0, keys, (batch, -(-length // 2)), source(seed, device))
    blank = torch.full_like(asked, vocab - 1)
    tokens = torch.stack([asked, blank], dim=2).flatten(1)[:, :length].contiguous()
    answers = torch.stack([torch.full_like(asked, UNSCORED), keys + order[asked]], dim=2)
    return tokens, answers.flatten(1)[:, :length].contiguous()


def _draw_motifs(
    batch: int, n: int, kinds: int, low: int, high: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Motifs (b n high) of different tokens, -1 behind their sizes, and those sizes (b n)."""
    size = whole(low, high + 1, (batch, n), generator)
    drawn = torch.rand(batch, n, kinds, generator=generator, device=generator.device)
    motif = drawn.topk(high).indices
    at = torch.arange(high, device=motif.device)
    return motif.masked_fill(at >= size[:, :, None], -1), size


def _code(motif: Tensor, kinds: int) -> Tensor:
    """One number for each motif (b n w) of tokens below `kinds`, -1 for none."""
    code = torch.zeros_like(motif[:, :, 0])
    for place in motif.unbind(2):
        code = code * (kinds + 1) + place + 1
    return code


def _speak(key: Tensor, k_size: Tensor, value: Tensor, v_size: Tensor, first: Tensor) -> Batch:
    """Each pair (b n k+v), left-aligned: the key's tokens, then the value's, and what is asked."""
    width = key.shape[2] + value.shape[2]
    at, k_size = torch.arange(width, device=key.device), k_size[:, :, None]
    in_key = at.clamp_max(key.shape[2] - 1).expand(*k_size.shape[:2], -1)
    in_value = (at - k_size).clamp(0, value.shape[2] - 1)
    tokens = torch.where(at < k_size, 1 + key.gather(2, in_key), value.gather(2, in_value))
    next_value = value.gather(2, (at - k_size + 1).clamp(0, value.shape[2] - 1))
    is_again = first < torch.arange(first.shape[1], device=first.device)
    is_asked = (at >= k_size - 1) & (at < k_size + v_size[:, :, None] - 1) & is_again[:, :, None]
    return tokens, next_value.masked_fill(~is_asked, UNSCORED)
