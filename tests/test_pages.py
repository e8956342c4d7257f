"""The generated pages: complete, the same each time, and without anything of the machine."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ssmlib.shapes import LETTERS

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / "book/_tools"
PROVENANCE = {
    "device": "A GPU", "driver": "1.2", "torch": "2.13.0", "triton": None, "ssmlib": "0.1.0",
    "python": "3.11.7", "date": "2026-01-02T03:04:05Z", "commit": "0123456789abcdef",
    "dirty": False, "command": "python -m ssmlib.bench attention",
}  # fmt: skip


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))


@pytest.fixture
def root(tmp_path, tools) -> Path:
    """A book with one chapter listed and there, one listed only, and one there only."""
    shutil.copytree(ROOT / "ssmlib", tmp_path / "ssmlib", ignore=shutil.ignore_patterns("results"))
    for name in ("01_attention_cost", "03_hippo"):
        path = tmp_path / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    listed = ["01_attention_cost", "02_discretization"]
    chapters = "".join(f"      - file: notebooks/{name}\n" for name in listed)
    toc = f"format: jb-book\nroot: book/index\nparts:\n  - chapters:\n{chapters}"
    (tmp_path / "_toc.yml").write_text(toc)
    return tmp_path


def pages(root: Path) -> dict[str, str]:
    from pages import generate

    generate(root)
    return {path.name: path.read_text() for path in (root / "book/_generated").iterdir()}


def write_record(root: Path, rows: list[dict]) -> None:
    folder = root / "ssmlib/results"
    folder.mkdir(exist_ok=True)
    content = {"name": "attention", "rows": rows, "provenance": PROVENANCE}
    (folder / "attention.json").write_text(json.dumps(content))


class Links(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.links, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.links += [value for name, value in attributes if name == "href"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_arc_links_the_chapters_that_are_listed_and_there(root):
    from arc import CHAPTERS

    arc = pages(root)["arc.html"]
    parsed = Links(arc)
    assert parsed.open == []
    assert parsed.links == ["../notebooks/01_attention_cost.html"]
    assert arc.count('class="lt-state">not yet written<') == len(CHAPTERS) - 1
    for chapter in CHAPTERS:
        assert chapter.title in arc


def test_every_chapter_has_a_place_inside_the_picture(tools):
    from arc import CHAPTERS, line, places

    spots = places()
    assert len(spots) == len(CHAPTERS)
    assert all(0 < x < 100 and 0 < y < 100 for x, y in spots)
    assert all(y == pytest.approx(line(x)) for x, y in spots[1:])
    assert [x for x, _ in spots] == sorted(x for x, _ in spots)


def test_the_plan_names_each_notebook_there_is(tools):
    from arc import CHAPTERS

    there = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert there <= {chapter.file for chapter in CHAPTERS}


def test_a_book_without_records_or_build_says_what_makes_them(root):
    made = pages(root)
    assert "make bench" in made["results.md"]
    assert "make book" in made["status.md"]


def test_records_are_told_with_their_source_and_rows(root):
    shared = {"experiment": "causal", "k": 128, "form": None}
    rows = [shared | {"n": n, "seconds": n / 1e6, "status": "a|b"} for n in (1024, 131072)]
    write_record(root, [{"experiment": "ceilings", "rate": 1.25e12}, *rows])
    text = pages(root)["results.md"]
    assert "A GPU · driver 1.2 · torch 2.13.0" in text
    assert "`python -m ssmlib.bench attention`" in text
    assert "**ceilings**: rate 1.250e+12." in text
    assert r"In every row: k 128, status a\|b." in text
    assert "| 1024 | 0.001024 |\n| 131,072 | 0.1311 |" in text
    assert "form" not in text


def test_every_record_there_is_has_its_place(tools):
    import pages

    told = pages.results(ROOT)
    names = {path.stem.split(".")[0] for path in (ROOT / "ssmlib/results").glob("*.json")}
    assert re.findall(r"^### (.+)$", told, flags=re.M) == sorted(names)


def test_no_group_of_modules_is_without_a_name(tools):
    import api

    groups = api._grouped(ROOT / "ssmlib", [name for name, _ in api._modules(ROOT / "ssmlib")])
    assert all(title.strip() for title in groups)


def test_the_status_lists_chapters_and_versions(root):
    chapters = [
        {"file": "notebooks/01_attention_cost.ipynb", "seconds": 12.34, "peak_bytes": 812_345_678},
        {"file": "notebooks/02_discretization.ipynb", "seconds": 1.0, "peak_bytes": None},
    ]
    facts = {"chapters": chapters, "versions": {"torch": "2.13.0"}, "date": "2026-01-02"}
    (root / "_build").mkdir()
    (root / "_build/status.json").write_text(json.dumps(facts))
    text = pages(root)["status.md"]
    assert "(../notebooks/01_attention_cost.ipynb) | 12.3 | 812 |" in text
    assert "| 02 Discretization | 1.0 |  |" in text
    assert "| together | 13.3 | |" in text
    assert "| torch | 2.13.0 |" in text
    assert "2026-01-02" in text


def test_every_public_function_has_its_entry(root):
    text = pages(root)["api.md"]
    assert ":::{py:function} attention(q, k, v, causal=True, window=None, backend='auto')" in text
    assert "### ssmlib.shapes" in text
    assert "_check_axes" not in text
    entries = re.findall(
        r"^```\{py:module\} (.*)$|^:+\{py:(?:function|class|data)\} (\w+)", text, re.M
    )
    module, seen = "", []
    for name, entry in entries:
        module = name or module
        seen.append((module, entry))
    assert len(seen) == len(set(seen))


def test_docstrings_keep_their_code_and_lose_their_tags(tools):
    from api import markdown

    assert markdown("a < b, `a < b`, $a < b$\n\n    a < b") == (
        "a &lt; b, `a < b`, $a < b$\n\n    a < b"
    )
    assert markdown("store    rows on disk\ntiming   seconds") == (
        "- `store`: rows on disk\n- `timing`: seconds"
    )
    assert markdown("% of it") == r"\% of it"


def test_what_stays_the_same_is_not_written_again(root):
    before = pages(root)
    times = {path: path.stat().st_mtime_ns for path in (root / "book/_generated").iterdir()}
    assert pages(root) == before
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_no_page_tells_of_the_machine(root):
    write_record(root, [{"n": 1}])
    for text in pages(root).values():
        assert str(root) not in text
        assert not re.search(r"/(home|root|work|tmp|Users|mnt)/", text)


def test_the_notation_page_has_every_letter():
    text = (ROOT / "book/notation.md").read_text()
    rows = re.findall(r"^\| (`.*?`) \|", text.partition("## Symbols")[0], re.M)
    told = {letter for row in rows for letter in re.findall(r"`(\w)`", row)}
    assert told == LETTERS
