"""The book's own tools: a failing cell is a failing command, and Colab gets its first cell."""

import runpy
import sys
from pathlib import Path

import nbformat
import pytest

TOOLS = Path(__file__).parents[1] / "book/_tools"


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return lambda name: runpy.run_path(str(TOOLS / f"{name}.py"))


def notebook(path: Path, *sources: str) -> Path:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_a_notebook_is_run_and_measured(tools, tmp_path):
    done = tools("execute")["run"](notebook(tmp_path / "good.ipynb", "x = 1", "print(x + 1)"))
    assert done.notebook.cells[1].outputs[0].text == "2\n"
    assert done.seconds > 0
    assert sys.platform != "linux" or done.peak_bytes > 1e6


def test_a_failing_cell_is_an_exit_code_and_leaves_the_file_alone(tools, tmp_path, capsys):
    path = notebook(tmp_path / "bad.ipynb", "assert 1 + 1 == 3, 'arithmetic'")
    before = path.read_text()
    assert tools("execute")["main"]([path]) == 1
    assert "a cell failed" in capsys.readouterr().err
    assert path.read_text() == before


def test_colab_is_told_what_to_install(tools, tmp_path):
    path = notebook(tmp_path / "chapter.ipynb", 'import sys\n\nSOURCE = ""  # filled in', "x = 1")
    tools("colab")["fill"](path, "git+there@commit")
    assert "SOURCE = 'git+there@commit'  #" in nbformat.read(path, 4).cells[0].source
    with pytest.raises(SystemExit, match='expected SOURCE = "" in the first code cell'):
        tools("colab")["fill"](path, "git+there@commit")
