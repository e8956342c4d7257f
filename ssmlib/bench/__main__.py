"""`python -m ssmlib.bench <suite>`: measure, write the record, print a table."""

import argparse
import importlib
import sys

from ssmlib.bench.store import Draft
from ssmlib.bench.suites import SUITES, command_for
from ssmlib.bench.timing import default_device


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(arguments)
    suite = SUITES[args.suite]
    try:
        device = default_device(args.device or ("cpu" if suite.on == "cpu" else None))
    except ValueError as error:
        parser.error(str(error))
    if args.quick and args.out is None:
        parser.error("--quick measures small sizes only: say with --out where the record may go")
    if device.type != suite.on and suite.on == "cpu":
        parser.error(f"{args.suite} measures a CPU, got --device {args.device}")
    if device.type != suite.on and not args.quick:
        parser.error("the full sizes need a CUDA GPU; on a CPU use --quick --out DIR")
    module = importlib.import_module(suite.module)
    draft = Draft(args.suite, command_for(args.suite, args.quick), args.out, device)
    save = {"save": draft.add} if suite.by_row else {}
    rows = module.run(
        args.quick, device, lambda line: print(line, file=sys.stderr, flush=True), **save
    )
    path = draft.finish(rows)
    print(module.summary(rows))
    print(f"{len(rows)} rows in {path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ssmlib.bench",
        description="Measure a suite and write its record, ssmlib/results/<suite>.json.",
        epilog="\n".join(["suites:", *(f"  {name:<16}{s.about}" for name, s in SUITES.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("suite", choices=SUITES, help="what to measure (listed below)")
    parser.add_argument("--out", metavar="DIR", help="write the record there, not into the package")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the suite out")
    parser.add_argument(
        "--device", help="cuda or cpu; by default cuda if there is one, for a suite of a GPU"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
