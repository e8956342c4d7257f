"""One update of a model, as it is or recorded once and replayed as a CUDA graph."""

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ssmlib.train.config import TrainConfig, param_groups
from ssmlib.train.task import loss

WARMUP = 3  # updates before the capture: libraries set themselves up in the first ones

Step = Callable[[Tensor, Tensor], Tensor]


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over `param_groups`; if captured, with learning rates that a graph can read."""
    groups = param_groups(model, config)
    if not groups:
        raise ValueError("model: expected parameters that require gradients, got none")
    device = groups[0]["params"][0].device
    if config.captured and device.type != "cuda":
        raise ValueError(f"captured: a CUDA graph needs a model on a GPU, got {device}")
    if config.captured:
        for group in groups:
            group["lr"] = torch.tensor(group["lr"], device=device)
    return torch.optim.AdamW(
        groups, betas=config.betas, fused=device.type == "cuda", capturable=config.captured
    )


def set_lr(optimizer: torch.optim.Optimizer, scale: float) -> None:
    """Each group's learning rate: its highest, times scale."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(group["top"] * scale)
        else:
            group["lr"] = group["top"] * scale


def autocast(device: torch.device, config: TrainConfig) -> torch.autocast:
    """Matrix products in bfloat16 if the config says so; nothing is cached, for graphs' sake."""
    return torch.autocast(
        device.type, torch.bfloat16, enabled=config.precision == "bfloat16", cache_enabled=False
    )


def make_step(model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig) -> Step:
    """A function of (inputs, targets) that updates the model and returns the loss before that.

    On a CPU an update that is no number is not made, and NaN is returned; on a GPU, where looking
    would stop the queue, NaN spreads.
    """
    learned = [p for group in optimizer.param_groups for p in group["params"]]
    careful = not learned[0].is_cuda

    def step(inputs: Tensor, targets: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with autocast(inputs.device, config):
            outputs, _ = model(inputs)
            value = loss(outputs, targets)
        value.backward()
        if careful or config.clip is not None:
            norm = nn.utils.clip_grad_norm_(learned, config.clip or math.inf)
            if careful and not math.isfinite(norm + value.detach()):
                return torch.full_like(value, math.nan)
        optimizer.step()
        return value.detach()

    return CapturedStep(step, optimizer) if config.captured else step


class CapturedStep:
    """The first calls update as they are, on a stream of their own; then one is recorded, and run.

    Batches must keep their shapes. The loss that a call returns is overwritten by the next one.
    """

    def __init__(self, step: Step, optimizer: torch.optim.Optimizer):
        self.step, self.optimizer, self.calls = step, optimizer, 0
        self.stream = torch.cuda.Stream()
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        if self.calls <= WARMUP:
            return self._aside(inputs, targets)
        if self.graph is None:
            self._capture(inputs, targets)
        self.inputs.copy_(inputs)
        self.targets.copy_(targets)
        self.graph.replay()
        return self.value

    def _aside(self, inputs: Tensor, targets: Tensor) -> Tensor:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*capturable=True.*")  # it will be, soon
            value = self.step(inputs, targets)
        torch.cuda.current_stream().wait_stream(self.stream)
        return value

    def _capture(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs.clone(), targets.clone()
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):  # its own workspace for products
            self.value = self.step(self.inputs, self.targets)
        self.graph = graph
