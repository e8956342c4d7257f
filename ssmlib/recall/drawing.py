"""What the generators share: randomness by seed, draws without replacement, packing, refusals."""

import torch
from torch import Tensor

from ssmlib.shapes import check_number
from ssmlib.train.task import UNSCORED

Batch = tuple[Tensor, Tensor]
Device = str | torch.device
LARGEST_SEED = 2**63 - 1
PADDING = 0


def source(seed: int, device: Device) -> torch.Generator:
    """The random numbers of one batch. Raises ValueError for a seed that is not 0 ... 2^63 - 1."""
    check_number(low=0, high=LARGEST_SEED, whole=True, seed=seed)
    return torch.Generator(device).manual_seed(seed)


def whole(low: int, high: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Integers from low to high - 1, all alike."""
    return torch.randint(low, high, shape, generator=generator, device=generator.device)


def noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Real numbers from 0 to 1."""
    return torch.rand(shape, generator=generator, device=generator.device)


def distinct(batch: int, n: int, k: int, generator: torch.Generator) -> Tensor:
    """(batch, k) of 0 ... n - 1, in a row all different, every order equally likely."""
    return noise((batch, n), generator).topk(k).indices


def distinct_weighted(batch: int, weight: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """(batch, k) indices into weight (n,), in a row all different: one draw after another.

    The next is drawn in proportion to weight among those left, which is what sorting exponential
    times of rate `weight` does.
    """
    times = -torch.log1p(-noise((batch, len(weight)), generator).double()) / weight
    return times.topk(k, largest=False).indices


def any_of(mask: Tensor, generator: torch.Generator) -> Tensor:
    """(batch,) the place of one true entry of each row of mask (batch, n), all alike."""
    return noise(tuple(mask.shape), generator).masked_fill(~mask, -1.0).argmax(1)


def first_alike(codes: Tensor) -> Tensor:
    """(batch, n) for every entry of codes (batch, n), the first place in its row that equals it."""
    return (codes[:, :, None] == codes[:, None, :]).long().argmax(2)


def pack(tokens: Tensor, targets: Tensor, sizes: Tensor, length: int) -> Batch:
    """Lay examples one behind the other: (b n w) of which sizes (b n) count, to (b length).

    What is cut off at the end is shown and not asked; what is left over is padding.
    """
    ends = sizes.cumsum(1)
    places = torch.arange(length, device=tokens.device).expand(len(tokens), -1).contiguous()
    example = torch.searchsorted(ends, places, right=True)
    beyond = example >= sizes.shape[1]
    example = example.clamp_max(sizes.shape[1] - 1)
    end = ends.gather(1, example)
    offset = places - end + sizes.gather(1, example)
    flat = example * tokens.shape[2] + offset.clamp_max(tokens.shape[2] - 1)
    said = tokens.flatten(1).gather(1, flat).masked_fill(beyond, PADDING)
    asked = targets.flatten(1).gather(1, flat).masked_fill(beyond | (end > length), UNSCORED)
    return said, asked


def check_apart(**vocabularies: range) -> None:
    """Raise ValueError for a vocabulary that is not a range of whole numbers from 0 on, step 1,
    or that shares a token with one named before it."""
    seen: list[tuple[str, range]] = []
    for name, words in vocabularies.items():
        if not isinstance(words, range) or words.step != 1 or not words or words.start < 0:
            raise ValueError(f"{name}: expected a range of tokens >= 0 with step 1, got {words!r}")
        for other, taken in seen:
            if words.start < taken.stop and taken.start < words.stop:
                raise ValueError(f"{name}: expected tokens apart from {other}={taken}, got {words}")
        seen.append((name, words))


def check_span(name: str, span: int | tuple[int, int], low: int = 1) -> tuple[int, int]:
    """A number, or (least, most), as the latter. Raises ValueError unless low <= least <= most."""
    least, most = span if isinstance(span, tuple) else (span, span)
    check_number(low=low, whole=True, **{name: least})
    check_number(low=least, whole=True, **{f"most of {name}": most})
    return least, most
