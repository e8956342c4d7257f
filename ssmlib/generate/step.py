"""One token in, the next one out: the step that generation repeats, on a GPU as one CUDA graph.

A step of a small model is hundreds of launches, each of which takes the host longer than the GPU
needs for the work. A graph is one launch for all of them. It always reads and writes the same
places, so the state must stay where it is: that is what `LanguageModel.step_` is for.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ssmlib.generate.drawing import Drawing, pick
from ssmlib.model import LanguageModel

Step = Callable[[Tensor, Tensor], Tensor]


def make_step(
    model: nn.Module,
    state: Any,
    device: torch.device,
    drawing: Drawing,
    graph: bool | None = None,
) -> Step:
    """A function of tokens (b,) and uniform numbers (b,) that returns the next tokens (b,).

    state: the one before, of `LanguageModel.hold` for such a model, which is written over. graph:
    capture the step; None does for a `LanguageModel` on a GPU, if its layers let it. Raises
    ValueError for graph=True with another model or device.
    """
    able = isinstance(model, LanguageModel) and device.type == "cuda"
    if graph and not able:
        came = f"{type(model).__name__} on {device.type}"
        raise ValueError(f"graph: expected False but for a LanguageModel on a GPU, got {came}")
    if isinstance(model, LanguageModel):
        plain = _in_place(model, state, device, drawing)
        return Captured(plain, bool(graph)) if able and graph is not False else plain
    return _by_value(model, state, drawing)


class Captured:
    """A step whose first calls run as they are, and whose later ones replay a graph of it.

    The first calls compile kernels and let libraries make their workspaces, which no capture can.
    A layer that waits for a value, as some mixtures of experts do, cannot be captured: then steps
    go on as they are, or with must=True raise the RuntimeError that says so.
    """

    FIRST = 2

    def __init__(self, step: Step, must: bool = False):
        self.step, self.must, self.calls = step, must, 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, token: Tensor, uniform: Tensor) -> Tensor:
        with torch.cuda.device(token.device):
            return self._next(token, uniform)

    def _next(self, token: Tensor, uniform: Tensor) -> Tensor:
        self.calls += 1
        if self.calls <= self.FIRST:
            return self._beside(token, uniform)
        if self.calls == self.FIRST + 1:
            self._capture(token, uniform)
        if self.graph is None:
            return self.step(token, uniform)
        self.token.copy_(token)
        self.uniform.copy_(uniform)
        self.graph.replay()
        return self.drawn.clone()  # the next replay writes over it

    def _capture(self, token: Tensor, uniform: Tensor) -> None:
        """Nothing runs yet, so that a failure leaves the state as it was."""
        graph = torch.cuda.CUDAGraph()
        self.token, self.uniform = token.clone(), uniform.clone()
        try:
            with torch.cuda.graph(graph):
                self.drawn = self.step(self.token, self.uniform)
        except RuntimeError:
            if self.must:
                raise
        else:
            self.graph = graph

    def _beside(self, token: Tensor, uniform: Tensor) -> Tensor:
        """On a stream of its own, as libraries keep a workspace for each."""
        here, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            drawn = self.step(token, uniform)
        here.wait_stream(side)
        drawn.record_stream(here)
        return drawn


def _in_place(model: LanguageModel, state: Any, device: torch.device, drawing: Drawing) -> Step:
    def step(token: Tensor, uniform: Tensor) -> Tensor:
        return pick(model.step_(token[:, None], state)[:, -1], uniform, *drawing)

    def step_of_cpu(token: Tensor, uniform: Tensor) -> Tensor:
        with torch.inference_mode():  # what autograd writes down is a tenth of a step
            drawn = step(token, uniform)
        return drawn.clone()  # a tensor like others

    return step_of_cpu if device.type == "cpu" else step


def _by_value(model: nn.Module, state: Any, drawing: Drawing) -> Step:
    held = state

    def step(token: Tensor, uniform: Tensor) -> Tensor:
        nonlocal held
        logits, held = model(token[:, None], held)
        return pick(logits[:, -1], uniform, *drawing)

    return step
