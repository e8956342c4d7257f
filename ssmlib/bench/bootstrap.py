"""How far a statistic of a sequence may be trusted, from the sequence alone."""

from collections.abc import Callable

import torch
from torch import Tensor

from ssmlib.shapes import check_number


def interval(
    statistic: Callable[..., Tensor],
    *series: Tensor,
    block: int = 256,
    draws: int = 400,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """statistic(*series), between the ends of its interval by a block bootstrap.

    series: tensors with one row per token, (t, ...), all of the same t. Neighbours depend on each
    other, so whole blocks of that many tokens are drawn again, with replacement (Künsch 1989); what
    is left at the end after the last whole block is not drawn. statistic returns one number.
    Returns the lower end, the statistic of the series as they are, the upper end.
    Raises ValueError for series of different t or fewer than two blocks, and a level outside 0 … 1.
    """
    check_number(low=1, whole=True, block=block, draws=draws)
    check_number(low=0, high=1, level=level)
    lengths = {len(x) for x in series}
    if len(lengths) != 1:
        raise ValueError(f"series: expected tensors of one t, got {sorted(lengths) or 'none'}")
    count = lengths.pop() // block
    if count < 2:
        raise ValueError(f"block: expected two blocks or more in t, got {count} of {block}")
    blocks = torch.arange(count * block).view(count, block)
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(draws):
        rows = blocks[torch.randint(count, (count,), generator=generator)].flatten()
        values.append(statistic(*(x[rows.to(x.device)] for x in series)))
    tail = (1 - level) / 2
    ends = torch.stack(values).double().flatten().cpu()
    low, high = ends.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, statistic(*series).item(), high
