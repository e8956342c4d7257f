"""`python -m ssmlib.recall EXPERIMENT [--mixer NAME ...]`: train a cell, or all of an experiment.

    python -m ssmlib.recall mqar --mixer mamba2 --n 64 --d 64 --course 128
    python -m ssmlib.recall mqar copying --seconds 120 --out runs
    python -m ssmlib.recall all --out runs

Runs that are done stand in OUT/recall.jsonl, and the same command goes on from there; what is known
so far is OUT/recall.partial.json, and when nothing is missing the record OUT/recall.json. `--size
small` is for a CPU; its files are called recall_small.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ssmlib.bench import recall as lab
from ssmlib.bench.ledger import Ledger
from ssmlib.bench.recall import OutOfTime
from ssmlib.bench.recall.cases import Case
from ssmlib.bench.recall.experiments import EXPERIMENTS, SIZES, Experiment, experiment_of
from ssmlib.bench.recall.models import BASES, MIXERS, POSITIONS, SPARSE
from ssmlib.bench.recall.pool import complete
from ssmlib.bench.recall.results import in_order, summary
from ssmlib.bench.store import Draft
from ssmlib.bench.suites import command_for
from ssmlib.bench.timing import default_device

OPTIONS = {
    "n": (int, None),
    "features": (int, None),
    "window": (int, None),
    "keys": (int, None),
    "times": (int, None),
    "positions": (str, POSITIONS),
    "base": (str, BASES),
    "sparse": (str, SPARSE),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 with everything done that was asked for, 3 where time was up first."""
    parser = _parser()
    args = parser.parse_args(arguments)
    lab.ask_for_queues()
    try:
        device = str(default_device(args.device))
        names = list(EXPERIMENTS) if "all" in args.experiments else args.experiments
        cases = [case for name in names for case in chosen(experiment_of(name, args.size), args)]
        name = "recall" if args.size == "full" else f"recall_{args.size}"
        ledger = lab.ledger_for(args.out / f"{name}.jsonl", device, args.seconds, _tell)
    except (ValueError, OSError) as error:  # what it was asked for, or where it is to write
        parser.error(str(error))
    before, code = len(ledger.rows), 0
    try:
        rows = lab.run_cases(cases, ledger, device, args.together)
        if "all" in args.experiments and args.mixer is None:
            rows += lab.measure_throughput(ledger, device, args.size)
    except OutOfTime:
        print(f"time is up; the same command goes on from {ledger.path}")
        rows, code = ledger.rows[before:], 3
    if rows:
        print(summary(in_order(rows)))
    if ledger.rows:
        print(written(name, args, ledger, device))
    return code


def written(name: str, args: argparse.Namespace, ledger: Ledger, device: str) -> Path:
    """Write what the ledger holds: the record, or a partial one as long as a run is missing."""
    command = f"python -m ssmlib.recall all --size {args.size}"
    command = command_for("recall") if args.size == "full" else command
    draft = Draft(name, command, args.out, device)
    rows = in_order(ledger.rows)
    every = [case for one in EXPERIMENTS for case in experiment_of(one, args.size).cases()]
    if complete(every, ledger) and ledger.find({"experiment": "throughput"}):
        return draft.finish(rows)
    draft.rows = rows[:-1]
    draft.add(rows[-1])
    return args.out / f"{name}.partial.json"


def chosen(experiment: Experiment, args: argparse.Namespace) -> list[Case]:
    """The experiment's cells, or the one that the options describe, with the course's changes."""
    options = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    if args.mixer is None:
        described = [f"--{name}" for name in (*options, *(["d"] if args.d is not None else []))]
        if described:
            raise ValueError(f"expected --mixer beside {', '.join(described)}, got none")
        cases = list(experiment.cases())
        if args.course is not None:
            experiment.course(args.course)
            cases = [case for case in cases if case.track == args.course]
    else:
        course = next(iter(experiment.courses)) if args.course is None else args.course
        widths = [d for _, mixer, d, _ in experiment.cells if mixer == args.mixer]
        usual = widths[0] if widths else experiment.cells[0][2]
        cases = [
            experiment.case(course, args.mixer, usual if args.d is None else args.d, **options)
        ]
        with torch.device("meta"):
            cases[0].model.build()  # raises ValueError for sizes that no layer can have
    changes = {"steps": args.steps, "seeds": args.seeds, "batch": args.batch}
    changes = {name: value for name, value in changes.items() if value is not None}
    if args.lr:
        changes["lrs"] = tuple(args.lr)
    return [replace(case, course=replace(case.course, **changes)) for case in cases]


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ssmlib.recall",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("experiments", nargs="+", choices=[*EXPERIMENTS, "all"])
    parser.add_argument("--mixer", choices=MIXERS, help="one model; without it, all cells")
    for name, (kind, known) in OPTIONS.items():
        parser.add_argument(f"--{name}", type=kind, choices=known, help="option of the mixer")
    parser.add_argument("--d", type=int, help="width of the model")
    parser.add_argument("--course", help="which of the experiment's courses, the first by default")
    parser.add_argument("--lr", type=float, nargs="+", help="learning rates to try, in this order")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("recall-runs"))
    parser.add_argument("--seconds", type=float, help="begin nothing new after so long")
    parser.add_argument("--together", type=int, help=f"runs side by side; on a GPU, {lab.TOGETHER}")
    parser.add_argument("--device", help="cuda or cpu; by default cuda if there is one")
    return parser
