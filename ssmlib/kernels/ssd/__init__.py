r"""State space duality on a GPU: forward, backward, and one token.

$$h_t = e^{\Delta_t A} h_{t-1} + \Delta_t x_t B_t^\top, \qquad
y_t = (h_t C_t + D x_t)\, \mathrm{silu}(z_t)$$

Forward. One program walks through the chunks of a head, its state (p n) the accumulator of a matrix
product, so that a state never is in memory between chunks. What a chunk of Q tokens costs beside
products with the state is Q exponentials and 2 (n + p) Q multiply-adds for a token: a short chunk
is cheap, and Q = 32, or 64 for n <= 64, leaves registers for two programs on a multiprocessor.
With n > 128 a state leaves too few, and a program takes half of the channels: that is slow. C Bᵀ is
made anew for each head of a group. A program moves, in bytes per (b, t, h, p), with s bytes per
number:

| launch | reads | writes |
|---|---|---|
| `decay_kernel` | dt: s / p | steps and decays: 8 / p |
| `chunks_kernel` | x, z: 2 s, B, C: 2 s n / p, `decay_kernel`'s: 8 / p | y: s, h: s n / KEEP |
| `chunks_kernel` without y, `carry_kernel` | x: s, B: s n / p | one state for each segment |
| `step_kernel` | the state: 4 n, for t = 1 | the state: 4 n |

A group's heads find B and C in the cache, which read them from memory once; h is kept where there
will be a backward pass.

Too few heads to fill the GPU: each sequence is cut into segments that run side by side, first for
what each makes of a state of zero, then for y. A last round of programs that would fill it badly:
segments are shorter, and a relay. See `layout.cut`. Every sum is taken in a fixed order: the same
inputs give the same bits.
"""

from ssmlib.kernels.ssd.backward import backward
from ssmlib.kernels.ssd.forward import forward
from ssmlib.kernels.ssd.layout import saved_dtype, saved_shape
from ssmlib.kernels.ssd.step import step, step_

__all__ = ["backward", "forward", "saved_dtype", "saved_shape", "step", "step_"]
