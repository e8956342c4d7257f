"""The eight tokens that run through the whole book.

To continue them, a reader goes back over two words of filler to a name. Attention looks the name
up; a state must have kept it; a selective state must have let the filler pass.
"""

import torch
from torch import Tensor

TOKENS = ("my", "name", "is", "Ada", "um", "well", "call", "me")


def embed(d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the eight tokens as random vectors, (b, t, d) = (1, 8, d), made on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, len(TOKENS), d, generator=generator, dtype=dtype)
