"""Measured numbers on disk: rows, and where they come from.

A record is one JSON file, {"name", "rows", "provenance"}, in `ssmlib/results/`, which is package
data. It is written whole or not at all. Rows and provenance are checked alike when it is written
and when it is read. What a run that was cut short had measured by then stands beside it, in
`<name>.partial.json`, and its provenance says "partial".
"""

import json
import math
import numbers
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from ssmlib.bench.provenance import check_provenance, provenance
from ssmlib.bench.suites import SUITES, command_for

Row = dict[str, str | int | float | bool | None]


@dataclass(frozen=True)
class Record:
    """Rows as written, and their provenance: device, driver, versions, date, commit, command."""

    name: str
    rows: list[Row]
    provenance: dict[str, str | bool | None]

    @property
    def line(self) -> str:
        """The provenance in one line."""
        return provenance_line(self)


def record(
    name: str,
    rows: Iterable[Mapping[str, Any]],
    command: str,
    out: str | Path | None = None,
    device: str | torch.device | None = None,
) -> Path:
    """Write `rows` as the record `name` into the folder `out`, by default the package's own.

    Returns the file. A row is flat: strings, finite numbers (NumPy's too), booleans, None. A NaN is
    written as null, and its row gets a "status", a string, that says so. device is where the rows
    were measured: by default CUDA if there is one. Raises ValueError for a name that is not
    letters, digits and underscores, for rows that are not as described, and for an empty command.
    A file of that name stays as it was if anything fails.
    """
    return Draft(name, command, out, device).finish(rows)


