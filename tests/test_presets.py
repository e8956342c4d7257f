"""ssmlib.presets: published models weigh and keep what was published of them."""

import pytest
import torch

from ssmlib import costs
from ssmlib.presets import PRESETS, build

GIB = 2**30


@pytest.mark.parametrize("name", PRESETS)
def test_the_published_totals(name):
    preset = PRESETS[name]
    with torch.device("meta"):
        model = build(name)
    total = sum(p.numel() for p in model.parameters())
    assert total == costs.count_parameters(preset.config)
    assert total == pytest.approx(preset.published["total"], rel=0.01)
    assert all(p.device.type == "meta" for p in model.parameters())
    assert "http" in preset.source


@pytest.mark.parametrize(
    ("name", "total", "active"), [("Jamba-v0.1", 51.57, 12.11), ("Jamba-1.5-Large", 398.5, 94.1)]
)
def test_a_mixture_of_experts_has_active_parameters(name, total, active):
    counted = [costs.count_parameters(PRESETS[name].config, a) / 1e9 for a in (False, True)]
    assert counted == [pytest.approx(total, rel=5e-4), pytest.approx(active, rel=1e-3)]
    assert counted[1] == pytest.approx(PRESETS[name].published["active"] / 1e9, rel=0.01)


@pytest.mark.parametrize(("name", "gib"), [("Jamba-v0.1", 4), ("Jamba-1.5-Large", 9)])
def test_the_published_caches(name, gib):
    preset = PRESETS[name]
    assert preset.context == 262_144
    assert costs.count_kept(preset.config, preset.context).cache == gib * GIB
    assert preset.published["cache"] == gib * GIB


def test_a_window_and_a_state_stop_growing():
    griffin, mamba = PRESETS["RecurrentGemma-2B"].config, PRESETS["Mamba-2.8B"].config
    sizes = [costs.count_kept(griffin, n).total for n in (2048, 2**20)]
    assert sizes[0] == sizes[1] > costs.count_kept(griffin, 2047).total
    assert costs.count_kept(mamba, 1) == costs.count_kept(mamba, 2**20)


def test_patterns_are_the_published_ones():
    jamba = PRESETS["Jamba-v0.1"].config.pattern
    assert jamba == "M-MEM-ME*-MEM-ME" * 4
    assert jamba == costs.MODELS["Jamba-v0.1"].pattern
    assert PRESETS["Jamba-1.5-Large"].config.pattern.count("*") == 9
    assert PRESETS["RecurrentGemma-2B"].config.pattern.startswith("R-R-*-R-R-*-")
    zamba = PRESETS["Zamba-7B"].config.pattern
    assert (len(zamba), zamba.count("Z")) == (76, 13)


def test_shapes_that_costs_has_too_are_the_same():
    for name in costs.MODELS.keys() & PRESETS.keys():
        shape, preset = costs.MODELS[name], PRESETS[name]
        assert costs.parameters(shape) == costs.count_parameters(preset.config)
        assert shape.context == preset.context


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"name: expected one of Mamba-2.8B, .*, got 'GPT'"):
        build("GPT")
