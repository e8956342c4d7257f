"""The pages that nobody types: the arc, the records, the status of the build, the API.

`generate(root)` writes them to book/_generated, from where the book's pages include them. A file
whose content would stay the same is left alone.
"""

import json
import re
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api import api
from arc import CHAPTERS, arc, written_chapters

if TYPE_CHECKING:
    from ssmlib.bench import Record

Row = dict[str, Any]


def generate(root: Path) -> None:
    """Write every generated page of the book whose root folder this is."""
    makers: dict[str, Callable[[Path], str]] = {
        "arc.html": arc,
        "results.md": results,
        "status.md": status,
        "api.md": api,
    }
    folder = root / "book" / "_generated"
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in makers.items():
        path, text = folder / name, make(root)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def results(root: Path) -> str:
    """Every record: where it comes from, and its rows."""
    folder = root / "ssmlib" / "results"
    names = sorted({path.stem.removesuffix(".partial") for path in folder.glob("*.json")})
    if not names:
        return "There is no record yet; `make bench` writes one.\n"
    from ssmlib.bench import load_record  # it imports torch, which a book without records need not

    return "\n".join(_record(load_record(name, folder)) for name in names)


def _record(record: "Record") -> str:
    experiments = [
        _experiment(name, list(rows))
        for name, rows in groupby(record.rows, key=lambda row: row.get("experiment"))
    ]
    anchor = f"(record-{record.name.replace('_', '-')})="
    told, _, command = record.line.rpartition(" · ")
    source = f"{cell(told)} · `{command}`"
    return "\n\n".join([anchor, f"### {record.name}", source, *experiments]) + "\n"


def _experiment(name: str | None, rows: list[Row]) -> str:
    """Rows that belong together: what they share in one line, what differs as a table."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    columns = {key: [row.get(key) for row in rows] for key in keys if key != "experiment"}
    columns = {key: values for key, values in columns.items() if any(v is not None for v in values)}
    shared = {key: values[0] for key, values in columns.items() if len(set(values)) == 1}
    told = ", ".join(f"{_heading(key)} {cell(value)}" for key, value in shared.items())
    varied = {key: values for key, values in columns.items() if key not in shared}
    if not varied:
        return f"**{cell(name or 'rows')}**: {told}."
    count = f"{len(rows)} row{'s' * (len(rows) != 1)}"
    title = ", ".join(filter(None, (name, count)))
    body = [f"In every row: {told}."] * bool(told) + [table(varied)]
    return f":::{{dropdown}} {title}\n" + "\n\n".join(body) + "\n:::"


def table(columns: dict[str, list[Any]]) -> str:
    """Columns as a Markdown table; those that hold nothing but numbers are flush right."""
    sides = [
        "---:" if all(isinstance(v, int | float | None) for v in values) else ":---"
        for values in columns.values()
    ]
    rows = zip(*([cell(v) for v in values] for values in columns.values()), strict=True)
    lines = [[_heading(key) for key in columns], sides, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _heading(key: str) -> str:
    return key.replace("_", " ")


def cell(value: object) -> str:
    """A value as it is printed: four digits of a float, thousands grouped, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return re.sub(r"([|*_<>\[\]$`\\])", r"\\\1", str(value))
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        small, large = abs(value) < 1e-3, abs(value) >= 1e5
        return f"{value:.3e}" if value and (small or large) else f"{value:.4g}"
    raise TypeError(f"expected a string, a number, a boolean or None, got {type(value).__name__}")


def status(root: Path) -> str:
    """What the last build took, chapter by chapter, and with which versions."""
    path = root / "_build" / "status.json"
    if not path.exists():
        return "`make book` fills this page.\n"
    facts = json.loads(path.read_text(encoding="utf-8"))
    chapters, versions = facts.get("chapters", []), facts.get("versions", {})
    known = [c["seconds"] for c in chapters if c.get("seconds") is not None]
    date, written = facts.get("date"), written_chapters(root)
    lines = [
        f"The chapters were last executed on {date}." if date else "",
        "| chapter | seconds | peak memory, MB |\n| :--- | ---: | ---: |",
    ]
    lines[-1] += "".join(f"\n| {_title(c['file'], written)} | {_told(c)} |" for c in chapters)
    if len(known) > 1:
        lines[-1] += f"\n| together | {sum(known):.1f} | |"
    lines.append("| package | version |\n| :--- | :--- |")
    lines[-1] += "".join(f"\n| {cell(name)} | {cell(v)} |" for name, v in versions.items())
    return "\n\n".join(x for x in lines if x) + "\n"


def _title(file: str, written: set[str]) -> str:
    stem = Path(file).stem
    title = next((f"{stem[:2]} {c.title}" for c in CHAPTERS if c.file == stem), cell(stem))
    return f"[{title}](../{file})" if stem in written else title


def _told(chapter: dict[str, Any]) -> str:
    seconds, peak = chapter.get("seconds"), chapter.get("peak_bytes")
    return " | ".join(
        ["" if seconds is None else f"{seconds:.1f}", "" if peak is None else f"{peak / 1e6:,.0f}"]
    )
