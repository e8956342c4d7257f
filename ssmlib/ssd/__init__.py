r"""State space duality, the core of Mamba-2: one decay per head, so that it is matrix products.

$$h_t = e^{\Delta_t A} h_{t-1} + \Delta_t x_t B_t^\top, \qquad y_t = h_t C_t + D x_t$$

Dao and Gu 2024. A head's state h is a matrix (p n). The same map from x to y is a recurrence, a
masked matrix, and chunks of the one strung together by the other.

    function    `ssd`: the contract, its checks, the choice of a form
    forms       `ssd_recurrent`, `ssd_quadratic`, `ssd_chunked`: the three readings; `segsum`
    chunks      the fast form in PyTorch, forward and backward, one chunk of tokens at a time
    parts       what it does to a chunk
    step        `ssd_step`, `ssd_step_`: one token
    operator    the fast forms as custom operators; checks: what they all refuse
"""

from ssmlib.ssd.forms import segsum, ssd_chunked, ssd_quadratic, ssd_recurrent
from ssmlib.ssd.function import BACKENDS, ssd
from ssmlib.ssd.step import ssd_step, ssd_step_

__all__ = [
    "BACKENDS",
    "segsum",
    "ssd",
    "ssd_chunked",
    "ssd_quadratic",
    "ssd_recurrent",
    "ssd_step",
    "ssd_step_",
]
