r"""A few rows through a matrix, as decoding has them: $y = p + W\,\mathrm{norm}(x) + b$.

Reading W is all that counts then. So what stands beside the product is done in its launch: the norm
before, the sum with what comes past, and for some of the outputs a step of a short convolution. A
program holds BLOCK rows of W whole in its registers, and all rows of x go past them. It is a single
warp where it can be, so that no warp waits for another.

On a Hopper GPU a launch need not wait for the one before (programmatic dependent launch). Programs
begin while that one runs, read their part of W, and only then wait for it; nothing that a step
writes may be read before.

x (b i), y and p (b o), W (o i); the convolution's channels are outputs from `first` on, its taps
(d w) and its state (b d w-1), of which the oldest is first and which is written over.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda

from ssmlib.kernels.sizes import cdiv, power_of_2

HELD = 8192  # bytes of W in a warp


@triton.jit
def rows_kernel(
    x_ptr, w_ptr, bias_ptr, norm_ptr, past_ptr, taps_ptr, taps_bias_ptr, state_ptr, y_ptr,
    outputs, first, channels, eps, offset, x_row, past_row, state_row, state_channel, state_tap,
    ROWS: tl.constexpr, SIZE: tl.constexpr, PAD: tl.constexpr, BLOCK: tl.constexpr,
    OLD: tl.constexpr, SILU: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK outputs of all rows. OLD: inputs that the convolution remembers."""
    o, i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, PAD)
    real, inside = o < outputs, i < SIZE
    at = w_ptr + o[:, None].to(tl.int64) * SIZE + i[None, :]
    w = tl.load(at, mask=real[:, None] & inside[None, :], other=0.0)
    gain = 1.0
    if norm_ptr is not None:
        gain = tl.load(norm_ptr + i, mask=inside, other=0.0).to(tl.float32) + offset
    if EARLY:
        if OLD == 0:
            cuda.gdc_launch_dependents()
        cuda.gdc_wait()
        if OLD > 0:
            cuda.gdc_launch_dependents()
    for row in tl.static_range(ROWS):
        x = tl.load(x_ptr + row * x_row + i, mask=inside, other=0.0).to(tl.float32)
        if norm_ptr is not None:
            x = x * gain / tl.sqrt(tl.sum(x * x, 0) / SIZE + eps)
        y = tl.sum(w.to(tl.float32) * x[None, :], 1)
        if bias_ptr is not None:
            y += tl.load(bias_ptr + o, mask=real, other=0.0).to(tl.float32)
        if past_ptr is not None:
            y += tl.load(past_ptr + row * past_row + o, mask=real, other=0.0).to(tl.float32)
        y = y.to(y_ptr.dtype.element_ty)
        if state_ptr is not None:
            channel = o - first
            mixed = (channel >= 0) & (channel < channels)
            new = convolved(
                y, taps_ptr + channel * (OLD + 1), taps_bias_ptr, channel,
                state_ptr + row * state_row + channel * state_channel, state_tap, mixed, OLD, SILU,
            )  # fmt: skip
            y = tl.where(mixed, new.to(y.dtype), y)
        tl.store(y_ptr + row * outputs + o, y, mask=real)


@triton.jit
def convolved(
    x, taps_ptr, bias_ptr, channel, state_ptr, state_tap, mask,
    OLD: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """The newest output, and x behind the inputs that are remembered."""
    y = x.to(tl.float32) * tl.load(taps_ptr + OLD, mask=mask, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + channel, mask=mask, other=0.0).to(tl.float32)
    for j in tl.static_range(OLD):
        old = tl.load(state_ptr + j * state_tap, mask=mask, other=0.0).to(tl.float32)
        y += old * tl.load(taps_ptr + j, mask=mask, other=0.0).to(tl.float32)
    tl.debug_barrier()  # many threads read a channel, and one of them writes it
    for j in tl.static_range(1, OLD):
        old = tl.load(state_ptr + j * state_tap, mask=mask)
        tl.store(state_ptr + (j - 1) * state_tap, old, mask=mask)
    tl.store(state_ptr + (OLD - 1) * state_tap, x.to(state_ptr.dtype.element_ty), mask=mask)
    return y * tl.sigmoid(y) if SILU else y


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Tensor | None,
    eps: float,
    offset: float,
    past: Tensor | None,
    taps: Tensor | None = None,
    taps_bias: Tensor | None = None,
    state: Tensor | None = None,
    first: int = 0,
    silu: bool = False,
) -> Tensor:
    """y (b o) of x (b i), each row of which is contiguous."""
    (rows, size), outputs = x.shape, len(weight)
    y = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    pad = power_of_2(size)
    warps, early = min(rows, 2), starts_early(x.device)
    block = cdiv(warps * HELD, pad * weight.element_size())
    channels, old = (0, 0) if state is None else state.shape[1:]
    rows_kernel[(cdiv(outputs, block),)](
        x, weight.contiguous(), bias, norm, past, None if taps is None else taps.contiguous(),
        taps_bias, state, y, outputs, first, channels, eps, offset, x.stride(0),
        0 if past is None else past.stride(0), *((0, 0, 0) if state is None else state.stride()),
        ROWS=rows, SIZE=size, PAD=pad, BLOCK=block, OLD=old, SILU=silu, EARLY=early,
        num_warps=warps, **({"launch_pdl": True} if early else {}),
    )  # fmt: skip
    return y


def starts_early(device: torch.device) -> bool:
    """Whether a launch may begin before the one ahead is done."""
    able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return able and hasattr(cuda, "gdc_wait")
