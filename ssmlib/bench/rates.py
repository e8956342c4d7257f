"""Two more rates that bound a kernel: exponentials, and plain instructions of one lane, per second.

Each program keeps its numbers in registers and does nothing but one operation, many times, on
enough independent numbers that no result is waited for.
"""

import torch
import triton
import triton.language as tl

from ssmlib.bench.timing import Ceilings, measure

PROGRAMS, WARPS, CHAINS, STEPS = 2112, 8, 8, 512
LANES = 32 * WARPS * CHAINS


@triton.jit
def exponentials_kernel(x_ptr, steps, LANES: tl.constexpr):
    """x <- 2^(-x), which stays between 0 and 1."""
    at = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    x = tl.load(x_ptr + at)
    for _ in range(steps):
        for _ in tl.static_range(8):
            x = tl.exp2(-x)
    tl.store(x_ptr + at, x)


@triton.jit
def multiply_adds_kernel(x_ptr, a, steps, LANES: tl.constexpr):
    """x <- a x + a, with a number a that the compiler does not know."""
    at = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    x = tl.load(x_ptr + at)
    for _ in range(steps):
        for _ in tl.static_range(8):
            x = x * a + a
    tl.store(x_ptr + at, x)


def with_rates(top: Ceilings, device: torch.device, time_s: float = 0.2) -> Ceilings:
    """`top`, with special_per_s and lanes_per_s measured on this GPU."""
    x = torch.rand(PROGRAMS * LANES, device=device)
    count, grid = x.numel() * STEPS * 8, (PROGRAMS,)
    special = measure(
        lambda: exponentials_kernel[grid](x, STEPS, LANES=LANES, num_warps=WARPS),
        time_s=time_s,
        device=device,
    )
    lanes = measure(
        lambda: multiply_adds_kernel[grid](x, 0.5, STEPS, LANES=LANES, num_warps=WARPS),
        time_s=time_s,
        device=device,
    )
    return top._replace(special_per_s=count / special.median, lanes_per_s=count / lanes.median)
