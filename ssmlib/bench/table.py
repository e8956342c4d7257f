"""Rows as a table of plain text."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

Row = Mapping[str, Any]
Column = tuple[str, int, Callable[[Row], str]]  # heading, width, the cell of a row


def table(rows: Iterable[Row], columns: Iterable[Column], head: bool = True) -> str:
    """One line a row, right-aligned, the heading first if `head`."""
    columns = list(columns)
    lines = ["  ".join(title.rjust(width) for title, width, _ in columns)] if head else []
    lines += ["  ".join(cell(row).rjust(width) for _, width, cell in columns) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def text(key: str) -> Callable[[Row], str]:
    """The cell that shows row[key] as it is, and nothing where there is nothing."""
    return lambda row: "" if row.get(key) is None else str(row[key])


def number(key: str, scale: float = 1.0, form: str = ".4g") -> Callable[[Row], str]:
    """The cell that shows row[key] * scale, and nothing where there is nothing."""
    return lambda row: "" if row.get(key) is None else format(row[key] * scale, form)


def collect(
    rows: Iterable[dict[str, Any]],
    columns: Iterable[Column],
    progress: Callable[[str], None] | None = None,
    save: Callable[[Row], None] | None = None,
) -> list[dict[str, Any]]:
    """The rows, as a list; as each comes, save is called with it and progress with its line."""
    found, columns = [], list(columns)
    for row in rows:
        found.append(row)
        if save is not None:
            save(row)
        if progress is not None:
            progress(table([row], columns, head=False))
    return found
