"""Band-limited noise, and questions about its past.

After the generated memory tasks of Gu et al. 2022 ("How to train your HiPPO"), where a sequence is
one period of the noise: every frequency below the cutoff is in it, with a random size and phase.
"""

import math

import torch
from torch import Tensor

from ssmlib.shapes import check_number

Batch = tuple[Tensor, Tensor]


def white_noise(
    batch: int,
    length: int,
    cutoff: float,
    seed: int,
    rms: float = 0.5,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Return (b t) of float32: normal noise without mean, all frequencies up to `cutoff` alike.

    cutoff: in cycles per step, at most 1/2; it must leave one whole cycle in the length. rms: the
    root of the expected square. Raises ValueError on a number out of range.
    """
    check_number(low=1, whole=True, batch=batch, length=length)
    check_number(low=0, rms=rms)
    check_number(low=1 / length, high=0.5, cutoff=cutoff)
    cycles = math.floor(cutoff * length)
    generator = torch.Generator(device).manual_seed(seed)
    size, phase = torch.randn(2, batch, cycles, generator=generator, device=device)
    spectrum = torch.nn.functional.pad(torch.complex(size, phase), (1, 0))
    signal = torch.fft.irfft(spectrum, length, norm="forward")
    mirrored = 1 if 2 * cycles < length else 1 - 0.5 / cycles  # at 1/2, one cycle has no mirror
    return signal * (rms / math.sqrt(4 * cycles * mirrored))


def autocovariance(length: int, cutoff: float, rms: float = 0.5) -> Tensor:
    """The expectation of x_s x_{s+i} in `white_noise`, for i < length: (t,), float64."""
    cycles = math.floor(cutoff * length)
    comb = torch.zeros(length // 2 + 1, dtype=torch.complex128)
    comb[1 : cycles + 1] = 1
    raw = torch.fft.irfft(comb, length, norm="forward")
    return raw * (rms**2 / raw[0])


def delay(
    batch: int,
    length: int,
    lag: int,
    cutoff: float,
    seed: int,
    rms: float = 0.5,
    device: str | torch.device = "cpu",
) -> Batch:
    """Say at every step what came in `lag` steps ago: x (b t 1) to y (b t 1), 0 before that.

    Noise as in `white_noise`. Raises ValueError unless 0 <= lag < length.
    """
    check_number(low=0, high=length - 1, whole=True, lag=lag)
    x = white_noise(batch, length, cutoff, seed, rms, device)[..., None]
    return x, torch.cat([torch.zeros_like(x[:, :lag]), x[:, : length - lag]], dim=1)


def reconstruct(
    batch: int,
    length: int,
    memory: int,
    cutoff: float,
    seed: int,
    rms: float = 0.5,
    device: str | torch.device = "cpu",
) -> Batch:
    """Say at the end what the last `memory` inputs were: x (b t 1) to y (b w), oldest first.

    Noise as in `white_noise`. Raises ValueError unless 1 <= memory <= length.
    """
    check_number(low=1, high=length, whole=True, memory=memory)
    x = white_noise(batch, length, cutoff, seed, rms, device)
    return x[..., None], x[:, length - memory :]
