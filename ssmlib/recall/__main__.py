"""`python -m ssmlib.recall`: train a cell of the recall laboratory, or all of an experiment."""

import sys

from ssmlib.bench.recall.driver import main

if __name__ == "__main__":
    sys.exit(main())
