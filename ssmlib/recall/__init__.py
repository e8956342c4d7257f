"""Tasks that ask for what a sequence said earlier: tokens (b t) and targets (b t), by seed.

    mqar        pairs of keys and values, then every key again: `mqar`
    streams     what is picked out of noise: `selective_copying`, `induction`
    presets     published settings by name, `PRESETS`, and the chance level of each task, `TASKS`

A target of -100 asks nothing; loss and accuracy are over the others. `length` is t, everything
included. Equal arguments give equal bits on one device; a CPU and a GPU draw different numbers.
"""

from ssmlib.recall.mqar import mqar
from ssmlib.recall.presets import PRESETS, TASKS, Preset
from ssmlib.recall.streams import NOISE, induction, selective_copying

__all__ = ["NOISE", "PRESETS", "TASKS", "Preset", "induction", "mqar", "selective_copying"]
