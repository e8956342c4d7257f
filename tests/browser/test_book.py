"""Every page of the built book, in both themes, at a desk and on a phone."""

import re
from pathlib import Path

import pytest
from drills import DRILLS

pytestmark = pytest.mark.browser

BOOK = Path(__file__).parents[2] / "_build/html"
MISSING = "there is no book to look at: run make book OFFLINE=1 first"
PAGES = sorted(
    str(p.relative_to(BOOK))
    for part in ("book", "notebooks")
    for p in (BOOK / part).rglob("*.html")
)
# Pictures without a description, or with their file's name, which is what Sphinx falls back to.
NAMELESS = "images => images.filter(i => !i.alt || /_images/.test(i.alt)).map(i => i.src)"
FIGURES = {
    page: list(dict.fromkeys(re.findall(r'data-lt-name="(\w+)"', (BOOK / page).read_text("utf-8"))))
    for page in PAGES
}


@pytest.fixture(scope="module")
def book(serve):
    if not PAGES:
        pytest.fail(MISSING, pytrace=False)
    return serve(BOOK)


def test_the_book_opens_on_its_first_page(book, visit):
    with visit(f"{book}/index.html") as v:
        v.page.wait_for_url("**/book/index.html")
        assert v.page.locator("h1:visible").count() == 1


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_stands_by_itself(page, theme, book, visit):
    with visit(f"{book}/{page}", theme=theme) as v:
        assert v.page.evaluate("document.documentElement.dataset.theme") == theme
        for name in FIGURES[page]:
            v.figure(name)
        assert v.page.locator("h1:visible").count() == 1
        assert not v.page.locator("article img").evaluate_all(NAMELESS)
        found = v.axe() if theme == "light" else v.axe("color-contrast")  # all that a theme changes
        assert not found, "\n".join(found)
        assert [v.overflow(width) for width in (1280, 390)] == [0, 0]
        assert not v.left, (
            f"{v.left}: only a book built with OFFLINE=1 loads nothing from elsewhere"
        )
        assert not v.errors, "\n".join(v.errors)


@pytest.mark.parametrize(("page", "name"), [(p, name) for p in PAGES for name in FIGURES[p]])
def test_a_figure_moves(page, name, book, visit):
    assert name in DRILLS, f"{name}: write its drill in tests/browser/drills.py"
    with visit(f"{book}/{page}", width=390) as v:
        DRILLS[name](v.figure(name))
        assert not v.errors


@pytest.mark.parametrize("page", [p for p in PAGES if FIGURES[p]])
def test_without_scripts_a_figure_is_a_picture(page, book, visit):
    with visit(f"{book}/{page}", width=390, scripts=False) as v:
        pictures = v.page.locator(".lt-figure img")
        assert pictures.count() >= len(FIGURES[page])
        for picture in pictures.all():
            assert picture.is_visible()
            assert picture.bounding_box()["width"] > 200
