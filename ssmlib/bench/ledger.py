"""Finished rows on disk, a row a line: a suite that was stopped continues where it was."""

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ssmlib.bench.provenance import commit_of

Row = dict[str, Any]


class OutOfTime(Exception):
    """The time is up, and rows are missing."""


class Ledger:
    """What is written there is not measured again; nothing new is begun after `seconds`.

    path: the file, or None to keep rows in memory. where: the device and versions, on the first
    line; a file from elsewhere is refused with a ValueError. A last line that a kill cut short is
    dropped. progress is called with each new row. A row written there names the commit it was
    measured at, for a suite that is continued may span several.
    """

    def __init__(
        self,
        path: Path | None,
        where: str,
        seconds: float | None = None,
        progress: Callable[[Row], None] | None = None,
    ):
        self.path, self.progress, self.rows, self.commit = path, progress, [], None
        self.deadline = None if seconds is None else time.monotonic() + seconds
        if path is None:
            return
        self.commit = commit_of(Path(__file__).parents[1])[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if lines and not _whole(lines[-1]):
            lines.pop()
        if lines and json.loads(lines[0]) != {"where": where}:
            raise ValueError(f"{path}: expected rows from {where!r}, got {lines[0]}")
        self.rows = [json.loads(line) for line in lines[1:]]
        lines = lines or [json.dumps({"where": where})]
        half = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        half.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        os.replace(half, path)

    def fill(self, labels: Mapping[str, Any], make: Callable[[], Iterable[Row]]) -> list[Row]:
        """The rows that carry these labels: those on file, or else labels + each of make()."""
        found = self.find(labels)
        if found:
            return found
        self.check_time()
        return self.keep(labels, make())

    def find(self, labels: Mapping[str, Any]) -> list[Row]:
        """The rows on file that carry these labels."""
        return [row for row in self.rows if labels.items() <= row.items()]

    def check_time(self) -> None:
        """Raise OutOfTime where nothing new should begin."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise OutOfTime

    def keep(self, labels: Mapping[str, Any], rows: Iterable[Row]) -> list[Row]:
        """Write labels + each of these rows + the commit, and return them."""
        mark = {} if self.commit is None else {"commit": self.commit}
        new = [dict(labels) | row | mark for row in rows]
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(f"{json.dumps(row)}\n" for row in new))
                file.flush()
                os.fsync(file.fileno())
        self.rows += new
        if self.progress is not None:
            for row in new:
                self.progress(row)
        return new


def _whole(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
