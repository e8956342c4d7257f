r"""RMS norm under a gate on a GPU: $o = \mathrm{norm}(y\,\mathrm{silu}(z))$, or
$\mathrm{norm}(y)\,\mathrm{silu}(z)$.

With v for what is normed, w for the weight and $r = (\overline{v^2} + \epsilon)^{-1/2}$, the norm
is v r w. Where $\bar n$ is its gradient,

$$\bar v = r w \bar n - r^3 v\, \overline{v w \bar n}, \qquad
\bar w = \sum_{\text{rows}} r v \bar n$$

A program walks rows of one group and holds a whole row of it in registers. The gradient makes v and
r again from y and z, so that nothing is kept for it. The weight's gradient stays in registers along
the way; each program writes its part, and the parts are added in order: the same bits every time.

y, z, o (rows d), each row contiguous; w (d,); d is g groups of SIZE channels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmlib.kernels.sizes import power_of_2

PROGRAMS = 4  # on a multiprocessor, of those that add up a gradient of the weight


@triton.jit
def _gate(z):
    """silu, and its derivative."""
    s = tl.sigmoid(z)
    return z * s, s * (1.0 + z * (1.0 - s))


@triton.jit
def norm_kernel(
    y_ptr,
    z_ptr,
    w_ptr,
    out_ptr,
    y_row,
    z_row,
    d,
    eps,
    SIZE: tl.constexpr,
    GATE_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One program: a row of one group."""
    row, channel = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside, channel = channel < SIZE, tl.program_id(1) * SIZE + channel
    y = tl.load(y_ptr + row * y_row + channel, mask=inside, other=0.0).to(WIDE)
    z = tl.load(z_ptr + row * z_row + channel, mask=inside, other=0.0).to(WIDE)
    w = tl.load(w_ptr + channel, mask=inside, other=0.0).to(WIDE)
    gate = z * tl.sigmoid(z)
    v = y if GATE_LAST else y * gate
    out = v * w / tl.sqrt(tl.sum(v * v, 0) / SIZE + eps)
    out = out * gate if GATE_LAST else out
    tl.store(out_ptr + row * d + channel, out, mask=inside)


@triton.jit
def norm_backward_kernel(
    dout_ptr,
    y_ptr,
    z_ptr,
    w_ptr,
    dy_ptr,
    dz_ptr,
    dw_ptr,
    dout_row,
    y_row,
    z_row,
    d,
    rows,
    eps,
    SIZE: tl.constexpr,
    GATE_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One program: every so-manieth row of one group."""
    channel = tl.arange(0, BLOCK)
    inside, channel = channel < SIZE, tl.program_id(1) * SIZE + channel
    w = tl.load(w_ptr + channel, mask=inside, other=0.0).to(WIDE)
    dw = tl.zeros([BLOCK], WIDE)
    for at in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.cast(at, tl.int64)
        dout = tl.load(dout_ptr + row * dout_row + channel, mask=inside, other=0.0).to(WIDE)
        y = tl.load(y_ptr + row * y_row + channel, mask=inside, other=0.0).to(WIDE)
        z = tl.load(z_ptr + row * z_row + channel, mask=inside, other=0.0).to(WIDE)
        gate, slope = _gate(z)
        v = y if GATE_LAST else y * gate
        r = 1.0 / tl.sqrt(tl.sum(v * v, 0) / SIZE + eps)
        dn = dout * gate if GATE_LAST else dout
        dw += r * v * dn
        dv = r * w * dn - r * r * r * v * (tl.sum(v * w * dn, 0) / SIZE)
        dgate = dout * v * r * w if GATE_LAST else dv * y
        dy = dv if GATE_LAST else dv * gate
        tl.store(dy_ptr + row * d + channel, dy, mask=inside)
        tl.store(dz_ptr + row * d + channel, dgate * slope, mask=inside)
    tl.store(dw_ptr + tl.program_id(0) * d + channel, dw, mask=inside)


def forward(
    y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float, gate_last: bool
) -> Tensor:
    """The norm of y (rows d) under z (rows d), in the dtype of y."""
    rows, d = y.shape
    out = torch.empty((rows, d), dtype=y.dtype, device=y.device)
    sizes = _sizes(y, d // groups)
    norm_kernel[rows, groups](
        y,
        z,
        weight.contiguous(),
        out,
        y.stride(0),
        z.stride(0),
        d,
        eps,
        GATE_LAST=gate_last,
        **sizes,
    )
    return out


def backward(
    dout: Tensor, y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float, gate_last: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of y, z and weight."""
    rows, d = y.shape
    dy, dz = (torch.empty((rows, d), dtype=v.dtype, device=y.device) for v in (y, z))
    sizes = _sizes(y, d // groups)
    programs = min(rows, _programs(y.device) // groups + 1)
    wide = torch.float64 if y.dtype == torch.float64 else torch.float32
    parts = torch.empty((programs, d), dtype=wide, device=y.device)
    strides = dout.stride(0), y.stride(0), z.stride(0)
    norm_backward_kernel[programs, groups](
        dout, y, z, weight.contiguous(), dy, dz, parts, *strides, d, rows, eps,
        GATE_LAST=gate_last, **sizes,
    )  # fmt: skip
    return dy, dz, parts.sum(0).to(weight.dtype)


def _sizes(y: Tensor, size: int) -> dict:
    block = power_of_2(size)
    wide = tl.float64 if y.dtype == torch.float64 else tl.float32
    warps = min(max(block // 512, 1), 16)
    return {"SIZE": size, "BLOCK": block, "WIDE": wide, "num_warps": warps}


def _programs(device: torch.device) -> int:
    if device.type != "cuda":
        return PROGRAMS
    return PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count
