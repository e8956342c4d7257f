r"""The selective scan, Mamba's core: a diagonal system whose B, C and step the input chooses.

$$h_t = e^{\Delta_t A} h_{t-1} + \Delta_t B_t x_t, \qquad y_t = C_t \cdot h_t + D x_t$$

Gu and Dao 2023, Algorithm 2. Per channel h has n numbers; none of the forms holds them per token.

    function    `selective_scan`: the contract, its checks, the choice of a form
    reference   `selective_scan_reference`: the equations, a loop over time that autograd unrolls
    tiles       the fast form in PyTorch, forward and backward, in chunks of tokens
    step        `selective_scan_step`, `selective_scan_step_`: one token
    operator    the fast forms as custom operators; layout, checks: what they share
"""

from ssmlib.selective_scan.function import BACKENDS, selective_scan
from ssmlib.selective_scan.reference import selective_scan_reference
from ssmlib.selective_scan.step import selective_scan_step, selective_scan_step_

__all__ = [
    "BACKENDS",
    "selective_scan",
    "selective_scan_reference",
    "selective_scan_step",
    "selective_scan_step_",
]
