"""mamba-ssm's kernels for state space duality, where they are installed, and how each is called."""

import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmlib.bench.scan import peers
from ssmlib.mixers.mamba2 import Mamba2

CHUNKS = (256, 128)  # tokens; its own layer takes the first, the second is better for some shapes


def installed(device: torch.device) -> str | None:
    """The peer's name and version, if it can run on this device."""
    if device.type != "cuda" or importlib.util.find_spec("mamba_ssm") is None:
        return None
    import mamba_ssm

    return f"mamba-ssm {mamba_ssm.__version__}"


def fused_block(device: torch.device) -> str | None:
    """The names of the two packages that make its whole layer one function, if both are here."""
    name, others = installed(device), peers.installed(device)
    conv = [other for other in others if other.startswith("causal-conv1d")]
    return f"{name} + {conv[0]}" if name and conv else None


def scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, chunk: int
) -> Tensor:
    """mamba-ssm's Triton kernels; the axes are ours."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    return mamba_chunk_scan_combined(
        x, dt, A, B, C, chunk_size=chunk, D=D, dt_bias=bias, dt_softplus=True
    )


def step(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor
) -> Tensor:
    """mamba-ssm's Triton kernel for one token; the state is updated in place.

    It wants dt, A, D and the bias for each channel, and sees by their strides that they are tied.
    """
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    p, n = state.shape[2:]
    dt = dt[:, :, None].expand(-1, -1, p)
    A = A[:, None, None].expand(-1, p, n)
    D, bias = (v[:, None].expand(-1, p) for v in (D, bias))
    return selective_state_update(state, x, dt, A, B, C, D=D, dt_bias=bias, dt_softplus=True)


class Fused(Mamba2):
    """The layer by mamba-ssm's one function for all of it behind the first projection."""

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        from mamba_ssm.ops.triton.ssd_combined import mamba_split_conv1d_scan_combined

        y = mamba_split_conv1d_scan_combined(
            F.linear(x, self.in_proj.weight),
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            self.dt_bias,
            -torch.exp(self.A_log.float()),
            D=self.D,
            chunk_size=CHUNKS[0],
            activation="silu",
            rmsnorm_weight=self.norm.weight,
            rmsnorm_eps=self.config.norm_eps,
            outproj_weight=self.out_proj.weight,
            headdim=self.config.head_dim,
            ngroups=self.config.groups,
            norm_before_gate=self.config.norm_before_gate,
        )
        return y, None
