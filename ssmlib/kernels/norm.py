r"""RMS norm on a GPU, $y = x\,r\,(w + o)$ with $r = (\overline{x^2} + \epsilon)^{-1/2}$.

With $u = (w + o)\,\bar y$ its gradients are $\bar x = r u - r^3 x\, \overline{x u}$ and
$\bar w = \sum_{\text{rows}} r x \bar y$. A program holds a row in registers, in float32, and reads
and writes it once in its own dtype; r is made again for the gradient. The sum over rows stays in
registers along a program's rows; the programs' parts are added in order: the same bits every time.

x, y (rows d), each row contiguous; w (d,).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmlib.kernels.sizes import power_of_2

PROGRAMS = 528  # of the gradient: four for each of an H100's multiprocessors


@triton.jit
def norm_kernel(
    x_ptr, w_ptr, y_ptr, x_row, eps, offset, D: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row, k = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = k < D
    x = tl.load(x_ptr + row * x_row + k, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + k, mask=inside, other=0.0).to(tl.float32) + offset
    y = x * w / tl.sqrt(tl.sum(x * x, 0) / D + eps)
    tl.store(y_ptr + row * D + k, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def norm_backward_kernel(
    dy_ptr, x_ptr, w_ptr, dx_ptr, dw_ptr, dy_row, x_row, rows, eps, offset,
    D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    k = tl.arange(0, BLOCK)
    inside = k < D
    w = tl.load(w_ptr + k, mask=inside, other=0.0).to(tl.float32) + offset
    dw = tl.zeros([BLOCK], tl.float32)
    for at in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.cast(at, tl.int64)
        dy = tl.load(dy_ptr + row * dy_row + k, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + row * x_row + k, mask=inside, other=0.0).to(tl.float32)
        r = 1.0 / tl.sqrt(tl.sum(x * x, 0) / D + eps)
        dw += r * x * dy
        u = w * dy
        dx = r * u - r * r * r * x * (tl.sum(x * u, 0) / D)
        tl.store(dx_ptr + row * D + k, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    tl.store(dw_ptr + tl.program_id(0) * D + k, dw, mask=inside)


def forward(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    rows, d = x.shape
    y = torch.empty(rows, d, dtype=x.dtype, device=x.device)
    norm_kernel[(rows,)](x, weight, y, x.stride(0), eps, offset, **_sizes(d))
    return y


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, eps: float, offset: float
) -> tuple[Tensor, Tensor]:
    """The gradients of x and weight."""
    rows, d = x.shape
    programs = min(rows, PROGRAMS)
    dx = torch.empty(rows, d, dtype=x.dtype, device=x.device)
    dw = torch.empty(programs, d, dtype=torch.float32, device=x.device)
    strides = (dy.stride(0), x.stride(0))
    norm_backward_kernel[(programs,)](
        dy, x, weight, dx, dw, *strides, rows, eps, offset, **_sizes(d)
    )
    return dx, dw.sum(0).to(weight.dtype)


def _sizes(d: int) -> dict[str, int]:
    block = power_of_2(d)
    return {"D": d, "BLOCK": block, "num_warps": min(max(block // 512, 1), 16)}
