"""What a step of decoding makes of a parameter alone, made once and not at every token."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Keeper(nn.Module):
    """A layer that forgets what `once` has kept for it when `train` or `eval` is called.

    Fused optimizers, and updates that are replayed as a CUDA graph, write to a parameter and leave
    no trace of it; but who trains a model calls `train` before.
    """

    def train(self, mode: bool = True) -> "Keeper":
        self.__dict__.pop("_made_once", None)
        return super().train(mode)


def once(owner: Keeper, parameter: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
    """make(parameter), which an owner in `eval` mode keeps until somebody writes to the parameter.

    In training, where a gradient is wanted, or where a compiler looks on, it is made anew.
    """
    if (
        owner.training
        or torch.compiler.is_compiling()
        or (torch.is_grad_enabled() and parameter.requires_grad)
        or parameter.is_inference()
        or not isinstance(parameter, nn.Parameter)  # a transform's stand-in, without memory
        or type(parameter.detach()) is not Tensor
    ):
        return make(parameter)
    key = (parameter.data_ptr(), parameter._version, parameter.dtype, parameter.device, make)
    kept = owner.__dict__.get("_made_once", {})
    if key not in kept:
        with torch.inference_mode(False), torch.no_grad():  # it may be read outside that mode
            made = make(parameter.detach())
        if parameter.is_cuda and torch.cuda.is_current_stream_capturing():
            return made  # it is the graph's, and is not made before the graph runs
        owner.__dict__["_made_once"] = kept = {key: made}  # one: the others are of the past
    return kept[key]
