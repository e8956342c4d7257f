"""`python -m ssmlib.bench.hybrid --out DIR`: the suite in as many calls as it takes.

Rows that are done stand in DIR/hybrid.jsonl, and where time was up in DIR/hybrid.partial.json; with
the last of them comes DIR/hybrid.json, the record. `--size small` is for a CPU, `--size long` has
three times as many updates as the suite; their files are called hybrid_small and hybrid_long.
"""

import argparse
import sys
from pathlib import Path

from ssmlib.bench.hybrid import SIZES, OutOfTime, rows_on_file, run_size, summary
from ssmlib.bench.store import Draft
from ssmlib.bench.suites import command_for
from ssmlib.bench.timing import default_device


def main(arguments: list[str] | None = None) -> int:
    """Return 0 with the record written, 3 where time was up first."""
    parser = argparse.ArgumentParser(prog="python -m ssmlib.bench.hybrid")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True)
    parser.add_argument("--seconds", type=float, help="begin nothing new after so long")
    parser.add_argument("--together", type=int, default=1, help="models trained side by side")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--device", help="cuda or cpu; by default cuda if there is one")
    args = parser.parse_args(arguments)
    device = default_device(args.device)

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    name = "hybrid" if args.size == "full" else f"hybrid_{args.size}"
    command = f"python -m ssmlib.bench.hybrid --size {args.size}"
    command = command_for("hybrid") if args.size == "full" else command
    keep, draft = args.out / f"{name}.jsonl", Draft(name, command, args.out, device)
    try:
        rows = run_size(args.size, device, tell, keep, args.seconds, args.together)
    except OutOfTime:
        print(f"time is up; the same command continues from {keep}")
        if there := rows_on_file(keep, device):
            print(summary(there), draft.pause(there), sep="\n")
        return 3
    print(summary(rows))
    print(draft.finish(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
