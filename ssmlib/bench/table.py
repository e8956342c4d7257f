"""Rows as a table of plain text."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

Column = tuple[str, int, Callable[[Mapping[str, Any]], str]]  # heading, width, the cell of a row


def table(rows: Iterable[Mapping[str, Any]], columns: Iterable[Column], head: bool = True) -> str:
    """One line a row, right-aligned, the heading first if `head`."""
    columns = list(columns)
    lines = ["  ".join(title.rjust(width) for title, width, _ in columns)] if head else []
    lines += ["  ".join(cell(row).rjust(width) for _, width, cell in columns) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def text(key: str) -> Callable[[Mapping[str, Any]], str]:
    """The cell that shows row[key] as it is, and nothing where there is nothing."""
    return lambda row: "" if row.get(key) is None else str(row[key])


def number(key: str, scale: float = 1.0, form: str = ".4g") -> Callable[[Mapping[str, Any]], str]:
    """The cell that shows row[key] * scale, and nothing where there is nothing."""
    return lambda row: "" if row.get(key) is None else format(row[key] * scale, form)
