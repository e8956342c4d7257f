"""The public kernels, where they are installed: what each is called, and how it is called."""

import importlib.util

import torch
from torch import Tensor


def installed(device: torch.device) -> list[str]:
    """The peers that can run on this device, each with its version."""
    if device.type != "cuda":
        return []
    found = []
    if _has("selective_scan_cuda") and _has("mamba_ssm"):  # its CUDA kernel is built on demand
        import mamba_ssm

        found.append(f"mamba-ssm {mamba_ssm.__version__}")
    if _has("causal_conv1d_cuda") and _has("causal_conv1d"):
        import causal_conv1d

        found.append(f"causal-conv1d {causal_conv1d.__version__}")
    return found


def mamba_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> Tensor:
    """mamba-ssm's CUDA kernel; x, dt, z (b d t), B, C (b n t), t contiguous."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn(x, dt, A, B, C, D=D, z=z, delta_bias=bias, delta_softplus=True)


def mamba_step(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    bias: Tensor,
) -> Tensor:
    """mamba-ssm's Triton kernel for one token; the state is updated in place."""
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    return selective_state_update(state, x, dt, A, B, C, D=D, z=z, dt_bias=bias, dt_softplus=True)


def conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """causal-conv1d's CUDA kernel; x (b d t)."""
    from causal_conv1d import causal_conv1d_fn

    return causal_conv1d_fn(x, weight, bias, activation="silu")


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
