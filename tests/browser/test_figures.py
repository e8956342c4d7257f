"""The interactive figures on a page of their own: operated, in both themes, and read out."""

import pytest
import torch
from schedules import SCHEDULES
from test_viz_recall import rows as recall_rows

from ssmlib.discretize import METHODS
from ssmlib.example import embed
from ssmlib.palette import PALETTE
from ssmlib.viz import (
    attention_grid,
    dt_dial,
    hippo_draw,
    hybrid_calculator,
    kv_calculator,
    recall_pareto,
    s4_kernel,
    scan_tree,
    selection_dial,
    selection_text,
    ssd_blocks,
    state_heatmap,
)
from ssmlib.viz.selection import PRESETS, RULES, read_with

pytestmark = pytest.mark.browser

NAMES = [
    "attention_grid",
    "kv_calculator",
    "dt_dial",
    "state_heatmap",
    "hippo_draw",
    "s4_kernel",
    "selection_dial",
    "selection_text",
    "scan_tree",
    "ssd_blocks",
    "hybrid_calculator",
    "recall_pareto",
]
PLAIN = """body { margin: 8px; font: 16px sans-serif }
@media (prefers-color-scheme: dark) { body { background: #111; color: #eee } }"""


def colours(which: int) -> str:
    return " ".join(f"--lt-{name}: {pair[which]};" for name, pair in PALETTE.items())


BOOK = f"""html {{ {colours(0)} background: var(--lt-paper); color: var(--lt-ink) }}
html[data-theme="dark"] {{ {colours(1)} }} body {{ margin: 8px; font: 16px sans-serif }}"""


def page(css: str, *figures) -> str:
    body = "\n".join(figure.html() for figure in figures)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Figures</title>'
        '<link rel="icon" href="data:,"><meta name="viewport" content="width=device-width">'
        f"<style>{css}</style></head><body><main><h1>Figures</h1>{body}</main></body></html>"
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory, serve):
    folder = tmp_path_factory.mktemp("figures")
    states = embed(16)[0].cumsum(0)
    figures = [
        attention_grid(),
        kv_calculator(),
        dt_dial(),
        state_heatmap(states),
        hippo_draw(),
        s4_kernel(),
        selection_dial(),
        selection_text("a few\nletters", {"one": range(1, 14), "other": [0.1] * 13}),
        scan_tree(SCHEDULES, 16, follow=3),
        ssd_blocks(),
        hybrid_calculator(),
        recall_pareto(recall_rows()),
    ]
    (folder / "book.html").write_text(page(BOOK, *figures), encoding="utf-8")
    (folder / "plain.html").write_text(page(PLAIN, *figures), encoding="utf-8")
    (folder / "twice.html").write_text(page(BOOK, dt_dial(), dt_dial()), encoding="utf-8")
    return serve(folder)


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", NAMES)
def test_a_figure_is_operated_by_keyboard_and_mouse(name, width, site, visit):
    from drills import DRILLS

    with visit(f"{site}/book.html", width=width) as v:
        DRILLS[name](v.figure(name))
        assert v.overflow(width) <= 0
        assert v.left == v.errors == []


