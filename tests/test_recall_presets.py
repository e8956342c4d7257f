"""Every task and preset alike: seeds, devices' state, chance levels, vocabularies."""

import re
from pathlib import Path

import pytest
import torch

from ssmlib.recall import PRESETS, TASKS, Grammar, sequence_accuracy
from ssmlib.train.task import UNSCORED

SMALL = {
    "mqar": {"length": 16, "pairs": 3, "vocab": 13},
    "associative_recall": {"pairs": 4, "keys": range(1, 8), "values": range(8, 13)},
    "joint_recall": {"contexts": (1, 2), "keys": 3, "values": 4},
    "copying": {"length": 30, "shortest": 3, "longest": 6, "letters": 7, "packed": True},
    "lookup": {"length": 20, "shortest": 6, "longest": 7, "given": 2, "answer": 2, "letters": 9},
    "selective_copying": {"length": 20, "items": 4, "vocab": 8},
    "induction": {"length": 20, "vocab": 8},
    "needle": {"length": 20, "symbols": 3},
    "treecall": {"length": 20, "grammar": Grammar.random(0, terminals=8)},
    "regression": {"points": 4, "d": 3},
    "repeats": {"length": 20, "vocab": 9, "noise": 0.2, "noise_vocab": 2},
    "motifs": {"length": 20, "vocab": 9},
    "compression": {"length": 8, "vocab": 6},
    "memorization": {"length": 8, "vocab": 12},
}


def test_every_task_is_tried():
    assert set(SMALL) == set(TASKS)
    assert {preset.task for preset in PRESETS.values()} == set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_equal_seeds_give_equal_bits_and_no_other_randomness_is_touched(name):
    draw, before = TASKS[name].draw, torch.get_rng_state()
    one, same, other = (draw(batch=3, seed=seed, **SMALL[name]) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0], other[0])
    assert all(x.is_contiguous() for x in one)
    with pytest.raises(ValueError, match="seed: expected a whole number >= 0"):
        draw(batch=3, seed=-1, **SMALL[name])
    with pytest.raises(ValueError, match="batch: expected a whole number >= 1, got 0"):
        draw(batch=0, seed=0, **SMALL[name])


@pytest.mark.parametrize("name", [name for name in TASKS if name != "regression"])
def test_no_constant_beats_chance_and_the_best_one_meets_it(name):
    """Answers of one row may be alike, so rows and not answers are counted as independent."""
    batch = 6000
    _, targets = TASKS[name].draw(batch=batch, seed=1, **SMALL[name])
    asked = targets != UNSCORED
    answers = targets[asked]
    chance = TASKS[name].chance(**SMALL[name])
    best = answers.bincount().max() / len(answers)
    assert abs(best - chance) < 5 * (chance * (1 - chance) / batch) ** 0.5
    assert asked.any(1).all(), "every row asks something"


@pytest.mark.parametrize("name", [name for name in TASKS if name != "regression"])
def test_tokens_and_answers_are_of_the_vocabulary(name):
    tokens, targets = TASKS[name].draw(batch=500, seed=2, **SMALL[name])
    vocab = TASKS[name].vocab(**SMALL[name])
    assert tokens.min() >= 0
    assert tokens.max() == vocab - 1 or name == "motifs"
    assert targets.max() < vocab


@pytest.mark.parametrize("name", [n for n in PRESETS if n != "induction/mamba"])
def test_presets_draw_what_they_say(name):
    preset = PRESETS[name]
    kind = TASKS[preset.task]
    assert name.split("/")[0] in preset.task
    for setting in (*preset.trained, preset.hardest):
        inputs, targets = kind.draw(batch=2, seed=0, **{**setting, **preset.grammar})
        assert len(inputs) == len(targets) == 2
        assert inputs.shape[1] == setting.get("length", inputs.shape[1])
    if kind.vocab is not None:
        assert inputs.max() < preset.vocab()
    if preset.task != "treecall":  # counted there, which takes a while
        assert preset.chance() > 0


def test_published_numbers_are_the_published_ones():
    assert [dict(s)["pairs"] for s in PRESETS["mqar/mamba2-256"].trained] == [8, 16, 32, 64]
    assert PRESETS["mqar/zoology-512"].hardest["pairs"] == 64
    assert PRESETS["mqar/zoology-64"].vocab() == 8192
    assert PRESETS["joint/hax"].draw(1, 0)[0].shape == (1, 1058)
    assert PRESETS["joint/hax"].chance() == 1 / 16
    assert PRESETS["associative/h3-small"].chance() == 0.25
    assert PRESETS["copying/repeat"].vocab() == 30
    assert PRESETS["selective_copying/mamba"].chance() == 1 / 14
    assert PRESETS["induction/mamba"].hardest == {"length": 2**20, "vocab": 16}
    assert PRESETS["repeats/mad"].vocab() == PRESETS["motifs/mad-fuzzy"].vocab() == 16


def test_a_sequence_counts_if_every_answer_is_right():
    targets = torch.tensor([[1, -100, 2], [1, 0, -100], [-100, -100, -100], [-100, 2, -100]])
    logits = torch.zeros(4, 3, 3)
    for row, place, token in [(0, 0, 1), (0, 2, 2), (1, 0, 2), (3, 1, 2)]:
        logits[row, place, token] = 1
    assert sequence_accuracy(logits, targets) == 2 / 3


@pytest.mark.gpu
@pytest.mark.parametrize("name", TASKS)
def test_tasks_are_drawn_on_the_gpu(name):
    inputs, targets = TASKS[name].draw(batch=3, seed=5, device="cuda", **SMALL[name])
    assert inputs.is_cuda
    assert targets.is_cuda
    again = TASKS[name].draw(batch=3, seed=5, device="cuda", **SMALL[name])
    assert torch.equal(inputs, again[0])
    assert torch.equal(targets, again[1])


def test_every_source_is_in_the_bibliography():
    book = Path(__file__).parents[1] / "book" / "references.bib"
    if not book.exists():
        pytest.skip("the book is not beside the library")
    known = set(re.findall(r"^@\w+\{([^,]+),", book.read_text(), re.MULTILINE))
    assert {preset.source for preset in PRESETS.values()} <= known
