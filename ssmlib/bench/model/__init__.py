"""The suite `model`: four models of 400 million random weights, read prompts and make tokens.

A Transformer with grouped queries, Mamba, Mamba-2, and a Mamba-2 with attention in place of one
layer in eight, in the dtype that the device works in.

`prefill`: one prompt, from 2K to 512K tokens, and to 1M where no cache grows: seconds to the first
token and the most memory.
`decode`: one more token of one sequence, after 2K to 512K others.
`throughput`: batches of sequences after 2K tokens, up to the largest that fits; Mamba-2's also by
mamba-ssm's kernels, where they are installed. There is one more Transformer here, whose heads do
not share keys and values: with such a one Mamba was compared first.

Steps are CUDA graphs on a GPU, mamba-ssm's with and without. Floors are of products and of bytes.
What a CPU takes is in the suite `model_cpu`.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from ssmlib.bench.cell import ceiling_row
from ssmlib.bench.model import decode, peers, prefill
from ssmlib.bench.model.shapes import FULL, QUICK, Sizes, build, configs, without_groups
from ssmlib.bench.model.tables import COLUMNS, by_batch, by_length, largest, summary
from ssmlib.bench.table import Row, collect
from ssmlib.bench.timing import ceilings, default_device, release

__all__ = ["Plan", "by_batch", "by_length", "largest", "run", "summary"]


class Plan(NamedTuple):
    """prompts: lengths, those above `long` only where no cache grows. batches: ever larger."""

    sizes: Sizes
    prompts: tuple[int, ...]
    long: int
    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    peer_batches: tuple[int, ...]
    prompt: int
    new: int


K = 1024
WHOLE = Plan(
    FULL,
    prompts=(2 * K, 8 * K, 32 * K, 64 * K, 128 * K, 512 * K, 1024 * K),
    long=512 * K,
    contexts=(2 * K, 8 * K, 32 * K, 128 * K, 512 * K),
    batches=(1, 16, 64, 256),
    peer_batches=(1, 64, 256),
    prompt=2 * K,
    new=128,
)
SMALL = Plan(QUICK, (16, 32), 16, (16, 32), (1, 2), (1,), prompt=8, new=4)


def run(
    quick: bool = False,
    device: str | torch.device | None = None,
    progress: Callable[[str], None] | None = None,
    save: Callable[[Row], None] | None = None,
) -> list[dict[str, Any]]:
    """All rows: the ceilings, then model by model. quick=True takes tiny sizes.

    progress is called with a line of text after each row, save with the row itself.
    """
    device = default_device(device)
    return collect(_rows(SMALL if quick else WHOLE, device, quick), COLUMNS, progress, save)


def _rows(plan: Plan, device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    top = ceilings(device, time_s=0.02 if quick else 0.3)
    yield ceiling_row(top)
    for name, config in configs(plan.sizes).items():
        model = build(config, device)
        grows = "*" in config.pattern
        prompts = [n for n in plan.prompts if n <= plan.long or not grows]
        yield from decode.context_rows(name, model, plan.contexts, top, device)
        yield from decode.batch_rows(name, model, plan.batches, plan.prompt, plan.new, top, device)
        yield from prefill.rows(name, model, prompts, top, device)
        if name == "mamba-2":
            yield from peers.rows(model, plan.peer_batches, plan.prompt, top, device)
        del model
        release(device)
    model, name = build(without_groups(plan.sizes), device), "transformer, MHA"
    yield from decode.batch_rows(name, model, plan.batches, plan.prompt, plan.new, top, device)
