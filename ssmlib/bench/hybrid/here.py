"""The suite `model` at sizes for the machine at hand: small for a CPU, its own for a GPU."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ssmlib.bench.model import decode, prefill
from ssmlib.bench.model.shapes import FULL, Sizes, build, configs
from ssmlib.bench.timing import ceilings, default_device, release

SMALL = Sizes(128, 4, 2, 32, 480, blocks=4, layers=8, groups_of_8=1, vocabulary=256)
PROMPTS = {"cpu": (256, 1024, 4096), "cuda": (2048, 8192, 32_768, 131_072)}
CONTEXTS = {"cpu": (1024, 4096, 16_384, 65_536), "cuda": (2048, 8192, 32_768, 131_072)}


def rows(
    device: str | torch.device | None = None,
    prompts: Iterable[int] | None = None,
    contexts: Iterable[int] | None = None,
) -> Iterator[dict[str, Any]]:
    """Seconds to read prompts of these lengths, and for one token after so many, by model.

    Four models of one size: 400 million weights on a GPU, a million on a CPU.
    """
    device = default_device(device)
    sizes = FULL if device.type == "cuda" else SMALL
    prompts = PROMPTS[device.type] if prompts is None else tuple(prompts)
    contexts = CONTEXTS[device.type] if contexts is None else tuple(contexts)
    top = ceilings(device, time_s=0.05)
    for name, config in configs(sizes).items():
        model = build(config, device)
        with torch.no_grad():
            yield from decode.context_rows(name, model, contexts, top, device)
            yield from prefill.rows(name, model, prompts, top, device)
        del model
        release(device)
