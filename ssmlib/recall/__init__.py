"""Tasks that ask for what a sequence said earlier: tokens (b t) and targets (b t), by seed.

    mqar        pairs of keys and values, then every key again: `mqar`
    pairs       one key asked, or a key whose value depends on where: `associative_recall`,
                `joint_recall`
    copying     strings said again, or what followed a few of their letters: `copying`, `lookup`
    streams     what is picked out of noise: `selective_copying`, `induction`
    needles     a secret in a long text: `needle`, `needle_grid`
    treecall    parents in trees that a `Grammar` writes: `treecall`
    regression  a linear function learned from the prompt, in numbers: `regression`
    mad         `repeats`, `motifs`, `compression`, `memorization`
    kinds       `TASKS`: chance level and vocabulary of each; `sequence_accuracy`
    presets     `PRESETS`: published settings by name

A target of -100 asks nothing; loss and accuracy are over the others. `length` is t, everything
included. Equal arguments give equal bits on one device; a CPU and a GPU draw different numbers.
"""

from ssmlib.recall.copying import copying, lookup
from ssmlib.recall.kinds import TASKS, Kind, sequence_accuracy
from ssmlib.recall.mad import compression, memorization, motifs, repeats
from ssmlib.recall.mqar import mqar
from ssmlib.recall.needles import needle, needle_grid
from ssmlib.recall.pairs import associative_recall, joint_recall
from ssmlib.recall.presets import PRESETS, Preset
from ssmlib.recall.regression import least_squares, regression
from ssmlib.recall.streams import NOISE, induction, selective_copying
from ssmlib.recall.treecall import Grammar, treecall

__all__ = [
    "NOISE",
    "PRESETS",
    "TASKS",
    "Grammar",
    "Kind",
    "Preset",
    "associative_recall",
    "compression",
    "copying",
    "induction",
    "joint_recall",
    "least_squares",
    "lookup",
    "memorization",
    "motifs",
    "mqar",
    "needle",
    "needle_grid",
    "regression",
    "repeats",
    "selective_copying",
    "sequence_accuracy",
    "treecall",
]
