"""Run notebooks, with the seconds and the peak memory each one took.

python book/_tools/execute.py notebooks/*.ipynb      re-run in place, outputs kept and cleaned
"""

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

CELL_TIMEOUT = 120  # seconds; a whole chapter has 90
STRIP = ["--keep-output", "--keep-count", "--drop-empty-cells"]
EXTRA_KEYS = "metadata.language_info.version cell.metadata.execution"


@dataclass(frozen=True)
class Run:
    """An executed notebook; seconds of wall time; peak resident bytes of its kernel, if known."""

    notebook: nbformat.NotebookNode
    seconds: float
    peak_bytes: int | None


def run(path: Path) -> Run:
    """Execute one notebook in its folder. Raises CellExecutionError at the first bad cell."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=CELL_TIMEOUT, resources={"metadata": {"path": str(path.parent)}}
    )
    started = time.perf_counter()
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
        peak = _peak_bytes(getattr(client.km.provisioner, "pid", None))
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    return Run(notebook, time.perf_counter() - started, peak)


def report_failure(path: Path, error: CellExecutionError) -> None:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    print(f"\n{path}: a cell failed\n\n{text}", file=sys.stderr)


def _peak_bytes(pid: int | None) -> int | None:
    """The kernel's high-water mark of resident memory, where the system tells (Linux)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else None


def main(paths: list[Path]) -> int:
    for path in paths:
        try:
            done = run(path)
        except CellExecutionError as error:
            report_failure(path, error)
            return 1
        draft = path.with_suffix(".tmp")
        nbformat.write(done.notebook, draft)
        os.replace(draft, path)
        print(f"{path}: {done.seconds:.1f} s, peak {(done.peak_bytes or 0) / 1e6:.0f} MB")
    strip = [sys.executable, "-m", "nbstripout", *STRIP, "--extra-keys", EXTRA_KEYS]
    subprocess.run([*strip, *map(str, paths)], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main([Path(p) for p in sys.argv[1:]]))
