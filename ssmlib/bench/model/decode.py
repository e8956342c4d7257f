"""Making tokens: a step at batch 1 against the context, and at batches until memory ends."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ssmlib.attention import KVCache, RingCache
from ssmlib.bench.model.prefill import PIECE
from ssmlib.bench.model.shapes import step_flops, weights
from ssmlib.bench.timing import Ceilings, measure, release
from ssmlib.generate import prefill, state_bytes
from ssmlib.generate.drawing import Drawing
from ssmlib.generate.step import make_step
from ssmlib.model import LanguageModel

GROUP = 16  # prompts that are read at once
ROOM = 256
SPARE = 8 * 2**30  # bytes of a GPU that no state takes: logits, workspaces, the flush of a cache
GREEDY = Drawing(temperature=0.0)


def context_rows(
    name: str, model: LanguageModel, contexts: Iterable[int], top: Ceilings, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Seconds of a token of one sequence, after so many: n."""
    for n in contexts:
        yield step_row("decode", name, model, 1, n, top, device)


def batch_rows(
    name: str,
    model: LanguageModel,
    batches: Iterable[int],
    prompt: int,
    new: int,
    top: Ceilings,
    device: torch.device,
) -> Iterator[dict[str, Any]]:
    """Tokens a second of whole batches in the middle of `new` tokens after prompts of one length.

    Batches grow; the last is the largest that fits, where memory is known. prompt_seconds: to read
    the prompts of the batch, GROUP at a time. total_tokens_per_s: b * new over those and new steps,
    which is how Gu and Dao 2023 count in figure 8.
    """
    each, n = _prompt_seconds(model, prompt, device), prompt + new // 2
    for b in [*batches, *_largest(model, max(batches), n, device)]:
        row = step_row("throughput", name, model, b, n, top, device) | {"new": new}
        if row["status"] == "ok":
            total = each * b + new * row["seconds"]
            row |= {"prompt_seconds": each * b, "total_tokens_per_s": b * new / total}
        yield row


def step_row(
    experiment: str,
    name: str,
    model: LanguageModel,
    b: int,
    n: int,
    top: Ceilings,
    device: torch.device,
) -> dict[str, Any]:
    """One row: a step of b sequences, each with n tokens behind it.

    Counted at the least: every weight read, cache_bytes of keys and values, and what else is in the
    state, which is written as well. state_bytes: what is held, with room for ROOM more tokens.
    """
    parameters, moved = weights(model)
    row = {"experiment": experiment, "provider": name, "b": b, "n": n, "parameters": parameters}
    try:
        release(device)
        state, cached = place(model, b, n, device)
        moved += cached + 2 * state_bytes([s for s in state if not isinstance(s, RingCache)])
        flops = step_flops(model, b, n)
        floor, bound = top.floor(flops, moved)
        row |= {"flops": flops, "bytes": moved, "floor_seconds": floor, "bound": bound}
        row |= {"state_bytes": state_bytes(state), "cache_bytes": cached}
        step = make_step(model, state, device, GREEDY)
        token = torch.zeros(b, dtype=torch.long, device=device)
        uniform = torch.zeros(b, device=device)
        return row | timed(lambda: step(token, uniform), b, device)
    except torch.OutOfMemoryError:
        return row | {"status": "out of memory"}


def timed(call: Callable[[], Any], b: int, device: torch.device) -> dict[str, Any]:
    """A step's columns. Three calls come first: two by kernels, and one that captures a graph."""
    for _ in range(3):
        call()
    timing = measure(call, warmup_s=0.0, time_s=0.2, device=device, max_repeats=200)
    found = {"seconds": timing.median, "p20": timing.p20, "p80": timing.p80}
    return found | {
        "repeats": timing.repeats,
        "tokens_per_s": b / timing.median,
        "status": "ok",
    }


def place(model: LanguageModel, b: int, n: int, device: torch.device) -> tuple[Any, int]:
    """A state to step from: b sequences after n tokens, and how many bytes are keys and values.

    A recurrence's is that of a short prompt, and a cache is filled at random: the time of a step
    does not depend on the numbers.
    """
    tokens = torch.zeros(1, 8, dtype=torch.long, device=device)
    _, state = prefill(model, tokens)
    caches = [s for s in state if isinstance(s, KVCache)]
    cached = sum(b * n * s.k[0, 0].numel() * s.k.element_size() * 2 for s in caches)
    grown = tuple(_grown(s, n) if isinstance(s, KVCache) else s for s in state)
    held = model.hold(grown, ROOM)
    return tree_map(lambda x: _repeated(x, b), held), cached


def _grown(cache: KVCache, n: int) -> KVCache:
    size = (1, n, *cache.k.shape[2:])
    k, v = (torch.randn(size, dtype=cache.k.dtype, device=cache.k.device) for _ in range(2))
    return KVCache(k, v, n)


def _repeated(x: Any, b: int) -> Any:
    if not isinstance(x, Tensor) or b == 1:
        return x
    return x.expand(b, *x.shape[1:]).clone(memory_format=torch.contiguous_format)


def _largest(model: LanguageModel, above: int, n: int, device: torch.device) -> list[int]:
    """The largest multiple of a quarter of a power of two that memory holds, if more than that."""
    if device.type != "cuda":
        return []
    release(device)
    each = state_bytes(place(model, 1, n, device)[0])
    release(device)
    free = torch.cuda.mem_get_info(device)[0] - SPARE
    logits = 6 * model.config.vocab_size  # in half precision, and as the largest is looked for
    b = int(free // (each + logits))
    step = max(1, 2 ** (b.bit_length() - 3))
    b = b // step * step
    return [b] if b > above else []


def _prompt_seconds(model: LanguageModel, t: int, device: torch.device) -> float:
    """Seconds to read a prompt of t tokens, as one of GROUP."""
    tokens = torch.zeros(GROUP, t, dtype=torch.long, device=device)
    release(device)
    timing = measure(
        lambda: prefill(model, tokens, piece=PIECE), warmup_s=0.0, time_s=0.2, device=device
    )
    return timing.median / GROUP
