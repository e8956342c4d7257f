"""ssmlib.generate: one token at a time as if the whole was read anew, draws by seed, bytes kept."""

import pytest
import torch

from ssmlib import costs
from ssmlib.generate import generate, sample, state_bytes
from ssmlib.layers import MLPConfig
from ssmlib.mixers.attention import AttentionConfig
from ssmlib.mixers.h3 import H3Config
from ssmlib.mixers.mamba import MambaConfig
from ssmlib.mixers.s4 import S4Config, S4DConfig
from ssmlib.model import ModelConfig

LEGEND = {
    "M": MambaConfig(state_size=3),
    "S": S4DConfig(state_size=4),
    "4": S4Config(state_size=4),
    "H": H3Config(state_size=4),
    "*": AttentionConfig(heads=2),
    "w": AttentionConfig(heads=2, window=4),
    "-": MLPConfig(hidden=12),
}


def language_model(pattern, **legend):
    torch.manual_seed(0)
    legend = {glyph: config for glyph, config in (LEGEND | legend).items() if glyph in pattern}
    model = ModelConfig(11, 8, pattern, legend, tied=False).build().double()
    torch.nn.init.normal_(model.embedding.weight)  # so that the likeliest is not a matter of bits
    return model


class Watched(torch.nn.Module):
    """A model that writes down how many tokens it is given at a time."""

    def __init__(self, model):
        super().__init__()
        self.model, self.lengths = model, []

    def forward(self, tokens, state=None):
        self.lengths.append(tokens.shape[1])
        return self.model(tokens, state)


@pytest.mark.parametrize("pattern", ["M", "S", "4", "H", "*-", "w-", "MS4H*w-"])
def test_the_likeliest_token_as_if_the_whole_was_read_anew(pattern, seeded):
    model, prompt = Watched(language_model(pattern)), seeded.integers(0, 11, 3, 5)
    tokens = generate(model, prompt, 7)
    assert model.lengths == [5] + [1] * 6
    want = prompt
    for _ in range(7):
        logits, _ = model(want)
        want = torch.cat([want, logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(tokens, want)


def test_members_of_a_batch_do_not_mix(seeded):
    model, prompt = language_model("M*"), seeded.integers(0, 11, 3, 4)
    together = generate(model, prompt, 6)
    apart = [generate(model, row[None], 6) for row in prompt]
    assert torch.equal(together, torch.cat(apart))


def test_equal_seeds_draw_equal_tokens_and_leave_torchs_own_alone(seeded):
    model, prompt = language_model("M"), seeded.integers(0, 11, 2, 3)
    before = torch.get_rng_state()
    first, again, other = (generate(model, prompt, 20, 1.0, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(5)
    one, two = generate(model, prompt, 20, 1.0), generate(model, prompt, 20, 1.0)
    assert not torch.equal(one, two)
    torch.manual_seed(5)
    assert torch.equal(generate(model, prompt, 20, 1.0), one)


def test_draws_follow_the_distribution():
    logits = torch.tensor([0.1, 2.0, -1.0, 1.5]).log_softmax(0)
    generator = torch.Generator().manual_seed(0)
    many = 20_000
    for temperature, top_k in ((1.0, None), (0.5, None), (2.0, 3), (1.0, 99)):
        drawn = sample(logits.expand(many, 4), temperature, top_k, generator=generator)
        kept = torch.full((4,), -torch.inf)
        likeliest = logits.topk(min(top_k or 4, 4)).indices
        kept[likeliest] = logits[likeliest]
        want = torch.softmax(kept / temperature, 0)
        share = torch.bincount(drawn, minlength=4) / many
        assert ((share - want).abs() <= 4 * (want * (1 - want) / many).sqrt()).all()


def test_a_cold_or_narrow_draw_is_the_likeliest(seeded):
    logits = seeded.normal(5, 7)
    assert torch.equal(sample(logits, 0.0), logits.argmax(-1))
    assert torch.equal(sample(logits, 1.0, top_k=1), logits.argmax(-1))
    assert torch.equal(sample(logits, 1e-300), logits.argmax(-1))


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_its_mode(training, seeded):
    model = language_model("S", S=S4DConfig(state_size=4, dropout=0.5)).train(training)
    prompt = seeded.integers(0, 11, 1, 4)
    assert torch.equal(generate(model, prompt, 5), generate(model, prompt, 5))
    assert model.training is training
    with pytest.raises(ValueError, match="tokens: expected ids from 0 to 10, got 11 to 11"):
        generate(model, torch.full((1, 2), 11), 1)
    assert model.training is training


def test_what_is_kept_grows_with_attention_alone(seeded):
    kept = {}
    for pattern in ("MM", "SS", "**", "ww"):
        model = language_model(pattern).float()
        kept[pattern] = [state_bytes(model(seeded.integers(0, 11, 2, t))[1]) for t in (4, 8, 16)]
    assert kept["MM"] == [costs.state_bytes(2, channels=16, state=3, conv=4, batch=2)] * 3
    assert kept["SS"] == [2 * 2 * 8 * 2 * 8] * 3  # layers, batch, channels, pairs, bytes
    assert kept["**"] == [
        costs.kv_cache_bytes(2, kv_heads=2, head_dim=4, length=t, batch=2, dtype="float32")
        for t in (4, 8, 16)
    ]
    assert kept["ww"][1] == kept["ww"][2] < kept["**"][1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": torch.zeros(3, dtype=torch.long)}, r"prompt: expected \(b, t\), got shape"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected a whole number >= 1, got 0"),
        ({"temperature": -1.0}, "temperature: expected a finite number >= 0, got -1.0"),
        ({"top_k": 0}, "top_k: expected a whole number >= 1, got 0"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    settings = {"prompt": torch.zeros(1, 3, dtype=torch.long), "max_new_tokens": 2}
    with pytest.raises(ValueError, match=message):
        generate(language_model("M"), **settings | changes)
