"""States as places: decoding that writes the next state over the one before.

A mixer may have a `step_` that does so by itself, and a `hold` that makes the place; for all others
the next state is computed as ever, and copied over. Either way the memory stays the same from token
to token, and a CUDA graph can hold the step. A state that grows, and has no room of its own, takes
the place of the one before: that is right, but no graph can hold it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map


def hold(module: nn.Module, state: Any, room: int) -> Any:
    """A copy of the state that `step_` may write over, with room for so many more tokens."""
    if hasattr(module, "hold"):
        return module.hold(state, room)
    copy = tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, state)
    return copy if hasattr(module, "step_") else [copy]


def step_(module: nn.Module, x: Tensor, place: Any) -> Tensor:
    """What the module makes of one token x (b 1 d), its next state written over `place`.

    Raises RuntimeError for a state that grows while a CUDA graph is captured.
    """
    if hasattr(module, "step_"):
        return module.step_(x, place)
    y, new = module(x, place[0])
    if not _overwrite(place[0], new):
        if _on_gpu(new) and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(f"{type(module).__name__}: a graph cannot hold a state that grows")
        place[0] = new
    return y


def _on_gpu(state: Any) -> bool:
    return any(isinstance(x, Tensor) and x.is_cuda for x in tree_flatten(state)[0])


@torch.no_grad()
def _overwrite(state: Any, new: Any) -> bool:
    """Copy every tensor of `new` over the one in its place, unless something is not alike."""
    (old, before), (leaves, after) = tree_flatten(state), tree_flatten(new)
    if before != after or not all(map(_alike, old, leaves)):
        return False
    for x, y in zip(old, leaves, strict=True):
        if isinstance(x, Tensor):
            x.copy_(y)
    return True


def _alike(x: Any, y: Any) -> bool:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return x.shape == y.shape and x.dtype == y.dtype
    return type(x) is type(y) and x == y
