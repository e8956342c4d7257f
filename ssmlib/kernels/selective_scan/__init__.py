"""The selective scan on a GPU."""

from ssmlib.kernels.selective_scan.backward import backward
from ssmlib.kernels.selective_scan.forward import forward
from ssmlib.kernels.selective_scan.layout import saved_shape
from ssmlib.kernels.selective_scan.step import step, step_

__all__ = ["backward", "forward", "saved_shape", "step", "step_"]
