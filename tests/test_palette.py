"""One palette on pages, plots and figures; readable on both pages, also after the pages' filter."""

import math
import re
from pathlib import Path

import pytest

from ssmlib.palette import PALETTE

STATIC = Path(__file__).parents[1] / "book/_static"
CSS = "".join(path.read_text(encoding="utf-8") for path in sorted(STATIC.glob("*.css")))
READABLE, VISIBLE = 4.5, 3.0  # WCAG 2.2 AA: contrast of text, and of graphics
TEXT = [name for name in PALETTE if name not in ("paper", "panel", "line")]
HUES = [name for name in TEXT if name not in ("muted", "ink")]

# hue-rotate(180deg) as Filter Effects Module Level 1 defines it: the matrix at cos = -1, sin = 0
HALF_TURN = [
    [0.213 - 0.787, 0.715 + 0.715, 0.072 + 0.072],
    [0.213 + 0.213, 0.715 - 0.285, 0.072 + 0.072],
    [0.213 + 0.213, 0.715 + 0.715, 0.072 - 0.928],
]


def rgb(colour: str) -> list[float]:
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def linear(colour: list[float]) -> list[float]:
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]


def luminance(colour: list[float]) -> float:
    r, g, b = linear(colour)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: list[float], other: list[float]) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def hue(colour: list[float]) -> float:
    """Degrees around Oklab's axis of greys (Ottosson 2020)."""
    r, g, b = linear(colour)
    long, middle, short = (
        (x * r + y * g + z * b) ** (1 / 3)
        for x, y, z in (
            (0.4122214708, 0.5363325363, 0.0514459929),
            (0.2119034982, 0.6806995451, 0.1073969566),
            (0.0883024619, 0.2817188376, 0.6299787005),
        )
    )
    a = 1.9779984951 * long - 2.4285922050 * middle + 0.4505937099 * short
    b = 0.0259040371 * long + 0.7827717662 * middle - 0.8086757660 * short
    return math.degrees(math.atan2(b, a))


def on_the_dark_page(colour: str) -> list[float]:
    """A light colour of a plot after invert(1), hue-rotate(180deg) and mix-blend-mode: screen."""
    turned = [1 - c for c in rgb(colour)]
    turned = [sum(m * c for m, c in zip(row, turned, strict=True)) for row in HALF_TURN]
    page = rgb(PALETTE["paper"][1])
    pairs = zip(turned, page, strict=True)
    return [1 - (1 - min(max(c, 0.0), 1.0)) * (1 - p) for c, p in pairs]


def variables(theme: str) -> dict[str, str]:
    block = re.search(rf'html\[data-theme="{theme}"\] \{{([^}}]*--lt-ink:[^}}]*)\}}', CSS)
    return dict(re.findall(r"--lt-([a-z]+): (#[0-9a-f]{6});", block[1]))


@pytest.mark.parametrize(("theme", "index"), [("light", 0), ("dark", 1)])
def test_the_stylesheet_has_the_palette(theme, index):
    assert variables(theme) == {name: pair[index] for name, pair in PALETTE.items()}


def test_the_stylesheet_has_no_other_colours():
    written = set(re.findall(r"#[0-9a-f]{3,8}\b", CSS))
    assert written == {colour for pair in PALETTE.values() for colour in pair}


@pytest.mark.parametrize("index", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("behind", ["paper", "panel"])
@pytest.mark.parametrize("name", TEXT)
def test_every_colour_can_be_text(name, behind, index):
    assert contrast(rgb(PALETTE[name][index]), rgb(PALETTE[behind][index])) >= READABLE


def test_the_filter_is_the_one_computed_here():
    rule = re.search(
        r'html\[data-theme="dark"\] \.bd-content div\.cell_output img \{([^}]*)\}', CSS
    )
    assert "filter: invert(1) hue-rotate(180deg);" in rule[1]
    assert "mix-blend-mode: screen;" in rule[1]


@pytest.mark.parametrize("name", TEXT)
def test_plots_stay_readable_when_the_dark_page_turns_them_over(name):
    assert contrast(on_the_dark_page(PALETTE[name][0]), rgb(PALETTE["paper"][1])) >= READABLE


@pytest.mark.parametrize("name", HUES)
def test_plots_keep_their_hues_when_the_dark_page_turns_them_over(name):
    light, dark = PALETTE[name]
    away = abs(hue(on_the_dark_page(light)) - hue(rgb(dark))) % 360
    assert min(away, 360 - away) <= 6


def test_white_in_a_plot_becomes_the_page():
    assert on_the_dark_page("#ffffff") == pytest.approx(rgb(PALETTE["paper"][1]), abs=1e-9)


@pytest.mark.parametrize("file", ["logo.svg", "favicon.svg"])
@pytest.mark.parametrize("index", [0, 1], ids=["light", "dark"])
def test_the_mark_shows_on_both_pages(file, index):
    colours = set(re.findall(r"#[0-9a-f]{6}", (STATIC / file).read_text(encoding="utf-8")))
    assert len(colours) == 2
    for colour in colours:
        assert contrast(rgb(colour), rgb(PALETTE["paper"][index])) >= VISIBLE
