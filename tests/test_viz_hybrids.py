"""The calculator of chapter 08: its counts are those of `costs`, its words those of its numbers."""

import matplotlib as mpl
import pytest
import torch
from matplotlib.figure import Figure

from ssmlib import plots
from ssmlib.costs import count_kept, count_work, linear_cost
from ssmlib.layers import MLPConfig
from ssmlib.mixers.attention import AttentionConfig
from ssmlib.mixers.mamba import MambaConfig
from ssmlib.model import ModelConfig
from ssmlib.viz import hybrid_calculator
from ssmlib.viz.hybrids import (
    EVERY,
    SHAPES,
    SPEED,
    draw_budget,
    draw_gates,
    draw_patterns,
    draw_ratio,
    draw_speed,
    mix_costs,
)


def model(shape, every: int) -> ModelConfig:
    """The mix as a model of one token of vocabulary, so that next to nothing is added."""
    glyphs = ("*" if every and i % every == every // 2 else "M" for i in range(shape.layers))
    legend = {
        "M": MambaConfig(shape.state, dt_rank=shape.dt_rank),
        "*": AttentionConfig(shape.heads, shape.kv_heads),
        "-": MLPConfig(shape.hidden),
    }
    pattern = "".join(glyph + "-" for glyph in glyphs)
    used = {glyph: c for glyph, c in legend.items() if glyph in pattern}
    return ModelConfig(1, shape.d_model, pattern, used)


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("name", SHAPES)
def test_counts_are_those_of_the_model(name, every):
    """eq-kept, and the work."""
    shape, context = SHAPES[name], 5000
    made, config = mix_costs(shape, every, context, requests=3), model(shape, every)
    kept = count_kept(config, context, 3)
    assert made["attention"] == config.pattern.count("*")
    assert made["cache"] == kept.cache
    assert made["state"] == kept.state + kept.conv
    for key, length, past in (("token", 1, context), ("prompt", context, 0)):
        head = linear_cost(length, shape.d_model, 1).flops
        assert made[key] == count_work(config, length, past=past).flops - head


def test_the_articles_figures():
    """52 and 26 GB hold; 0.05 GB is more than twice what the states are, in float32 even."""
    shape = SHAPES["7B, a key for every head"]
    full, half, none = (mix_costs(shape, every, 100_000) for every in (1, 2, 0))
    assert full["cache"] == pytest.approx(52.4e9, rel=1e-3)
    assert half["cache"] == full["cache"] / 2
    assert none["state"] == pytest.approx(0.0184e9, rel=1e-2)
    jamba = SHAPES["Jamba v0.1, dense MLPs"]
    assert mix_costs(jamba, 8, 2**18)["cache"] == 4 * 2**30
    assert mix_costs(jamba, 4, 2**18)["cache"] == 8 * 2**30


@pytest.mark.parametrize("name", SHAPES)
def test_words_and_a_still_picture(name):
    figure = hybrid_calculator(name, 131_072, 2)
    assert f"{SHAPES[name].attention} of them attention" in figure.alt
    with mpl.rc_context():
        plots.use_style()
        assert figure.png.startswith(b"\x89PNG")


def test_patterns_are_rows_of_layers():
    ax = Figure().subplots()
    draw_patterns(ax, {"one": "M-*-", "two": "MMM"})
    assert len(ax.patches) == 7
    high = [bar.get_height() for bar in ax.patches]
    assert high[0] == high[2] > high[1]
    assert [t.get_text() for t in ax.texts] == ["one", "2", "two", "3"]


def test_the_chapters_other_pictures():
    still = Figure()
    row = {"positions": "none", "place": "spread"}
    rows = [row | {"attention": n, "loss": 2.0 - n} for n in (0, 1, 2)]
    rows += [row | {"attention": 2, "loss": 1.0, "positions": "rotary"}]
    ax = still.add_subplot(221)
    draw_ratio(ax, rows)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["spread", "rotary"]
    axes = still.add_subplot(222), still.add_subplot(223)
    draw_gates(axes, torch.rand(5, 2), {"recall": [0.1, 0.9], "text": [0.0, 0.1]}, asked=[1])
    assert [bar.get_height() for bar in axes[1].patches] == [0.1, 0.9, 0.9]
    ax = still.add_subplot(224)
    draw_budget(ax, {"a": {"experts": 2e9, "cache": 1e9}, "b": {"experts": 1e9}}, limit=8e9)
    assert [bar.get_x() for bar in ax.patches] == [0, 2, 0]
    assert [t.get_text() for t in ax.texts] == ["3 GB", "1 GB"]


@pytest.mark.parametrize("peak", [None, 7])
def test_speed_is_drawn_by_model(peak):
    axes = Figure().subplots(1, 3)
    row = {"status": "ok", "seconds": 0.5, "state_bytes": 3, "peak_bytes": peak}
    rows = [
        row | {"experiment": kind, "provider": name, "n": n}
        for kind in ("prefill", "decode")
        for name in SPEED
        for n in (64, 128)
    ]
    rows.append({"status": "out of memory", "experiment": "prefill", "provider": "mamba", "n": 256})
    draw_speed(axes, rows)
    assert axes[2].get_title() == ("kept" if peak is None else "most memory")
    assert [len(ax.lines) for ax in axes] == [4, 4, 4]
    assert axes[2].lines[0].get_ydata().tolist() == [peak or 3] * 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hybrid_calculator("9B"), "shape: expected one of 7B"),
        (lambda: hybrid_calculator(context=0), "context"),
        (lambda: hybrid_calculator(requests=1.5), "requests"),
        (lambda: mix_costs(SHAPES["70B, eight key heads"], 5, 9), "every: expected one of 1, 2"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
