"""The interactive figures as data and as a notebook's output; tests/browser/ operates them."""

import base64
import json
import math
import re
import shutil
import subprocess
import sys
import types
from html.parser import HTMLParser

import matplotlib as mpl
import pytest
import torch
import traitlets
from schedules import SCHEDULES, loop
from test_viz_recall import rows as recall_rows

from ssmlib import plots
from ssmlib.costs import MODELS, context_bytes, parameters
from ssmlib.discretize import METHODS
from ssmlib.example import TOKENS, embed
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
from ssmlib.viz.figures import RULES
from ssmlib.viz.host import STATIC, source
from ssmlib.viz.scan import check_scan
from ssmlib.viz.selection import PRESETS, read_with
from ssmlib.viz.traffic import CALLS, D, N, T, draw, traffic

MAKE = {
    "attention_grid": attention_grid,
    "kv_calculator": kv_calculator,
    "dt_dial": dt_dial,
    "state_heatmap": lambda: state_heatmap(embed(4)[0]),
    "hippo_draw": hippo_draw,
    "hybrid_calculator": hybrid_calculator,
    "s4_kernel": s4_kernel,
    "recall_pareto": lambda: recall_pareto(recall_rows()),
    "scan_tree": lambda: scan_tree(SCHEDULES),
    "selection_dial": selection_dial,
    "ssd_blocks": ssd_blocks,
    "selection_text": lambda: selection_text(
        "a few\nletters of some text", {"one": torch.rand(26) + 0.1, "other": [0.5] * 26}
    ),
}
VOID = {"img"}


@pytest.fixture(scope="module", params=MAKE)
def figure(request):
    return MAKE[request.param]()


@pytest.fixture(scope="module")
def bundle(figure):
    return figure._repr_mimebundle_()


class Tags(HTMLParser):
    """Whether tags close in order, and what stands directly in the figure."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.children: list[str] = []
        self.attributes: dict[str, dict] = {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if len(self.open) == 1:
            self.children.append(tag)
        self.attributes[tag] = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def payload(text: str) -> dict:
    """What the page's script hands to the figure's module."""
    return json.loads(re.search(r"const \{ module, state \} = (\{.*\});$", text, re.M)[1])


def test_a_figure_is_html_a_picture_and_its_description(figure, bundle):
    assert set(bundle) == {"text/html", "image/png", "text/plain"}
    png = base64.b64decode(bundle["image/png"], validate=True)
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = int.from_bytes(png[16:20]), int.from_bytes(png[20:24])
    assert width >= 600
    assert height >= 200
    assert len(bundle["text/plain"]) > 60
    assert len(png) < 60_000
    assert len(bundle["text/html"]) < 120_000


def test_the_html_is_whole_and_needs_nothing_from_elsewhere(figure, bundle):
    html = bundle["text/html"]
    tags = Tags(html)
    assert tags.children == ["img", "script", "figcaption"]
    assert tags.attributes["img"]["alt"] == bundle["text/plain"] == figure.alt
    assert tags.attributes["img"]["src"] == "data:image/png;base64," + bundle["image/png"]
    assert len(figure.caption) > 60
    assert not re.search(r"https?:", html)
    assert not re.search(r"""\bid=["']""", html), "an id would occur twice with the figure"


def test_the_page_hands_over_the_figures_data_and_the_books_colours(figure, bundle):
    sent = payload(bundle["text/html"])
    assert sent["module"] == source(figure.name)
    assert sent["state"]["data"] == json.loads(json.dumps(figure.data))
    assert sent["state"]["palette"] == {name: list(pair) for name, pair in PALETTE.items()}


def test_text_cannot_break_out_of_the_script():
    token = "</script><!--<script>&\"'\\ \u2028"
    html = state_heatmap([[1.0]], [token]).html()
    assert Tags(html).children == ["img", "script", "figcaption"]
    assert html.count("</script") == 1
    assert payload(html)["state"]["data"]["tokens"] == [token]


