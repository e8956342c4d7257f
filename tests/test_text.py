"""ssmlib.tasks.text: no paragraph on both sides, pieces by seed, every byte counted once."""

import math

import pytest
import torch
from torch import nn

from ssmlib.layers import MLPConfig
from ssmlib.mixers.mamba import MambaConfig
from ssmlib.model import ModelConfig
from ssmlib.tasks.text import (
    HELD_OUT,
    bits_per_byte,
    corpus,
    delta_over_text,
    frequency_bits,
    text_task,
)


def windows(text, width, every=1):
    data = bytes(text.tolist())
    return {data[i : i + width] for i in range(0, len(data) - width, every)}


def test_the_held_out_text_is_not_in_the_other():
    texts = corpus()
    known, asked = windows(texts.train, 60), windows(texts.held_out, 60)
    assert len(known & asked) / len(asked) < 0.005  # stock phrases, as of a traceback
    assert not known & windows(texts.held_out, 160)


def test_the_training_text_says_nothing_twice():
    windows_of = [bytes(corpus().train.tolist())]
    paragraphs = [" ".join(p.split()) for p in windows_of[0].decode().split("\n\n")]
    long = [p for p in paragraphs if len(p) >= 60]
    assert len(long) == len(set(long)) > 900


def test_nothing_but_repetitions_is_left_out():
    from pydoc_data.topics import topics

    texts = corpus()
    read = " ".join(b"\n".join(bytes(t.tolist()) for t in texts[:2]).decode().split())
    for name in ("compound", "if", "types", "lambda", *HELD_OUT):
        for paragraph in topics[name].split("\n\n"):
            assert " ".join(paragraph.split()) in read
    assert 300_000 < len(texts.train) < 600_000
    assert 0.08 < len(texts.held_out) / len(texts.train) < 0.15
    assert texts.edition.startswith("Python 3.")
    assert str(len(texts.held_out)) in texts.edition


def test_pieces_by_seed_and_targets_one_ahead():
    task, texts = text_task(3, 20), corpus()
    inputs, targets = task.draw(4)
    assert inputs.shape == targets.shape == (3, 20)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert torch.equal(task.draw(4)[0], inputs)
    assert not torch.equal(task.draw(5)[0], inputs)
    for draw, text in ((task.draw, texts.train), (task.tests["test"], texts.held_out)):
        pieces = {bytes(row.tolist()) for row in draw(1)[0]}
        assert pieces <= windows(text, 20)


class LastByte(nn.Module):
    """Says that the byte before comes again, with three quarters of the probability."""

    def __init__(self, remembers):
        super().__init__()
        self.remembers, self.lengths = remembers, []

    def forward(self, tokens, state=None):
        self.lengths.append(tuple(tokens.shape))
        assert (state is None) or self.remembers
        guess = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], dim=1)
        if state is not None:
            guess[:, 0] = state
        share = torch.full((*tokens.shape, 256), 0.25 / 255).double()
        share.scatter_(2, guess[..., None], 0.75)
        return share.log(), tokens[:, -1] if self.remembers else None


@pytest.mark.parametrize("carried", [False, True])
def test_bits_are_counted_once_for_every_byte(carried):
    text = torch.randint(0, 3, (103,), generator=torch.Generator().manual_seed(0))
    model = LastByte(carried)
    got = bits_per_byte(model, text, 10, carried=carried, batch=4)
    bits = 0.0
    for i in range(1, 103):
        first = (i - 1) % 10 == 0 and (not carried or i == 1)
        guess = 0 if first else text[i - 2]
        bits -= math.log2(0.75 if text[i] == guess else 0.25 / 255)
    assert got == pytest.approx(bits / 102)
    read = [(1, 10)] * 10 if carried else [(4, 10), (4, 10), (2, 10)]
    assert model.lengths == read + [(1, 2)]


def test_byte_frequencies_are_the_measure_to_beat():
    texts = corpus()
    assert 4.4 < frequency_bits(texts.train, texts.held_out) < 4.9
    even = torch.arange(256)
    assert frequency_bits(even, even) == pytest.approx(8.0)


def test_time_steps_are_those_that_the_layers_took(seeded):
    legend = {"M": MambaConfig(state_size=2), "-": MLPConfig(8)}
    model = ModelConfig(256, 4, "M-M", legend).build()
    tokens, taken = seeded.integers(0, 256, 2, 5), []
    for i in (0, 2):
        layer = model.backbone.layers[i]
        layer.norm.register_forward_hook(
            lambda norm, x, y, mixer=layer.mixer: taken.append(mixer.delta(y))
        )
    with torch.no_grad():
        model(tokens)
    steps = delta_over_text(model, tokens)
    assert steps.shape == (2, 2, 5, 8)
    assert torch.equal(steps, torch.stack(taken[:2]))
    with pytest.raises(ValueError, match="model: expected a Mamba layer, got none"):
        delta_over_text(ModelConfig(256, 4, "-", {"-": legend["-"]}).build(), tokens)


@pytest.mark.parametrize(
    ("batch", "length", "message"),
    [
        (0, 8, "batch: expected a whole number >= 1, got 0"),
        (1, 0, "length: expected a whole number >= 1 <= .*, got 0"),
        (1, 10**6, "length: expected a whole number >= 1 <= .*, got 1000000"),
    ],
)
def test_bad_sizes_are_refused(batch, length, message):
    with pytest.raises(ValueError, match=message):
        text_task(batch, length)
