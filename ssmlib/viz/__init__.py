"""The book's interactive figures. Each call returns a `Figure`; it works without a kernel.

attention_grid   n² scores beside a state of constant size
kv_calculator    what a context costs in memory, model by model
dt_dial          how Δ, the eigenvalue and the rule of discretization make a memory
state_heatmap    a hidden state as it reads its tokens
hippo_draw       a signal, and what n coefficients remember of it
s4_kernel        the poles of a diagonal system, and the kernel they make
selection_dial   a memory of one number, with a step Δ of its own for each token
selection_text   the steps that a trained model chose, byte by byte
scan_tree        which entries of a scan are combined in which round
ssd_blocks       the matrix of state space duality in chunks, each block read two ways
hybrid_calculator  memory and work of a mix of attention and Mamba
recall_pareto    right answers against bytes of state, model by model
"""

from ssmlib.viz.figures import attention_grid, dt_dial, kv_calculator, state_heatmap
from ssmlib.viz.hippo_draw import hippo_draw
from ssmlib.viz.host import Figure
from ssmlib.viz.hybrids import hybrid_calculator
from ssmlib.viz.recall import recall_pareto
from ssmlib.viz.s4_kernel import s4_kernel
from ssmlib.viz.scan import scan_tree
from ssmlib.viz.selection import selection_dial, selection_text
from ssmlib.viz.ssd import ssd_blocks

__all__ = [
    "Figure",
    "attention_grid",
    "dt_dial",
    "hippo_draw",
    "hybrid_calculator",
    "kv_calculator",
    "recall_pareto",
    "s4_kernel",
    "scan_tree",
    "selection_dial",
    "selection_text",
    "ssd_blocks",
    "state_heatmap",
]
