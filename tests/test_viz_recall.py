"""The Pareto picture and the depth map of chapter 09: what they show, their words, refusals."""

import math

import pytest
from matplotlib.figure import Figure

from ssmlib.bench.recall.claims import frontier
from ssmlib.bench.recall.models import MIXERS
from ssmlib.viz import recall_pareto
from ssmlib.viz.recall import FAMILIES, draw_depths, front


def row(mixer="mamba2", variant="n=16", d_model=32, size=1000, share=0.5, test=0, **more) -> dict:
    """A row of `ssmlib.bench.recall.best`, as far as the figure reads it."""
    return {
        "mixer": mixer,
        "variant": variant,
        "d_model": d_model,
        "test": test,
        "tested": f"length=64 pairs={16 >> test} vocab=512 filler=zero",
        "chance": 1 / 256,
        "state_bytes": size,
        "accuracy": share,
        "low": share - 0.1,
        "high": share + 0.05,
        "seeds": 3,
        "lr": 0.01,
        "lrs": 2,
    } | more


def rows() -> list[dict]:
    cells = [
        ("mamba2", "n=16", 1000, 0.5),
        ("mamba2", "n=64", 4000, 0.8),
        ("attention", "", 8000, 1.0),
        ("attention", "window=4", 2000, 0.2),
        ("s4d", "", 3000, 0.3),
        ("linear_attention", "features=4", 1500, 0.55),
    ]
    return [
        row(mixer, variant, size=size, share=share + test * (1 - share) / 2, test=test)
        for mixer, variant, size, share in cells
        for test in (0, 1)
    ]


def test_every_model_is_a_point_with_its_family_and_tests():
    data = recall_pareto(rows(), test=1, model=2).data
    assert [t["name"] for t in data["tests"]] == ["16 pairs in 64 tokens", "8 pairs in 64 tokens"]
    assert [m["bytes"] for m in data["models"]] == [1000, 1500, 2000, 3000, 4000, 8000]
    families = {m["family"]: m["name"] for m in data["models"]}
    assert families["window"] == "window=4 d=32"
    assert families["attention"] == families["s4d"] == "d=32"
    assert [key for key, *_ in data["families"]] == [k for k in FAMILIES if k in families]
    first = data["models"][0]
    assert first["accuracy"] == [0.5, 0.75]
    assert first["low"] == [0.4, 0.65]
    assert (first["seeds"], first["lr"], first["lrs"]) == (3, 0.01, 2)
    assert (data["test"], data["model"]) == (1, 2)


def test_one_seed_has_no_interval():
    data = recall_pareto([row(low=None, high=None, seeds=1)]).data
    assert data["models"][0]["low"] == data["models"][0]["high"] == [None]


def test_another_task_is_named_as_it_was_tested():
    assert "asked about length=64;" in recall_pareto([row(tested="length=64")]).alt


def test_the_front_is_what_nothing_smaller_beats():
    models = recall_pareto(rows()).data["models"]
    for test in (0, 1):
        ahead = front(models, test)
        for model in models:
            beaten = any(
                m["bytes"] <= model["bytes"] and m["accuracy"][test] > model["accuracy"][test]
                for m in models
            )
            assert (model in ahead) != beaten
    assert [m["bytes"] for m in front(models, 0)] == [1000, 1500, 4000, 8000]


def test_of_two_with_as_many_bytes_the_better_is_in_front():
    pair = [row(variant="n=4", share=0.3), row(variant="n=8", share=0.6)]
    assert [m["name"] for m in front(recall_pareto(pair).data["models"], 0)] == ["n=8 d=32"]


def test_points_are_those_that_the_claims_are_judged_by():
    both = [r | {"experiment": "pareto", "course": "64"} for r in rows()]
    models = recall_pareto(both).data["models"]
    for family, mixer, window in (("mamba2", "mamba2", False), ("window", "attention", True)):
        own = [(m["bytes"], sum(m["accuracy"]) / 2) for m in models if m["family"] == family]
        for (size, share), (wanted, mean) in zip(own, frontier(both, mixer, window), strict=True):
            assert size == wanted
            assert math.isclose(share, mean, abs_tol=1e-4)


def test_every_mixer_of_the_width_by_length_grid_has_a_family():
    assert set(FAMILIES) - {"window"} <= set(MIXERS)


def test_words_say_what_is_shown():
    figure = recall_pareto(rows())
    assert "6 models of 5 families" in figure.alt
    assert "sliding window" in figure.alt
    assert "guessing gets 0.4%" in figure.alt
    assert figure.png.startswith(b"\x89PNG")


def test_a_needle_is_drawn_by_depth_and_length():
    told = {f"{n}@{depth:g}_accuracy": depth * n / 64 for n in (32, 64) for depth in (0.0, 0.5)}
    ax = Figure().subplots()
    image = draw_depths(ax, told, (32, 64), (0.0, 0.5))
    assert image.get_array().tolist() == [[0, 0], [0.25, 0.5]]
    assert [t.get_text() for t in ax.texts] == ["0%", "0%", "25%", "50%"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["0%", "50%"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: recall_pareto([]), "rows: expected at least one, got none"),
        (lambda: recall_pareto([row("rwkv")]), "mixer: expected one of attention, .* got 'rwkv'"),
        (lambda: recall_pareto(rows()[:-1]), "rows: expected 2 tests of .* got 1"),
        (lambda: recall_pareto(rows(), test=2), "test: expected a whole number >= 0 <= 1, got 2"),
        (lambda: recall_pareto(rows(), model=6), "model: expected a whole number >= 0 <= 5"),
        (
            lambda: draw_depths(Figure().subplots(), {}, (32,), (0.5,)),
            "row: expected a test at length 32 and depth 0.5, got none",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
