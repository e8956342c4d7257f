"""The suite `recall`: what models of a finite state remember, and what helps (chapter 09).

    experiments   what is trained: mqar, pareto, copying, lookup, joint, passkey
    models        which models, by name
    cases         a case, its course, a run
    lane          one run, as a CUDA graph on a stream of its own
    pool          many runs side by side, and which of them a case needs
    speed         what that is worth
    results       a case's runs as one row, with an interval
    published     what others report
    driver        `python -m ssmlib.recall`, which trains any cell

Each run is a row per tested setting: what was trained on what, at which rate, from which seed; the
share of answers and of sequences that is right; bytes of state, measured; steps, and those until
90 % of some fresh batches were right, None for never; seconds, a run's share of the time that it
was trained side by side with others; status, "ok" or "diverged".
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from ssmlib.bench.ledger import Ledger, OutOfTime, Row
from ssmlib.bench.provenance import provenance
from ssmlib.bench.recall.cases import Case
from ssmlib.bench.recall.experiments import EXPERIMENTS, experiment_of
from ssmlib.bench.recall.pool import train_all
from ssmlib.bench.recall.results import (
    best,
    by_case,
    in_order,
    lines_of,
    progress_line,
    summary,
)
from ssmlib.bench.recall.speed import throughput
from ssmlib.bench.timing import default_device

__all__ = [
    "EXPERIMENTS",
    "OutOfTime",
    "best",
    "by_case",
    "ledger_for",
    "lines_of",
    "run",
    "run_cases",
    "summary",
]

TOGETHER = 20  # runs side by side on a GPU


def run(
    quick: bool = False,
    device: str | torch.device | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Row]:
    """All rows of the suite at full size; quick=True trains the tiny sizes, for four steps each."""
    ask_for_queues()
    device, size = str(default_device(device)), "tiny" if quick else "full"
    ledger = ledger_for(None, device, None, progress)
    for name in EXPERIMENTS:
        run_cases(list(experiment_of(name, size).cases()), ledger, device)
    measure_throughput(ledger, device, size)
    return in_order(ledger.rows)


def ask_for_queues() -> None:
    """Let a GPU that nothing has used yet have as many queues as there are streams, not 8."""
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")


def run_cases(
    cases: Sequence[Case], ledger: Ledger, device: str, together: int | None = None
) -> list[Row]:
    """The rows of the cases, from the ledger or trained now. Raises OutOfTime where it does."""
    together = together or (TOGETHER if device.startswith("cuda") else 1)
    with _precision():
        return [row for _, rows in train_all(cases, ledger, device, together) for row in rows]


def measure_throughput(ledger: Ledger, device: str, size: str = "full") -> list[Row]:
    """The rows of `throughput`, on the models of mqar at its second width."""
    cases = [
        case for case in experiment_of("mqar", size).cases() if size == "tiny" or _typical(case)
    ]
    on_gpu = device.startswith("cuda")
    with _precision():
        return ledger.fill(
            {"experiment": "throughput"},
            lambda: throughput(cases if on_gpu else cases[:2], device, 2 if on_gpu else 1),
        )


def ledger_for(
    path: Path | None,
    device: str,
    seconds: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> Ledger:
    """Rows on file, of this device and these versions; progress is told a line for each new one."""
    source = provenance("", device)
    where = ", ".join(f"{key} {source[key]}" for key in ("device", "torch", "triton", "ssmlib"))
    tell = None if progress is None else lambda row: progress(progress_line(row))
    return Ledger(path, where, seconds, tell)


def _typical(case: Case) -> bool:
    return case.track == "128" and case.model.d_model == 64


@contextmanager
def _precision() -> Iterator[None]:
    """Products of float32 matrices in TF32, where there is such a thing."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
