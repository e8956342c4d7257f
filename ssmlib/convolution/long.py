r"""Causal convolution with a kernel of any length: $y_t = \sum_{i \ge 0} K_i x_{t-i}$.

- `direct_conv`: the definition, every product; t times the kernel's length per channel.
- `fft_conv`: the same sum through the frequency domain, in O(t log t) per channel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmlib.shapes import check, check_floating


def direct_conv(x: Tensor, kernel: Tensor) -> Tensor:
    """Sum K_i x_{t-i} directly: x (b t d), kernel (d w) with w <= t taps; returns (b t d).

    Half precision is computed in float32. Raises ValueError as `fft_conv` does.
    """
    wide = _check(x, kernel=kernel)
    padded = F.pad(x.mT.to(wide), (kernel.shape[1] - 1, 0))
    y = F.conv1d(padded, kernel.flip(1)[:, None].to(wide), groups=len(kernel))
    return y.mT.to(x.dtype)


def fft_conv(x: Tensor, kernel: Tensor, *, future: Tensor | None = None) -> Tensor:
    """Convolve x (b t d) with kernel (d w), w <= t, causally and exactly; returns (b t d).

    A product of spectra is a circular convolution, whose end runs into its beginning. Both are
    padded with zeros up to t + w, so that what comes around meets only zeros. With future (d w),
    y_t also gets the sum of future_i x_{t+1+i}: the other direction of a bidirectional layer.
    Half precision is computed in float32. Differentiable in all three.
    Raises ValueError for shapes that disagree, more taps than tokens, and dtypes that are not real
    floating point.
    """
    wide = _check(x, kernel=kernel, future=future)
    t, taps = x.shape[1], kernel.shape[1]
    if future is not None:
        future = F.pad(future, (1, 0))  # its first tap is for the next token
        taps = max(taps, future.shape[1])
    n = _fast_length(t + taps - 1)
    response = torch.fft.rfft(kernel.to(wide), n)
    if future is not None:
        response = response + torch.fft.rfft(future.to(wide), n).conj()  # conj turns time around
    spectrum = torch.fft.rfft(x.to(wide), n, dim=1)
    return torch.fft.irfft(spectrum * response.mT, n, dim=1)[:, :t].to(x.dtype)


def _check(x: Tensor, **kernels: Tensor | None) -> torch.dtype:
    """Check x and its kernels, and return the dtype to compute in, at least float32."""
    given = {name: kernel for name, kernel in kernels.items() if kernel is not None}
    wide = torch.float32
    for name, kernel in given.items():
        sizes = check(x=(x, "b t d"), **{name: (kernel, "d w")})
        check_floating(x=x, **{name: kernel})
        if sizes["w"] > sizes["t"]:
            told, came = f"at most t={sizes['t']} taps (from x)", tuple(kernel.shape)
            raise ValueError(f"{name}: expected {told}, got shape {came}")
        wide = torch.promote_types(wide, torch.promote_types(x.dtype, kernel.dtype))
    return wide


def _fast_length(n: int) -> int:
    """The next length that is 4, 5, 6 or 7 times a power of two: no FFT has a large prime then."""
    step = max(1, 2 ** ((n - 1).bit_length() - 3))
    return -(-n // step) * step
