"""The suites: which command writes which record. Imports none of them."""

from typing import NamedTuple


class Suite(NamedTuple):
    """A module with `run(quick, device, progress) -> rows` and `summary(rows) -> str`.

    on: the kind of device that its full sizes are for, "cuda" or "cpu". by_row: `run` also takes
    `save`, which it calls with each row as soon as that is known; without, rows come all at once.
    """

    module: str
    about: str
    on: str = "cuda"
    by_row: bool = False


SUITES = {
    "attention": Suite(
        "ssmlib.bench.attention",
        "time and memory of causal attention, and of one decoding step, against the length",
        by_row=True,
    ),
    "hippo": Suite(
        "ssmlib.bench.hippo",
        "a whole history in 256 numbers, by LegS and by a trained LSTM",
        by_row=True,
    ),
    "s4": Suite(
        "ssmlib.bench.s4",
        "an S4D layer in its forms, its kernel, and the crossover in length",
        by_row=True,
    ),
    "scan": Suite(
        "ssmlib.bench.scan",
        "the selective scan, the linear scan and the causal convolution, against public kernels",
        by_row=True,
    ),
    "scan_cpu": Suite(
        "ssmlib.bench.scan_cpu",
        "the selective scan on two cores, against a loop, mambapy and transformers",
        on="cpu",
        by_row=True,
    ),
    "ssd": Suite(
        "ssmlib.bench.ssd",
        "state space duality and Mamba-2's layer, against public kernels and attention",
        by_row=True,
    ),
    "ssd_cpu": Suite(
        "ssmlib.bench.ssd_cpu",
        "a training step of a small Mamba-2 on two cores, against transformers'",
        on="cpu",
        by_row=True,
    ),
    "ladder": Suite(
        "ssmlib.bench.ladder",
        "the rungs of chapter 06, the reach of a multiprocessor's memory, and where a scan pays",
        by_row=True,
    ),
    "longrange": Suite(
        "ssmlib.bench.longrange",
        "small models trained on tasks with a long memory",
    ),
    "selection": Suite(
        "ssmlib.bench.selection",
        "what selection adds: selective copying and induction, by layer and piece by piece",
    ),
    "recall": Suite(
        "ssmlib.bench.recall",
        "what a state remembers: recall, copying, passkeys, by mixer, width, length and rate",
    ),
    "hybrid": Suite(
        "ssmlib.bench.hybrid",
        "how many layers must attend, and which: text, recall and copying in one stream",
    ),
    "model": Suite(
        "ssmlib.bench.model",
        "four models of 400M parameters: reading prompts, making tokens, memory",
        by_row=True,
    ),
    "model_cpu": Suite(
        "ssmlib.bench.model_cpu",
        "a Mamba of 130M parameters makes tokens on two cores, against transformers",
        on="cpu",
        by_row=True,
    ),
    "language_model": Suite(
        "ssmlib.bench.language",
        "small models that learn a text byte by byte, and one training step of a larger Mamba",
        by_row=True,
    ),
}


def command_for(name: str, quick: bool = False) -> str:
    """The command that writes the record `name`."""
    return f"python -m ssmlib.bench {name}" + " --quick" * quick