@pytest.mark.parametrize("where", ["book", "plain"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(theme, where, site, visit):
    with visit(f"{site}/{where}.html", theme=theme) as v:
        v.page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
        for name in NAMES:
            v.figure(name)
        v.page.locator("summary").click()
        assert v.axe() == []


def ink(v, name: str) -> str:
    """The colour of the figure's text."""
    return v.figure(name).locator("dd, td, .told").first.evaluate("e => getComputedStyle(e).color")


def rgb(name: str, which: int) -> str:
    code = PALETTE[name][which]
    return f"rgb({', '.join(str(int(code[i : i + 2], 16)) for i in (1, 3, 5))})"


def test_a_figure_follows_the_books_theme(site, visit):
    with visit(f"{site}/book.html") as v:
        for which, theme in enumerate(["light", "dark", "light"]):
            v.page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
            assert ink(v, "dt_dial") == rgb("ink", which % 2)


@pytest.mark.parametrize(("which", "theme"), [(0, "light"), (1, "dark")])
def test_without_the_books_css_it_follows_what_lies_behind_it(which, theme, site, visit):
    with visit(f"{site}/plain.html", theme=theme) as v:
        assert ink(v, "kv_calculator") == rgb("ink", which)


def test_a_notebook_that_turns_dark_takes_the_figure_with_it(site, visit):
    with visit(f"{site}/plain.html") as v:
        assert ink(v, "dt_dial") == rgb("ink", 0)
        v.page.evaluate("document.body.style.background = 'rgb(20, 20, 20)'")
        v.page.wait_for_timeout(100)
        assert ink(v, "dt_dial") == rgb("ink", 1)


def test_without_scripts_the_picture_shows(site, visit):
    with visit(f"{site}/book.html", width=360, scripts=False) as v:
        for name in NAMES:
            picture = v.page.locator(f"[data-lt-name={name}] img")
            assert picture.is_visible()
            assert picture.bounding_box()["width"] > 200
        assert v.page.locator(".lt-live").count() == 0
        assert v.page.locator("figcaption").count() == len(NAMES)


def test_the_same_figure_twice_moves_separately(site, visit):
    with visit(f"{site}/twice.html") as v:
        v.figure("dt_dial")
        first, second = (v.page.locator("[data-lt-name=dt_dial]").nth(i) for i in (0, 1))
        second.get_by_label("Step size").press("End")
        assert first.locator("[data-value=a_bar]").inner_text() == "0.9048"
        assert second.locator("[data-value=a_bar]").inner_text() == "4.54e−5"
        assert v.axe() == []


def test_every_rule_of_the_dial_is_that_of_the_library(site, visit):
    from drills import number, turn

    with visit(f"{site}/book.html") as v:
        dial = v.figure("dt_dial")
        turn(dial.get_by_label("Step size"), "0.501")
        turn(dial.get_by_label("real part"), "−1.2")
        A, B = torch.tensor([[-1.2]]).double(), torch.ones(1, 1).double()
        for name, rule in METHODS.items():
            dial.get_by_label("Rule").select_option(name)
            for key, wanted in zip(("a_bar", "b_bar"), rule(A, B, 0.501), strict=True):
                shown = number(dial.locator(f"[data-value={key}]").inner_text())
                assert shown == pytest.approx(wanted.item(), rel=1e-3)


def test_the_dial_says_so_at_the_pole_of_the_bilinear_rule(site, visit):
    from drills import turn

    with visit(f"{site}/book.html") as v:
        dial = v.figure("dt_dial")
        rule, point = dial.get_by_label("Rule"), dial.locator("[data-part=point]")
        rule.select_option("bilinear")
        dial.get_by_label("Step size").press("End")
        turn(dial.get_by_label("real part"), "0.2")
        assert "pole" in dial.locator(".told").inner_text()
        for key in ("a_bar", "radius", "b_bar", "half"):
            assert dial.locator(f"[data-value={key}]").inner_text() == "none"
        assert not point.is_visible()
        assert dial.locator("[data-part=spiral]").get_attribute("points") == ""
        assert dial.locator("[data-part=stems]").get_attribute("d") == ""
        assert "NaN" not in dial.locator(".lt").evaluate("e => e.outerHTML")
        rule.select_option("zoh")
        assert point.is_visible()
        assert dial.locator("[data-value=a_bar]").inner_text() == "7.389"
        assert v.errors == []


def test_a_pure_wave_has_no_half_life(site, visit):
    from drills import turn

    with visit(f"{site}/book.html") as v:
        dial = v.figure("dt_dial")
        turn(dial.get_by_label("real part"), "0")
        for im in ("0.75", "2", "3.25"):  # where rounding leaves |A_bar| below 1
            turn(dial.get_by_label("imaginary part"), im)
            assert dial.locator("[data-value=half]").inner_text() == "none"
            assert "On the circle" in dial.locator(".told").inner_text()


def test_the_dials_half_life_ends_at_the_axis(site, visit):
    with visit(f"{site}/book.html") as v:
        path = v.figure("dt_dial").locator("[data-part=half]")
        top, bottom = path.evaluate("e => [e.getBBox().y, e.getBBox().y + e.getBBox().height]")
        assert (top, bottom) == (0, 56)


def test_the_tokens_steps_make_the_librarys_state(site, visit):
    from drills import number, turn

    x = embed(1)[0, :, 0]
    steps = [0.32 if dt == 0.3 else dt for dt in PRESETS["filler"][1]]  # the slider's marks
    with visit(f"{site}/book.html") as v:
        dial = v.figure("selection_dial")
        dial.get_by_label("All steps").select_option("filler")
        turn(dial.get_by_label("Eigenvalue a"), "−0.5")
        turn(dial.get_by_label("Token", exact=True), "me")
        for rule in RULES:
            dial.get_by_label("Rule").select_option(rule)
            states, weights = read_with(x, steps, -0.5, rule)
            share = weights[3].abs() / weights.abs().sum()
            for key, wanted in (("after", states[-1]), ("share", 100 * share)):
                shown = number(dial.locator(f"[data-value={key}]").inner_text())
                assert shown == pytest.approx(wanted.item(), rel=5e-3)


def test_a_screen_reader_hears_once_when_the_reader_rests(site, visit):
    with visit(f"{site}/book.html") as v:
        dial = v.figure("dt_dial")
        heard = dial.locator("[aria-live=polite]")
        for _ in range(5):
            dial.get_by_label("Step size").press("ArrowRight")
        assert heard.text_content() == ""
        v.page.wait_for_timeout(700)
        assert "half-life" in heard.text_content()


def test_play_plays_and_pauses(site, visit):
    with visit(f"{site}/book.html") as v:
        figure = v.figure("state_heatmap")
        place = figure.get_by_label("Tokens read")
        figure.get_by_role("button", name="Play").click()
        v.page.wait_for_timeout(1300)
        assert place.get_attribute("aria-valuetext") == "2 of 8"
        figure.get_by_role("button", name="Pause").click()
        v.page.wait_for_timeout(1000)
        assert place.get_attribute("aria-valuetext") == "2 of 8"


def test_nothing_plays_for_a_reader_who_asked_for_less_motion(site, visit):
    with visit(f"{site}/book.html", reduced_motion=True) as v:
        figure = v.figure("state_heatmap")
        assert figure.get_by_role("button", name="Play").count() == 0
        figure.get_by_role("button", name="Show all").click()
        assert figure.get_by_label("Tokens read").get_attribute("aria-valuetext") == "8 of 8"


@pytest.mark.parametrize("name", NAMES)
def test_targets_are_large_enough_for_a_finger(name, site, visit):
    with visit(f"{site}/book.html", width=360) as v:
        for control in (
            v.figure(name).locator("input[type=range], select, button, label.toggle, summary").all()
        ):
            box = control.bounding_box()
            assert min(box["width"], box["height"]) >= 24
