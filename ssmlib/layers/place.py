"""States as places: decoding that writes the next state over the one before.

A mixer may have a `step_` that does so by itself, and a `hold` that makes the place; for all others
the next state is computed as ever, and copied over. Either way the memory stays the same from token
to token, and a CUDA graph can hold the step, if no cache among the states grows.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map


def hold(module: nn.Module, state: Any, room: int) -> Any:
    """A copy of the state that `step_` may write over, with room for so many more tokens."""
    if hasattr(module, "hold"):
        return module.hold(state, room)
    return tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, state)


def step_(module: nn.Module, x: Tensor, state: Any) -> Tensor:
    """What the module makes of one token x (b 1 d), its next state written over `state`.

    Raises ValueError for a state that does not keep its shape.
    """
    if hasattr(module, "step_"):
        return module.step_(x, state)
    y, new = module(x, state)
    overwrite(state, new)
    return y


def overwrite(state: Any, new: Any) -> None:
    """Copy every tensor of `new` over the one in its place in `state`."""
    for old, x in zip(tree_leaves(state), tree_leaves(new), strict=True):
        if isinstance(old, Tensor):
            if old.shape != x.shape:
                told = f"expected shape {tuple(old.shape)} as before"
                raise ValueError(f"state: {told}, to write over, got {tuple(x.shape)}")
            with torch.no_grad():
                old.copy_(x)
        elif old != x:
            raise ValueError(f"state: expected {old!r} as before, to write over, got {x!r}")