def test_a_uid_names_the_content_in_every_process():
    code = (
        "from ssmlib.viz import attention_grid, dt_dial, kv_calculator\n"
        "print(attention_grid().uid, kv_calculator().uid, dt_dial().uid)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = [attention_grid().uid, kv_calculator().uid, dt_dial().uid]
    assert out.stdout.split() == here
    assert len({*here, dt_dial(dt=0.2).uid, attention_grid(length=9).uid}) == 5


def test_pictures_are_drawn_when_asked_for_and_outside_of_pyplot():
    code = (
        "import sys\nfrom ssmlib.viz import dt_dial\nfigure = dt_dial()\n"
        "assert 'matplotlib' not in sys.modules\nfigure.png\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_calculator_counts_as_costs_does():
    figure = kv_calculator()
    assert [m["name"] for m in figure.data["models"]] == list(MODELS)
    for m in figure.data["models"]:
        assert m["parameters"] == parameters(m["name"])
        for n in (1, 1024, 131072):
            assert 2 * m["kv_values"] * n + m["state_bytes"] == context_bytes(m["name"], n)
    llama = next(m for m in figure.data["models"] if m["name"] == "Llama-3-70B")
    assert 2 * llama["kv_values"] * 131072 == 42_949_672_960
    assert "42.95 GB" in figure.alt


def test_the_dial_offers_every_rule_and_states_the_half_life():
    assert set(RULES) == set(METHODS)
    assert f"half-life of {math.log(2) / 0.1:.4g} steps" in dt_dial(dt=0.1, a=-1).alt
    for a in (0, 0.75j, 1j, 2j, 10j):
        assert "never fading" in dt_dial(dt=0.1, a=a).alt  # on the circle, but for rounding
    assert "growing at every step" in dt_dial(dt=1, a=0.25).alt
    assert "growing at every step" in dt_dial(dt=10, a=-1, method="euler").alt
    assert "half-life of 0 steps" in dt_dial(dt=1, a=-1, method="euler").alt


@pytest.mark.parametrize("dt", [3.99, 3.999999, 3.9999999999])
def test_the_dial_is_drawn_beside_the_poles_of_the_bilinear_rule(dt):
    figure = dt_dial(dt=dt, a=0.5, method="bilinear")  # its powers leave float64
    assert figure.png
    assert "growing" in figure.alt


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_the_dials_rules_and_verdicts_at_the_edges():
    code = source("dt_dial").replace("export default { render };", "")
    code += """
      const told = [[2, 0], [0, 0], [0, 1], [1, 0], [-1, 0]].map((z) => {
        const [aBar] = RULES.bilinear(z, 1);
        return verdict(size(aBar), aBar);
      });
      console.log(JSON.stringify(told));"""
    run = ["node", "--input-type=module", "-e", code]
    out = subprocess.run(run, capture_output=True, text=True, check=True)
    pole, *told = [sentence.split(":")[0] for sentence in json.loads(out.stdout)]
    assert pole == "At the rule's pole, aΔ = 2"
    assert told == ["On the circle", "On the circle", "Unstable", "Inside the circle"]


@pytest.mark.parametrize(("n", "article"), [(1, "A"), (8, "An"), (10, "A"), (11, "An"), (18, "An")])
def test_the_grid_is_read_as_it_is_spoken(n, article):
    assert attention_grid(length=n).alt.startswith(f"{article} {n} by {n} grid")
    assert attention_grid(length=1000 * n).alt.startswith(f"{article} {1000 * n} by")
    assert attention_grid(length=1800).alt.startswith("A 1800 by")


@pytest.mark.parametrize("token", ["$x_$", "$", "^_{", "\\frac", "東京", "🦛", "שלום", "\t", ""])
def test_a_token_is_drawn_as_it_stands(token):
    figure = state_heatmap(torch.ones(3, 4), [token, "a", "b"])
    assert figure.png.startswith(b"\x89PNG")
    assert figure.data["tokens"] == [token, "a", "b"]


def test_half_a_surrogate_pair_is_a_question_mark():
    figure = state_heatmap(torch.ones(1, 2), ["a\ud83d"])
    assert figure.data["tokens"] == ["a?"]
    assert "a?" in figure.html()
    assert figure.uid


def test_the_grid_states_its_counts():
    alt = attention_grid(length=8).alt
    assert "64 in all" in alt
    assert "36 on and below" in alt
    assert "n = 32 is" in attention_grid().caption


@pytest.mark.parametrize("convert", [lambda x: x, torch.Tensor.numpy, torch.Tensor.tolist])
def test_states_come_as_tensors_arrays_or_lists(convert):
    states = embed(3)[0]
    shown = state_heatmap(convert(states)).data["states"]
    torch.testing.assert_close(torch.tensor(shown, dtype=torch.float64), states, rtol=1e-5, atol=0)
    assert state_heatmap(states).data["tokens"] == list(TOKENS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attention_grid(max_length=0), "max_length: expected a whole number >= 1, got 0"),
        (lambda: attention_grid(length=9, max_length=8), "length: expected a whole number"),
        (lambda: attention_grid(d_state=0), "d_state: expected a whole number >= 1, got 0"),
        (lambda: kv_calculator("GPT-5"), "model: expected one of Llama-2-7B, "),
        (lambda: kv_calculator(context=0), "context: expected a whole number >= 1, got 0"),
        (lambda: kv_calculator(batch=1.5), "batch: expected a whole number >= 1, got 1.5"),
        (lambda: dt_dial(dt=0), "dt: expected a finite number >= 0.001 <= 10, got 0"),
        (lambda: dt_dial(a=1), "a.real: expected a finite number"),
        (lambda: dt_dial(a=-1 - 1j), "a.imag: expected a finite number"),
        (lambda: dt_dial(a="x"), "a: expected a number, real or complex, got 'x'"),
        (lambda: dt_dial(a="1"), "a: expected a number, real or complex, got '1'"),
        (lambda: dt_dial(a=None), "a: expected a number, real or complex, got None"),
        (lambda: dt_dial(a=torch.ones(2)), "a: expected a number, real or complex, got tensor"),
        (
            lambda: dt_dial(4, 0.5, "bilinear"),
            "dt, a: expected aΔ ≠ 2 for the bilinear rule, got dt=4, a=0.5",
        ),
        (lambda: dt_dial(10, 0.2, "bilinear"), "dt, a: expected aΔ ≠ 2 .* got dt=10, a=0.2"),
        (lambda: dt_dial(method="rk4"), "method: expected one of zoh, "),
        (lambda: state_heatmap(embed(4)), r"states: expected .* \(t, n\), got shape \(1, 8, 4\)"),
        (lambda: state_heatmap(torch.ones(8)), r"states: expected .* got shape \(8,\)"),
        (lambda: state_heatmap(torch.ones(8, 0)), r"states: expected .* got shape \(8, 0\)"),
        (lambda: state_heatmap([[1.0], [1.0, 2.0]], "ab"), "states: expected .* got list"),
        (lambda: state_heatmap(torch.ones(8, 2) * 1j), "states: expected real .*complex64"),
        (lambda: state_heatmap(torch.full((8, 2), math.nan)), "states: expected finite numbers"),
        (lambda: state_heatmap(torch.ones(7, 2)), "tokens: expected 7 .t of states., got 8"),
        (lambda: state_heatmap(torch.ones(7, 2), None), "tokens: expected 7 strings, got NoneType"),
        (lambda: hippo_draw("hermite"), "measure: expected one of legs, .* got 'hermite'"),
        (lambda: hippo_draw(preset="song"), "preset: expected one of waves, .* got 'song'"),
        (lambda: hippo_draw(n=65), "n: expected a whole number >= 1 <= 64, got 65"),
        (lambda: hippo_draw(window=19), "window: expected a whole number >= 20 <= 240, got 19"),
        (lambda: s4_kernel("hippo"), "init: expected one of legs, .* got 'hippo'"),
        (lambda: s4_kernel(n=5), "n: expected one of 2, 4, 8, 16, 32, got 5"),
        (lambda: s4_kernel(dt=0.3), "dt: expected a finite number >= 0.001 <= 0.2, got 0.3"),
        (lambda: s4_kernel(weights="two"), "weights: expected one of ones, echo, got 'two'"),
        (lambda: s4_kernel(signal="song"), "signal: expected one of pulse, .* got 'song'"),
        (lambda: scan_tree({}), "schedules: expected at least one, got none"),
        (lambda: scan_tree(SCHEDULES, 5), "length: expected one of 2, 4, 8, 16, 32, got 5"),
        (lambda: scan_tree(SCHEDULES, 8, follow=9), "follow: expected a whole number >= 0 <= 8"),
        (lambda: scan_tree({"a": lambda n: []}), r"'a'\], 2 entries: expected entry 1 to end with"),
        (
            lambda: scan_tree({"a": lambda n: loop(n) + [[(0, 1)]]}),
            r"'a'\], 2 entries, round 2: \(0, 1\) joins inputs 0 to 0 with 0 to 1, which do not",
        ),
        (
            lambda: scan_tree({"a": lambda n: [[(1, 0)]]}),
            r"expected 0 <= i < j < 2, got .* \(1, 0\)",
        ),
        (
            lambda: scan_tree({"a": lambda n: [[(0, 1), (0, 1)]]}),
            "round 1: two pairs write the same entry",
        ),
        (lambda: selection_dial("open"), "steps: expected one of alike, .* got 'open'"),
        (lambda: selection_dial([0.1] * 7), "steps: expected 8 .one for each token., got 7"),
        (lambda: selection_dial([0.0] * 8), r"steps\[0\]: expected a finite number >= 0.001"),
        (lambda: selection_dial(a=0.5), "a: expected a finite number >= -16 <= 0.25, got 0.5"),
        (lambda: selection_dial(rule="euler"), "rule: expected one of zoh, .* got 'euler'"),
        (lambda: selection_dial(token=8), "token: expected a whole number >= 0 <= 7, got 8"),
        (lambda: selection_text("", {"a": []}), "text: expected at least one character"),
        (lambda: selection_text("ab", {}), "steps: expected at least one row"),
        (lambda: selection_text("ab", {"a": [1]}), "steps.'a'.: expected 2 .t of text., got 1"),
        (lambda: selection_text("ab", {"a": [1, 0]}), "steps.'a'.: expected positive finite"),
        (lambda: selection_text("ab", {"a": "no"}), "steps.'a'.: expected 2 numbers, got 'no'"),
        (lambda: selection_text("ab", {"a": [1, 1]}, "b"), "row: expected one of a, got 'b'"),
        (lambda: selection_text("ab", {"a": [1, 1]}, place=2), "place: expected a whole number"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_reset_at_the_name_leaves_no_trace_of_what_came_before():
    x = torch.arange(1.0, 9).double()
    states, weights = read_with(x, PRESETS["door"][1], -1.0, "zoh")
    torch.testing.assert_close((weights * x).sum(), states[-1])
    assert weights[:3].abs().max() < 1e-5
    assert weights[3] / weights.sum() > 0.99
    assert "has 99.6%" in selection_dial("door").alt


@pytest.mark.parametrize("name", MAKE)
def test_a_still_picture_is_drawn_under_the_books_style_too(name):
    with mpl.rc_context(plots._style()):  # a warning would be an error here
        assert MAKE[name]().png


def test_a_widget_without_anywidget_says_what_to_install(figure, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(ImportError, match=r"pip install 'ssmlib\[live\]'"):
        figure.widget()


def test_a_widget_hosts_the_same_module_and_data(figure, monkeypatch):
    anywidget = types.ModuleType("anywidget")
    anywidget.AnyWidget = type("AnyWidget", (traitlets.HasTraits,), {})
    monkeypatch.setitem(sys.modules, "anywidget", anywidget)
    widget = figure.widget()
    assert widget._esm == source(figure.name)
    assert widget.data == figure.data
    assert widget.caption == figure.caption
    assert {"data", "caption", "palette", "css", "value"} <= set(widget.traits(sync=True))


@pytest.mark.parametrize("name", MAKE)
def test_a_module_is_one_file_in_anywidgets_form(name, tmp_path):
    code = source(name)
    assert "import " not in code
    assert code.count("export ") == 1
    assert code.rstrip().endswith("export default { render };")
    for path in (STATIC / f"{name}.mjs", STATIC / "common.mjs"):
        assert len(path.read_text().splitlines()) <= 300
    if shutil.which("node"):
        (tmp_path / "figure.mjs").write_text(code)
        subprocess.run(["node", "--check", tmp_path / "figure.mjs"], check=True)


def test_figures_use_the_books_colours_only():
    local = {"much", "shade", "filled"}
    for path in STATIC.iterdir():
        text = path.read_text()
        assert set(re.findall(r"var\(--(?!lt-)([a-z]+)", text)) <= set(PALETTE) | local, path.name
        assert not re.search(r"#[0-9a-f]{3,8}\b|rgba?\(", text), path.name


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=list(SCHEDULES))
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13, 64, 100])
def test_the_schedules_are_scans_at_any_length(schedule, n):
    check_scan(schedule(n), n)


def test_the_trees_counts():
    counts = {name: (sum(map(len, s(1024))), len(s(1024))) for name, s in SCHEDULES.items()}
    assert counts["loop"] == (1023, 1023)
    assert counts["Hillis–Steele"] == (9217, 10)
    assert counts["Blelloch"] == (2036, 19)
    assert "Blelloch, on 8 entries: 11 combinations" in scan_tree(SCHEDULES).alt


def test_the_traffic_of_a_kernel_is_counted_from_its_run():
    state, token, size = T * D * N * 4, T * D * 4, 4
    spread, fused, saving = (
        traffic(f"{name}") for name in ("spread_scan", "fused_scan", "fused_saving")
    )
    assert spread.moved("load") == 2 * state
    assert spread.moved("store") == state
    blocks = 2  # each reads all of B and C
    assert fused.moved("load") == 2 * token + blocks * 2 * T * N * size + D * N * size
    assert fused.moved("store", "y") == token
    assert saving.moved("store", "saved") == T // 4 * D * N * size
    back = traffic("fused_backward")
    assert back.moved("load", "x") == 2 * token  # once for the states, once for the gradients
    assert back.moved("load", "dy") == back.moved("store", "dx") == token
    assert back.moved("load", "chunk") == back.moved("store", "chunk") == state
    assert back.touched("store") == ["chunk", "dC", "dB", "dx", "ddt", "dA"]
    assert traffic("step").moved("store", "h") == D * N * size


def test_traffic_is_traced_in_another_process_where_kernels_are_compiled(monkeypatch):
    here = traffic("step")
    monkeypatch.setattr("ssmlib.viz.traffic.interpreting", lambda: False)
    there = traffic("step")
    assert there.tensors == here.tensors
    assert there.accesses == here.accesses


@pytest.mark.parametrize("name", CALLS)
def test_traffic_is_drawn(name):
    from matplotlib.figure import Figure

    seen = traffic(name)
    ax = Figure().subplots()
    draw(ax, {name: seen})
    assert len(ax.images) == len(seen.touched("load")) + len(seen.touched("store"))


def test_an_unknown_rung_is_named():
    with pytest.raises(ValueError, match=r"name: expected one of tile_scan, .* got 'top'"):
        traffic("top")
