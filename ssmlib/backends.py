"""Which implementation runs: one rule, in one place.

`"auto"` gives Triton for CUDA tensors where the operation has a Triton kernel and Triton is
installed, and the operation's default otherwise. A name never falls back to another.
"""

import importlib.util
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

HAS_TRITON = importlib.util.find_spec("triton") is not None
_FUNCTIONS: dict[Callable, type[torch.autograd.Function]] = {}  # of operators with a gradient


def interpreting() -> bool:
    """Whether Triton kernels run interpreted on the CPU.

    TRITON_INTERPRET=1 must be set before triton is first imported.
    """
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def resolve(
    backend: str, *tensors: Tensor, default: str = "torch", available: Iterable[str]
) -> str:
    """Return the name in `available` that runs for `backend` on these tensors.

    Raises ValueError for a name the operation does not have, and for "triton" where it cannot run.
    """
    names = list(available)
    if backend == "auto":
        on_gpu = all(x.is_cuda for x in tensors)
        return "triton" if "triton" in names and HAS_TRITON and on_gpu else default
    if backend not in names:
        raise ValueError(f"backend: expected one of {', '.join(['auto', *names])}, got {backend!r}")
    if backend == "triton":
        if not HAS_TRITON:
            raise ValueError(
                "backend: 'triton' needs the triton package: pip install 'ssmlib[gpu]'"
            )
        elsewhere = [str(x.device) for x in tensors if not x.is_cuda]
        if elsewhere and not interpreting():
            raise ValueError(
                f"backend: 'triton' needs CUDA tensors, got device {elsewhere[0]}; to interpret the"
                " kernel on a CPU, set TRITON_INTERPRET=1 before triton is imported"
            )
    return backend


def default_device(device: str | torch.device | None = None) -> torch.device:
    """The device, or CUDA if there is one, or the CPU. Raises ValueError on any other kind."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        chosen = torch.device(("cuda" if gpus else "cpu") if device is None else device)
    except (RuntimeError, TypeError):  # so torch refuses a name that it does not know
        chosen = None
    if chosen is None or chosen.type not in ("cuda", "cpu"):
        raise ValueError(f"device: expected 'cuda' or 'cpu', got {str(device)!r}")
    if chosen.type == "cuda" and (chosen.index or 0) >= gpus:
        raise ValueError(f"device: expected one of the {gpus} CUDA GPUs here, got {str(device)!r}")
    return chosen


def differentiable(operator: Callable, backward: Callable, keep: Callable) -> None:
    """Give a custom operator its gradient, and `call` a way to it that leaves the operator out.

    backward and keep are what `register_autograd` takes, backward and setup_context.
    """
    operator.register_autograd(backward, setup_context=keep)
    parts = {"forward": _function(operator), "setup_context": keep, "backward": backward}
    if parts["forward"] is not operator:
        methods = {name: staticmethod(part) for name, part in parts.items()}
        _FUNCTIONS[operator] = type("Function", (torch.autograd.Function,), methods)


def call(operator: Callable, *args: Any) -> Any:
    """operator(*args), of a custom operator; by its function itself where nobody looks on.

    An operator is for those who compile or transform what calls it, and for gradients that
    `differentiable` does not know. Where a kernel is short it takes the host longer than the GPU.
    """
    if alone(args):
        if not torch.is_grad_enabled():
            return _function(operator)(*args)
        if operator in _FUNCTIONS:
            return _FUNCTIONS[operator].apply(*args)
    elif not torch.compiler.is_compiling() and _pushed_forward():
        told = "gradients by reverse mode, got forward mode (torch.func.jvp or jacfwd)"
        raise NotImplementedError(f"{operator._qualname}: expected {told}")
    return operator(*args)


def _function(operator: Callable) -> Callable:
    return getattr(operator, "_init_fn", operator)


def alone(args: Iterable[Any]) -> bool:
    """Whether nobody compiles or transforms what is done with these; gradients are no matter."""
    if torch.compiler.is_compiling() or _watched():
        return False
    tensors = [x for x in args if isinstance(x, Tensor)]
    plain = all(type(x) in (Tensor, nn.Parameter) and not x.is_meta for x in tensors)
    return plain and not any(map(_batched, tensors))


def _watched() -> bool:
    """Whether a mode or a transform sees what is called; also if this PyTorch does not say so."""
    try:
        modes, transforms = torch._C._len_torch_dispatch_stack, torch._C._functorch
        return modes() > 0 or transforms.peek_interpreter_stack() is not None
    except AttributeError:
        return True


def _batched(x: Tensor) -> bool:
    """Whether it stands for many, as in `torch.autograd.grad(..., is_grads_batched=True)`."""
    try:
        return torch._C._functorch.is_legacy_batchedtensor(x)
    except AttributeError:
        return False


def _pushed_forward() -> bool:
    """Whether a transform pushes tangents forward; custom operators would lose them silently."""
    try:
        functorch = torch._C._functorch
        transforms, pushes = functorch.get_interpreter_stack(), functorch.TransformType.Jvp
    except AttributeError:
        return False
    return any(x.key() == pushes for x in transforms or ())
