"""Cases trained side by side, and which runs each of them needs.

A case is tried at one learning rate after the other: from one seed, and if that solves the task
from the others too, until all of them do on average. If no rate gets so far, the best one of the
first seed gets the other seeds. So what fails has failed at every rate. Runs are begun in the order
of their cases as lanes become free, and a lane goes on with its own case where it can.
"""

import math
import time
from collections.abc import Iterator, Sequence
from statistics import mean

from ssmlib.bench.ledger import Ledger, OutOfTime, Row
from ssmlib.bench.recall.cases import Case, Run, told_of
from ssmlib.bench.recall.lane import Lane, Stretch
from ssmlib.recall import TASKS
from ssmlib.train import seed_of

SOLVED = 0.99  # of the answers of the first test


class Search:
    """The runs of a case: which are done, with what share of the first test, and which are next."""

    def __init__(self, case: Case):
        self.case, self.shares = case, {}

    def note(self, run: Run, rows: Sequence[Row]) -> None:
        self.shares[run.lr, run.seed] = rows[0]["accuracy"]

    def missing(self) -> list[Run]:
        """What can be trained now, given what is known."""
        course = self.case.course
        for lr in course.lrs:
            if (lr, 0) not in self.shares:
                return [Run(self.case, lr, 0)]
            if self.shares[lr, 0] >= SOLVED:
                rest = self._seeds(lr)
                shares = [self.shares.get((lr, seed), 0.0) for seed in range(course.seeds)]
                if rest or mean(shares) >= SOLVED:
                    return rest
        return self._seeds(max(course.lrs, key=lambda lr: self.shares[lr, 0]))

    def _seeds(self, lr: float) -> list[Run]:
        seeds = range(1, self.case.course.seeds)
        return [Run(self.case, lr, seed) for seed in seeds if (lr, seed) not in self.shares]


def train_all(
    cases: Sequence[Case], ledger: Ledger, device: str, together: int
) -> Iterator[tuple[Run, list[Row]]]:
    """Every run that the cases need, with its rows: first what is on file, then as runs end.

    At most `together` are trained side by side. Raises OutOfTime where the ledger says so, after
    what was begun has ended.
    """
    searches = [Search(case) for case in cases]
    for search in searches:
        yield from _on_file(search, ledger)
    lanes: list[Lane] = []
    while True:
        late = _begin(searches, lanes, ledger, device, together)
        if not lanes:
            break
        began = time.monotonic()
        ended = [(lane, last) for lane in lanes if (last := turn(lane)) is not None]
        for lane in lanes:
            lane.spent += (time.monotonic() - began) / len(lanes)
        for lane, last in ended:
            run = lane.run
            rows = ledger.keep(run.labels, rows_of(lane, last))
            next(s for s in searches if s.case is run.case).note(run, rows)
            yield run, rows
            lane.run = None
    if late:
        raise OutOfTime


def complete(cases: Sequence[Case], ledger: Ledger) -> bool:
    """Whether every run that the cases need is on file."""
    searches = [Search(case) for case in cases]
    for search in searches:
        list(_on_file(search, ledger))
    return not any(search.missing() for search in searches)


def turn(lane: Lane) -> Stretch | None:
    """Train it a little; return its last steps if the run has ended: by solving, failing, or done.

    On a GPU one stretch is under way while the one before it is looked at.
    """
    course = lane.case.course
    if lane.done < course.steps:
        lane.advance()
    while len(lane.ahead) > (lane.captured and lane.done < course.steps):
        last = lane.look()
        if last.accuracy >= course.solved or not math.isfinite(last.loss):
            return last
        if not lane.ahead and lane.done == course.steps:
            return last
    return None


def rows_of(lane: Lane, last: Stretch) -> Iterator[Row]:
    """A row per tested setting, unlabelled; of a run that is no number, for the first alone."""
    case, fine = lane.case, math.isfinite(last.loss)
    common = {
        "parameters": sum(p.numel() for p in lane.model.parameters()),
        "steps": lane.done,
        "steps_to_90": lane.reached,
        "loss": last.loss if fine else None,
        "seconds": lane.spent,
    }
    task = TASKS[case.course.task]
    for i, setting in enumerate(case.course.tested[: None if fine else 1]):
        found = lane.test(setting, seed_of("recall test", told_of(setting)))
        asked = {"test": i, "tested": told_of(setting), "chance": task.chance(**setting)}
        yield asked | found._asdict() | common | {"status": "ok" if fine else "diverged"}


def _on_file(search: Search, ledger: Ledger) -> Iterator[tuple[Run, list[Row]]]:
    while there := [(run, rows) for run in search.missing() if (rows := ledger.find(run.labels))]:
        for run, rows in there:
            search.note(run, rows)
            yield run, rows


def _begin(
    searches: Sequence[Search], lanes: list[Lane], ledger: Ledger, device: str, together: int
) -> bool:
    """Give idle lanes a run, and open new ones; return whether time was up before all had begun."""
    under_way = [lane.run for lane in lanes if lane.run is not None]
    waiting = [run for s in searches for run in s.missing() if run not in under_way]
    for lane in [lane for lane in lanes if lane.run is None]:
        own = next((run for run in waiting if run.case is lane.case), None)
        if own is None or not _in_time(ledger):
            lanes.remove(lane)
            lane.close()
            continue
        waiting.remove(own)
        _start(lane, own)
    while waiting and len(lanes) < together and _in_time(ledger):
        lane = Lane(waiting[0].case, device)
        _start(lane, waiting.pop(0))
        lanes.append(lane)
    return bool(waiting) and not _in_time(ledger)


def _start(lane: Lane, run: Run) -> None:
    began = time.monotonic()
    lane.begin(run)
    lane.spent = time.monotonic() - began


def _in_time(ledger: Ledger) -> bool:
    try:
        ledger.check_time()
    except OutOfTime:
        return False
    return True
