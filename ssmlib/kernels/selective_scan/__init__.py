r"""The selective scan on a GPU: forward, backward, and one token.

$$h_t = e^{\Delta_t A} h_{t-1} + \Delta_t B_t x_t, \qquad
y_t = (C_t h_t + D x_t)\, \mathrm{silu}(z_t)$$

There are b t d n exponentials and only b t d numbers to read, so that the special-function unit
binds before memory does, and instructions bind soon after it. Hence the layout: one warp takes 32
channels, one to a lane, and walks through time. A channel's n states are registers of its lane.
softplus, silu and their loads, which need no state, are done for a tile of T tokens at once: as
many independent chains as there are tokens, whose latencies overlap. The rows of a tile lie in the
registers of one lane, so that taking one of them, `parts.row`, is no instruction. B_t and C_t are
the same for all lanes; a row of both is asked for a tile ahead, one register of each lane.

The backward pass turns the loops inside out: in a tile, one state index after the other, and per
index a scan of T tokens forward for h and one backward for its gradient, both within a lane. That
way a, h and the gradient of h are T registers each, and the sums over channels that dB and dC want
are one small matrix product with ones per index, which adds across lanes. h is not kept for every
token: the forward pass keeps it every CHUNK tokens, and a program makes the others again.

What each launch moves, in bytes per (b, t, d), with s bytes per number and w = 32 channels:

| launch | reads | writes |
|---|---|---|
| `scan_kernel` | x, dt, z: 3 s | y: s, h: 4 n / CHUNK if there will be a backward pass |
| `scan_kernel` without y, `ends_kernel` | 2 s, 3 s | one state for each segment |
| `gradient_kernel` | 4 s, x and dt again: 2 s, h: 4 n / CHUNK | 3 s, dB and dC in shares: 8 n / w |
| `gather_kernel` | the shares: 8 n / w | dB and dC |
| `step_kernel` | h: 4 n, for t = 1 | h: 4 n |

A sequence is cut into segments only where there are too few channels to fill the GPU. Then each
segment is first run through for what it makes of a state of zero; `carry_kernel` walks over the
segments, decaying a state by e^(A sum of dt) for each; and all of them run again, from the right
states. Every sum is taken in a fixed order: the same inputs give the same bits.
"""

from ssmlib.kernels.selective_scan.backward import backward
from ssmlib.kernels.selective_scan.forward import forward
from ssmlib.kernels.selective_scan.layout import saved_shape
from ssmlib.kernels.selective_scan.step import step, step_

__all__ = ["backward", "forward", "saved_shape", "step", "step_"]
