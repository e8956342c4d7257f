"""What the generators share: a source of randomness by seed, and draws without replacement."""

import torch
from torch import Tensor

from ssmlib.shapes import check_number

Batch = tuple[Tensor, Tensor]
Device = str | torch.device
LARGEST_SEED = 2**63 - 1


def source(seed: int, device: Device) -> torch.Generator:
    """The random numbers of one batch. Raises ValueError for a seed that is not 0 ... 2^63 - 1."""
    check_number(low=0, high=LARGEST_SEED, whole=True, seed=seed)
    return torch.Generator(device).manual_seed(seed)


def distinct(batch: int, n: int, k: int, generator: torch.Generator) -> Tensor:
    """(batch, k) of 0 ... n - 1, in a row all different, every order equally likely."""
    noise = torch.rand(batch, n, generator=generator, device=generator.device)
    return noise.topk(k).indices


def distinct_weighted(batch: int, weight: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """(batch, k) indices into weight (n,), in a row all different: one draw after another.

    The next is drawn in proportion to weight among those left, which is what sorting exponential
    times of rate `weight` does.
    """
    noise = torch.rand(batch, len(weight), generator=generator, device=generator.device)
    times = -torch.log1p(-noise.double()) / weight
    return times.topk(k, largest=False).indices
