"""The book's interactive figures. Each call returns a `Figure`; it works without a kernel.

attention_grid   n² scores beside a state of constant size
kv_calculator    what a context costs in memory, model by model
dt_dial          how Δ, the eigenvalue and the rule of discretization make a memory
state_heatmap    a hidden state as it reads its tokens
"""

from ssmlib.viz.figures import attention_grid, dt_dial, kv_calculator, state_heatmap
from ssmlib.viz.host import Figure

__all__ = ["Figure", "attention_grid", "dt_dial", "kv_calculator", "state_heatmap"]
