"""The next token from its logits: which tokens may be drawn, and the drawing.

One uniform number decides a draw, so what a row of a batch says depends on its own number and its
own logits and on nothing else of the batch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ssmlib.shapes import check, check_number


class Drawing(NamedTuple):
    """How a token is drawn from logits, see `sample`."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def check(self) -> None:
        check_number(low=0, temperature=self.temperature)
        if self.top_k is not None:
            check_number(low=1, whole=True, top_k=self.top_k)
        if self.top_p is not None:
            check_number(low=0, high=1, top_p=self.top_p)
            if self.top_p == 0:
                raise ValueError(f"top_p: expected a number above 0, got {self.top_p}")


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw tokens (b,) from softmax(logits / temperature), logits (b v).

    temperature: 0 takes the likeliest. top_k: draw from so many of the likeliest alone. top_p: from
    the fewest likeliest whose probabilities, after top_k, sum to at least so much (Holtzman et al.
    2020). Raises ValueError for a temperature < 0, top_k < 1, and a top_p that is not in (0, 1].
    """
    b = check(logits=(logits, "b v"))["b"]
    Drawing(temperature, top_k, top_p).check()
    uniform = torch.rand(b, generator=generator, device=logits.device)
    return pick(logits, uniform, temperature, top_k, top_p)


def pick(
    logits: Tensor,
    uniform: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """The token of each row where the distribution function passes uniform (b,), from [0, 1).

    No random number, no branch on a value, nothing read back: a CUDA graph can hold it.
    """
    check(logits=(logits, "b v"), uniform=(uniform, "b"))
    if temperature == 0 or top_k == 1:
        return logits.argmax(-1)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    which = None
    if top_k is not None or top_p is not None:
        wide, which = wide.topk(min(top_k or wide.shape[-1], wide.shape[-1]))
    cold = max(temperature, torch.finfo(wide.dtype).tiny)
    share = torch.softmax((wide - wide.amax(-1, keepdim=True)) / cold, dim=-1)
    # float32 sums of a vocabulary differ with the order that a GPU adds in, and a draw with them
    share = share.to(torch.float32 if share.device.type == "mps" else torch.float64)
    if top_p is not None:
        share = share.where(share.cumsum(-1) - share < top_p, 0)  # the likelier ones have less
    below = share.cumsum(-1)
    total = below[:, -1:]
    target = (uniform[:, None] * total).minimum(torch.nextafter(total, torch.zeros_like(total)))
    drawn = (below <= target).sum(-1, keepdim=True)  # the first that passes it: its share is not 0
    return (drawn if which is None else which.gather(1, drawn))[:, 0]


def uniforms(b: int, steps: int, seed: int | Sequence[int] | None, device: torch.device) -> Tensor:
    """The numbers (b, steps) in [0, 1) that all draws use, one row for each member of the batch.

    seed: of the first row, the others count on from it; or one for each row. With None, torch's own
    random numbers go on.
    """
    if seed is None:
        return torch.rand(b, steps, device=device)
    rows = (torch.Generator().manual_seed(s) for s in seeds_of(seed, b))
    return torch.stack([torch.rand(steps, generator=row) for row in rows]).to(device)


def seeds_of(seed: int | Sequence[int], b: int) -> list[int]:
    """A seed for each of b rows, see `uniforms`."""
    seeds = [seed + i for i in range(b)] if isinstance(seed, int) else list(seed)
    if len(seeds) != b:
        raise ValueError(f"seed: expected one, or one for each of {b} rows, got {len(seeds)}")
    return seeds
