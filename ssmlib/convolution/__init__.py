r"""Causal convolution along time: $y_t = \sum_{i \ge 0} K_i x_{t-i}$, one kernel per channel.

long       `direct_conv`, `fft_conv`: kernels of any length
causal     `causal_conv1d` and its single step: 2 to 16 taps, with bias, activation and state
taps       what `causal_conv1d` computes: its definition, and the fast form in PyTorch
operator   the fast forms as custom operators
"""

from ssmlib.convolution.causal import causal_conv1d, causal_conv1d_step, causal_conv1d_step_
from ssmlib.convolution.long import direct_conv, fft_conv

__all__ = [
    "causal_conv1d",
    "causal_conv1d_step",
    "causal_conv1d_step_",
    "direct_conv",
    "fft_conv",
]
