r"""S4: a linear time-invariant state space model, trained as a convolution, run as a recurrence.

Gu, Goel and Ré 2022; diagonal: Gupta, Gu and Berant 2022, Gu et al. 2022. A system of size n is
held in n/2 complex coordinates, one of each conjugate pair.

    initial    where it starts: `poles`, `timescales`, and the systems of both kinds
    diagonal   S4D: `s4d`, `kernel_diagonal`
    chunks     what `s4d` does by default: matrix products over chunks of tokens
    walk       what it does on a GPU: the recurrence, inside one kernel
    dplr       S4: `s4`, `kernel_dplr`, and `dense`, the same system in real numbers
    powers     `vandermonde` and `project`: kernel and last state without the matrix of powers
    fractions  `cauchy`: the spectrum of the kernel, likewise
"""

from ssmlib.s4.diagonal import discretize_diagonal, kernel_diagonal, s4d
from ssmlib.s4.dplr import dense, kernel_dplr, s4
from ssmlib.s4.fractions import cauchy, nodes
from ssmlib.s4.initial import INITS, System, poles, timescales
from ssmlib.s4.powers import project, vandermonde

__all__ = [
    "INITS",
    "System",
    "cauchy",
    "dense",
    "discretize_diagonal",
    "kernel_diagonal",
    "kernel_dplr",
    "nodes",
    "poles",
    "project",
    "s4",
    "s4d",
    "timescales",
    "vandermonde",
]
