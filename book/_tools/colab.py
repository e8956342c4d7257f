"""Fill in what the first cell of each chapter installs on Colab.

python book/_tools/colab.py git+URL@COMMIT notebooks/*.ipynb
"""

import sys
from pathlib import Path

import nbformat

EMPTY = 'SOURCE = ""'


def fill(path: Path, source: str) -> None:
    notebook = nbformat.read(path, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    if EMPTY not in first.source:
        sys.exit(f"{path}: expected {EMPTY} in the first code cell, got\n{first.source}")
    first.source = first.source.replace(EMPTY, f"SOURCE = {source!r}")
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        fill(Path(name), sys.argv[1])
