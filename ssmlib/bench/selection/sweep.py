"""Which cells are trained: what fails has failed at every learning rate, and all have their seeds.

Cells are trained in waves. The first has every case at the first learning rate; the next ones have
those that did not solve the task yet, at the next rate; the last has the other seeds, each case at
its best rate. A wave is trained `together` cells at a time.
"""

from collections.abc import Callable, Iterator, Sequence

from ssmlib.bench.ledger import Ledger, Row
from ssmlib.bench.selection.cases import Case, Size
from ssmlib.bench.selection.fit import Cell, fit

Fit = Callable[[Sequence[Cell]], list[list[Row]]]


def sweep_all(
    cases: Sequence[Case], size: Size, ledger: Ledger, device: str, together: int, run: Fit = fit
) -> Iterator[Row]:
    """The rows of every case, wave by wave. Raises OutOfTime where the ledger says so."""
    reached: dict[tuple[str, ...], tuple[float, float]] = {}  # best accuracy, at which rate
    for lr in size.lrs:
        left = [case for case in cases if reached.get(case.name, (0.0,))[0] < size.solved]
        wave = [Cell(case, size, lr, 0, device) for case in left]
        for cell, rows in trained(wave, ledger, together, run):
            yield from rows
            share = score(rows, size.length)
            if cell.case.name not in reached or share > reached[cell.case.name][0]:
                reached[cell.case.name] = share, lr
    wave = [
        Cell(case, size, reached[case.name][1], seed, device)
        for seed in range(1, size.seeds)
        for case in cases
    ]
    for _, rows in trained(wave, ledger, together, run):
        yield from rows


def trained(
    wave: Sequence[Cell], ledger: Ledger, together: int, run: Fit
) -> Iterator[tuple[Cell, list[Row]]]:
    """Each cell with its rows: first those on file, then the others as they come."""
    missing = []
    for cell in wave:
        rows = ledger.find(cell.labels)
        if rows:
            yield cell, rows
        else:
            missing.append(cell)
    for i in range(0, len(missing), together):
        ledger.check_time()
        group = missing[i : i + together]
        for cell, rows in zip(group, run(group), strict=True):
            yield cell, ledger.keep(cell.labels, rows)


def score(rows: Sequence[Row], length: int) -> float:
    """The accuracy at this length."""
    return next(row["accuracy"] for row in rows if row["length"] == length)
