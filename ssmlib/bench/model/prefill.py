"""Reading one prompt: seconds to the first token, and the most memory that it took."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ssmlib.bench.model.shapes import prompt_flops, weights
from ssmlib.bench.timing import Ceilings, release
from ssmlib.generate import prefill, state_bytes
from ssmlib.model import LanguageModel

PIECE = 32768
LONGEST_S = 45.0  # a prompt that would take longer is not read


def rows(
    name: str, model: LanguageModel, lengths: Iterable[int], top: Ceilings, device: torch.device
) -> Iterator[dict[str, Any]]:
    """A row for each length, shortest first. peak_bytes: above the weights; the state is in it.

    n: tokens. seconds: until the first new token is known, once; the least of three calls where
    that takes no second. Time grows at most with the square of the length, which says what to skip.
    """
    last: tuple[int, float] | None = None
    for n in lengths:
        labels = {"experiment": "prefill", "provider": name, "b": 1, "n": n}
        labels |= {"parameters": weights(model)[0], "piece": PIECE}
        flops, moved = prompt_flops(model, 1, n), weights(model)[1]
        floor, bound = top.floor(flops, moved)
        row = labels | {"flops": flops, "bytes": moved, "floor_seconds": floor, "bound": bound}
        expected = 0.0 if last is None else last[1] * (n / last[0]) ** 2
        if expected > LONGEST_S:
            yield row | {"status": f"skipped: would take up to {expected:.0f} s"}
            continue
        try:
            measured = _read(model, n, device, warm=last is not None)
        except torch.OutOfMemoryError:
            yield row | {"status": "out of memory"}
            continue
        last = (n, measured["seconds"])
        yield row | measured | {"tokens_per_s": n / measured["seconds"], "status": "ok"}


def _read(model: LanguageModel, n: int, device: torch.device, warm: bool) -> dict[str, Any]:
    generator = torch.Generator(device).manual_seed(0)
    size = (1, n)
    tokens = torch.randint(model.config.vocab_size, size, generator=generator, device=device)
    if not warm:
        prefill(model, tokens, piece=PIECE)
    release(device)
    on_gpu = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    seconds: list[float] = []
    while len(seconds) < 3 and sum(seconds) < 1:
        began = time.perf_counter()
        logits, state = prefill(model, tokens, piece=PIECE)
        logits.argmax(-1).item()  # waits
        seconds.append(time.perf_counter() - began)
        kept = state_bytes(state)
        del state
    peak = torch.cuda.max_memory_allocated(device) - before if on_gpu else None
    found = {"seconds": min(seconds), "repeats": len(seconds), "peak_bytes": peak}
    return found | {"state_bytes": kept}
