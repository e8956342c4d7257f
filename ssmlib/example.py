"""The eight tokens that run through the whole book.

To continue them, a reader goes back over two words of filler to a name. Attention looks the name
up; a state must have kept it; a selective state must have let the filler pass.
"""

import torch
from torch import Tensor

from ssmlib.shapes import check_number

TOKENS = ("my", "name", "is", "Ada", "um", "well", "call", "me")


def embed(d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the eight tokens as random vectors, (b, t, d) = (1, 8, d), made on the CPU.

    Raises ValueError for a d that is not a whole number >= 1.
    """
    check_number(low=1, whole=True, d=d)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, len(TOKENS), d, generator=generator, dtype=dtype)
