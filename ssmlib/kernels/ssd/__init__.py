r"""State space duality on a GPU: forward, backward, and one token.

$$h_t = e^{\Delta_t A} h_{t-1} + \Delta_t x_t B_t^\top, \qquad
y_t = (h_t C_t + D x_t)\, \mathrm{silu}(z_t)$$
"""

from ssmlib.kernels.ssd.backward import backward
from ssmlib.kernels.ssd.forward import forward
from ssmlib.kernels.ssd.layout import saved_dtype, saved_shape
from ssmlib.kernels.ssd.step import step, step_

__all__ = ["backward", "forward", "saved_dtype", "saved_shape", "step", "step_"]
