"""The chapter contract, checked by machine on the notebooks as they lie in the repository."""

import json
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIRST_CELL = """\
import sys

SOURCE = ""  # filled in when the book is deployed, so that Colab installs the matching library
if "google.colab" in sys.modules and SOURCE:
    get_ipython().run_line_magic("pip", f"install -q {SOURCE}")"""


class Chapter:
    def __init__(self, path: Path):
        self.name = path.stem
        cells = json.loads(path.read_text())["cells"]
        self.code = [c for c in cells if c["cell_type"] == "code"]
        self.text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        self.lines = [
            sum(bool(line.strip()) for line in "".join(c["source"]).splitlines()) for c in self.code
        ]

    def showing(self, mime: str) -> list[dict]:
        return [c for c in self.code if any(mime in o.get("data", {}) for o in c["outputs"])]


@pytest.fixture(params=CHAPTERS, ids=lambda p: p.stem)
def chapter(request) -> Chapter:
    return Chapter(request.param)


def test_length_and_rhythm(chapter):
    words = len(re.findall(r"\w+", chapter.text))
    assert 2500 <= words <= 4500, f"{words} words of prose"
    assert 150 <= sum(chapter.lines) <= 350, f"{sum(chapter.lines)} lines of code"
    assert statistics.median(chapter.lines) <= 10
    assert max(chapter.lines) <= 40


def test_parts_that_every_chapter_has(chapter):
    for heading in ("Takeaways", "Notation", "Exercises", "Further reading"):
        assert re.search(rf"^##+ .*{heading}", chapter.text, re.M | re.I), f"no {heading}"
    assert len(re.findall(r"^# ", chapter.text, re.M)) == 1
    exercises = re.findall(r"^###+ Exercise", chapter.text, re.M)
    assert 4 <= len(exercises) <= 6, f"{len(exercises)} exercises"
    assert "{cite" in chapter.text
    assert "Claim, checked" in chapter.text or "Claims, checked" in chapter.text


def test_figures_have_alt_text_and_captions(chapter):
    drawn = chapter.showing("image/png")
    plots = [c for c in drawn if "text/html" not in c["outputs"][-1].get("data", {})]
    assert len(drawn) >= 5
    for cell in plots:
        about = cell["metadata"].get("mystnb", {})
        assert len(about.get("image", {}).get("alt", "")) > 20, "".join(cell["source"])
        assert len(about.get("figure", {}).get("caption", "")) > 20, "".join(cell["source"])


def test_something_moves(chapter):
    html = ["".join(o["data"]["text/html"]) for c in chapter.showing("text/html")
            for o in c["outputs"] if "text/html" in o.get("data", {})]  # fmt: skip
    assert any("lt-figure" in page for page in html)


def test_the_chapter_is_executed_and_clean(chapter):
    for cell in chapter.code:
        assert cell["execution_count"], "".join(cell["source"])
        assert "execution" not in cell["metadata"]
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", "".join(output["text"])


def test_the_first_cell_installs_the_library_on_colab_only(chapter):
    assert "".join(chapter.code[0]["source"]) == FIRST_CELL
    assert chapter.code[0]["metadata"]["tags"] == ["remove-cell"]


def test_every_labelled_equation_is_named_by_code(chapter):
    code = "".join("".join(c["source"]) for c in chapter.code)
    sources = [*ROOT.glob("ssmlib/**/*.py"), *ROOT.glob("tests/*.py")]
    code += "".join(p.read_text() for p in sources)
    labels = re.findall(r"^\$\$ *\((eq-[\w-]+)\)", chapter.text, re.M)
    assert labels
    assert [x for x in labels if x not in code] == []


def test_no_claim_of_speed_is_asserted(chapter):
    code = "\n".join("".join(c["source"]) for c in chapter.code)
    assert not re.search(r"assert .*(perf_counter|elapsed|\bseconds\b)", code)


def test_no_label_stands_twice_in_the_book():
    labels = []
    for found in map(Chapter, CHAPTERS):
        figures = (c["metadata"].get("mystnb", {}).get("figure", {}) for c in found.code)
        labels += [figure["name"] for figure in figures if "name" in figure]
        labels += re.findall(r"^(?:\$\$ )?\(([\w-]+)\)=?$", found.text, re.M)
    assert len(labels) > 100
    assert sorted(labels) == sorted(set(labels))
