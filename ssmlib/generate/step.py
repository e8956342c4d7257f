"""One token in, the next one out: the step that generation repeats."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ssmlib.generate.drawing import Drawing, pick

Step = Callable[[Tensor, Tensor], Tensor]


def make_step(
    model: nn.Module,
    state: Any,
    token: Tensor,
    count: int,
    drawing: Drawing,
    graph: bool | None = None,
) -> Step:
    """A function of the tokens (b,) and uniform numbers (b,) that returns the next tokens (b,)."""
    held = state

    def step(token: Tensor, uniform: Tensor) -> Tensor:
        nonlocal held
        logits, held = model(token[:, None], held)
        return pick(logits[:, -1], uniform, *drawing)

    return step
