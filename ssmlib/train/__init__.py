"""Training small models, so that every number can be drawn again.

`train(model, task, TrainConfig(...))` returns one row per evaluation. Batch k of a run is a
function of its seed and k and of nothing else, so a run that was killed goes on from its checkpoint
to the same rows, bit for bit on the same device. A run that diverges stops, and its last row says
so.

    task        what is learned: batches by seed, loss and score
    config      how: TrainConfig, schedules, the optimizer's groups
    loop        train
    step        one update, as it is or as a CUDA graph
    checkpoint  files that are whole or not there
"""

from ssmlib.train.config import SCHEDULES, TrainConfig, param_groups
from ssmlib.train.loop import train
from ssmlib.train.task import Task, seed_of

__all__ = ["SCHEDULES", "Task", "TrainConfig", "param_groups", "seed_of", "train"]