class Draft:
    """A record in the making, whose rows are on disk as soon as they are known.

    Each `add` writes the rows so far to `<name>.partial.json`, where `load_record` finds them as
    long as there is no record of that name; `finish` puts the record in its place. Arguments and
    errors as in `record`.
    """

    def __init__(
        self,
        name: str,
        command: str,
        out: str | Path | None = None,
        device: str | torch.device | None = None,
    ):
        _check_name(name)
        self.name, self.rows, self.source = name, [], provenance(command, device)
        check_provenance(self.source)
        self.folder = Path(str(_package_folder())) if out is None else Path(out)

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep one more row, before the next one is measured."""
        self.pause([*self.rows, row])

    def pause(self, rows: Iterable[Mapping[str, Any]]) -> Path:
        """Keep these rows, until more is measured, and return their file."""
        self.rows = list(rows)
        return self._write(_partial(self.name), self.rows, self.source | {"partial": True})

    def finish(self, rows: Iterable[Mapping[str, Any]]) -> Path:
        """Write the record of all rows, and return its file."""
        path = self._write(f"{self.name}.json", rows, self.source)
        (self.folder / _partial(self.name)).unlink(missing_ok=True)
        return path

    def _write(self, file_name: str, rows: Iterable[Mapping[str, Any]], source: dict) -> Path:
        text = _as_json(self.name, _clean(rows), source)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / file_name
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=f".{self.name}.") as own:
            half = Path(own) / path.name  # beside it: only within a disk is a rename whole
            with half.open("x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(half, path)
        return path


def load_record(name: str, folder: str | Path | None = None) -> Record:
    """Read the record `name` from the package, or from `folder`; or what there is of it.

    Raises FileNotFoundError if it is not there and ValueError if it is damaged or cannot be read;
    both say which command writes it.
    """
    _check_name(name)
    place = _package_folder() if folder is None else Path(folder)
    whole = place.joinpath(f"{name}.json")
    try:
        try:
            text = whole.read_text(encoding="utf-8")
        except FileNotFoundError:
            text = place.joinpath(_partial(name)).read_text(encoding="utf-8")
    except FileNotFoundError:
        there = ", ".join(records(folder)) or "none"
        raise FileNotFoundError(
            f"record {name!r}: not found in {_shown(folder)} (there: {there}); {_remedy(name)}"
        ) from None
    except OSError as error:
        raise ValueError(f"record {name!r}: {error.strerror}; {_remedy(name)}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"record {name!r}: damaged, {error}; {_remedy(name)}") from None
    try:
        return _parse(name, text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"record {name!r}: damaged, {error}; {_remedy(name)}") from None


def records(folder: str | Path | None = None) -> list[str]:
    """The names of the records in the package, or in `folder`, sorted."""
    place = _package_folder() if folder is None else Path(folder)
    if not place.is_dir():
        return []
    there = [entry.name for entry in place.iterdir() if entry.is_file()]
    return sorted(name.removesuffix(".json") for name in there if _is_record(name))


def provenance_line(record: Record) -> str:
    """One line for under a figure: device, driver, versions, date, commit, command.

    A suite that was continued on another device has rows that name theirs: how many, and which.
    """
    p = record.provenance
    others = Counter(row.get("device") or p["device"] for row in record.rows)
    others.pop(p["device"], None)
    named = [f"{count:,} of {len(record.rows):,} rows {x}" for x, count in sorted(others.items())]
    device = f"{p['device']} ({', '.join(named)})" if named else p["device"]
    versions = [f"{key} {p[key]}" for key in ("torch", "triton", "ssmlib", "python") if p[key]]
    driver = [f"driver {p['driver']}"] if p["driver"] else []
    commit = [f"commit {p['commit'][:7]}{' (modified)' * bool(p['dirty'])}"] if p["commit"] else []
    parts = [device, *driver, *versions, str(p["date"])[:10], *commit, p["command"]]
    parts += ["partial: it was cut short"] * bool(p.get("partial"))
    return " · ".join(str(part) for part in parts)


def _package_folder():
    return files("ssmlib").joinpath("results")


def _shown(folder: str | Path | None) -> str:
    return "ssmlib/results" if folder is None else str(folder)


def _partial(name: str) -> str:
    return f"{name}.partial.json"


def _is_record(file_name: str) -> bool:
    return re.fullmatch(r"[a-z0-9_]+\.json", file_name) is not None


def _remedy(name: str) -> str:
    if name in SUITES:
        return f"`{command_for(name)}` writes it"
    return f"no suite writes it: `python -m ssmlib.bench` has {', '.join(SUITES)}"


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not _is_record(f"{name}.json"):
        raise ValueError(f"name: expected small letters, digits and underscores, got {name!r}")


def _clean(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    if isinstance(rows, str | Mapping) or not isinstance(rows, Iterable):
        raise ValueError(f"rows: expected a list of rows, got {type(rows).__name__}")
    cleaned = [_clean_row(i, row) for i, row in enumerate(rows)]
    if not cleaned:
        raise ValueError("rows: expected at least one row, got none")
    return cleaned


def _clean_row(i: int, row: Mapping[str, Any]) -> Row:
    if not isinstance(row, Mapping) or not row:
        raise ValueError(f"rows[{i}]: expected a dict that is not empty, got {row!r}")
    wrong = [key for key in row if not isinstance(key, str)]
    if wrong:
        raise ValueError(f"rows[{i}]: expected keys that are strings, got {wrong[0]!r}")
    status = row.get("status")
    if not isinstance(status, str | None):
        raise ValueError(f"rows[{i}]['status']: expected a string or None, got {status!r}")
    cleaned = {key: _clean_value(f"rows[{i}][{key!r}]", value) for key, value in row.items()}
    unknown = [key for key, value in cleaned.items() if value != value]  # as only NaN is
    if not unknown:
        return cleaned
    told = f"not a number: {', '.join(unknown)}" if status in (None, "", "ok") else status
    return cleaned | dict.fromkeys(unknown) | {"status": told}


def _clean_value(place: str, value: object) -> str | int | float | bool | None:
    if isinstance(value, str | bool | None):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if not isinstance(value, numbers.Real):
        kind = type(value).__name__
        raise ValueError(f"{place}: expected a string, number or None, got {kind}")
    if math.isinf(value):
        raise ValueError(f"{place}: expected a finite number, got {value}")
    return float(value)


def _as_json(name: str, rows: list[Row], source: dict[str, Any]) -> str:
    def dump(value: object) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    lines = ",\n".join(f"  {dump(row)}" for row in rows)  # a row a line, for readable diffs
    return f'{{\n"name": {dump(name)},\n"rows": [\n{lines}\n],\n"provenance": {dump(source)}\n}}\n'


def _parse(name: str, text: str) -> Record:
    content = json.loads(text, parse_constant=_refuse_constant)
    if not isinstance(content, dict) or set(content) != {"name", "rows", "provenance"}:
        raise ValueError("expected an object with name, rows and provenance")
    if content["name"] != name:
        raise ValueError(f"it says that its name is {content['name']!r}")
    check_provenance(content["provenance"])
    return Record(name, _clean(content["rows"]), content["provenance"])


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
