"""The suites: which command writes which record. Imports none of them."""

from typing import NamedTuple


class Suite(NamedTuple):
    """A module with `run(quick, device, progress) -> rows` and `summary(rows) -> str`."""

    module: str
    about: str


SUITES = {
    "attention": Suite(
        "ssmlib.bench.attention",
        "time and memory of causal attention, and of one decoding step, against the length",
    ),
    "hippo": Suite(
        "ssmlib.bench.hippo",
        "a whole history in 256 numbers, by LegS and by a trained LSTM",
    ),
    "s4": Suite(
        "ssmlib.bench.s4",
        "an S4D layer in its forms, its kernel, and the crossover in length",
    ),
    "longrange": Suite(
        "ssmlib.bench.longrange",
        "small models trained on tasks with a long memory",
    ),
    "selection": Suite(
        "ssmlib.bench.selection",
        "what selection adds: selective copying and induction, by layer and piece by piece",
    ),
    "language_model": Suite(
        "ssmlib.bench.language",
        "small models that learn a text byte by byte, and one training step of a larger Mamba",
    ),
}


def command_for(name: str, quick: bool = False) -> str:
    """The command that writes the record `name`."""
    return f"python -m ssmlib.bench {name}" + " --quick" * quick
