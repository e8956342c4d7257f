"""Which cells are trained: what fails has failed at every learning rate, and all have three seeds.

On a GPU several processes share it, for these models are too small to fill it alone.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed

import torch

from ssmlib.bench.longrange.ledger import Ledger, Row
from ssmlib.bench.selection.cases import Case, Size
from ssmlib.bench.selection.fit import Cell, fit

Fit = Callable[[Cell], list[Row]]


def sweep(case: Case, size: Size, ledger: Ledger, device: str, run: Fit = fit) -> Iterator[Row]:
    """The rows of one case: learning rates until one solves the task, then the other seeds."""

    def trained(lr: float, seed: int) -> list[Row]:
        cell = Cell(case, size, lr, seed, device)
        return ledger.fill(cell.labels, lambda: run(cell))

    best, reached = size.lrs[0], -1.0
    for lr in size.lrs:
        rows = trained(lr, 0)
        yield from rows
        share = score(rows, size.length)
        if share > reached:
            best, reached = lr, share
        if share >= size.solved:
            break
    for seed in range(1, size.seeds):
        yield from trained(best, seed)


def score(rows: Sequence[Row], length: int) -> float:
    """The accuracy at this length."""
    return next(row["accuracy"] for row in rows if row["length"] == length)


def sweep_all(
    work: Sequence[tuple[Case, Size]], ledger: Ledger, device: str, workers: int = 0
) -> Iterator[Row]:
    """The rows of every case, as they come; in this process, or shared among `workers` others.

    Cases are begun in the order given. The first error, OutOfTime too, ends it once what runs is
    done and kept.
    """
    if workers == 0:
        for case, size in work:
            yield from sweep(case, size, ledger, device)
        return
    spawned = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(
            workers, spawned, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool,
        ThreadPoolExecutor(workers) as threads,
    ):

        def remote(cell: Cell) -> list[Row]:
            return pool.submit(fit, cell).result()

        def whole(case: Case, size: Size) -> list[Row]:
            return list(sweep(case, size, ledger, device, remote))

        asked = [threads.submit(whole, case, size) for case, size in work]
        try:
            for done in as_completed(asked):
                yield from done.result()
        finally:
            for future in asked:
                future.cancel()
