"""The build runs what changed: a chapter when its code did, every chapter when the library did."""

import importlib
from pathlib import Path

import nbformat
import pytest

TOOLS = Path(__file__).parents[1] / "book/_tools"


@pytest.fixture
def build(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(TOOLS))
    build = importlib.import_module("build")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "CACHE", tmp_path / "cache")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "ssmlib").mkdir()
    (tmp_path / "requirements.txt").write_text("")
    return build


def write(root: Path, name: str, source: str) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbformat.write(notebook, root / "notebooks" / name)


def rebuild(build, capsys) -> tuple[list | None, list[str]]:
    build.forget_outdated(build.library_fingerprint())
    chapters = build.execute_stale()
    told = capsys.readouterr().out.splitlines()
    return chapters, [line.split("/")[1] for line in told if line.startswith("executing")]


def test_only_what_changed_is_executed(build, tmp_path, capsys):
    write(tmp_path, "01.ipynb", "x = 1")
    write(tmp_path, "02.ipynb", "x = 2")
    chapters, executed = rebuild(build, capsys)
    assert executed == ["01.ipynb", "02.ipynb"]
    again, executed = rebuild(build, capsys)
    assert (again, executed) == (chapters, [])
    assert all(chapter["seconds"] > 0 for chapter in again)
    write(tmp_path, "02.ipynb", "x = 3")
    assert rebuild(build, capsys)[1] == ["02.ipynb"]
    (tmp_path / "ssmlib/new.py").write_text("y = 1")
    assert rebuild(build, capsys)[1] == ["01.ipynb", "02.ipynb"]


def test_outputs_of_another_library_never_come_back(build, tmp_path, capsys):
    library = tmp_path / "ssmlib/value.py"
    library.write_text("1")
    write(tmp_path, "01.ipynb", f"print(open({str(library)!r}).read())")
    write(tmp_path, "02.ipynb", f"assert open({str(library)!r}).read() == '1'")
    assert rebuild(build, capsys)[0] is not None
    library.write_text("2")
    assert rebuild(build, capsys)[0] is None  # 01 ran with library 2, then 02 failed
    library.write_text("1")
    chapters, executed = rebuild(build, capsys)
    assert executed == ["01.ipynb", "02.ipynb"]
    assert chapters is not None
