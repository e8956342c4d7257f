"""ssmlib.generate: one token at a time as if the whole was read anew, draws by seed, bytes kept."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from agreement import assert_close, tensors

from ssmlib import costs
from ssmlib.bench.cpu import allocated_at_most
from ssmlib.generate import generate, prefill, sample, state_bytes, stream
from ssmlib.generate.drawing import pick
from ssmlib.generate.step import Captured
from ssmlib.layers import MLPConfig
from ssmlib.mixers.attention import AttentionConfig
from ssmlib.mixers.h3 import H3Config
from ssmlib.mixers.mamba import MambaConfig
from ssmlib.mixers.mamba2 import Mamba2Config
from ssmlib.mixers.rglru import RGLRUConfig
from ssmlib.mixers.s4 import S4Config, S4DConfig
from ssmlib.mixers.zamba import ZambaConfig
from ssmlib.model import ModelConfig

LEGEND = {
    "M": MambaConfig(state_size=3),
    "2": Mamba2Config(state_size=3, head_dim=4),
    "R": RGLRUConfig(heads=2),
    "Z": ZambaConfig(AttentionConfig(heads=2), MLPConfig(12), MambaConfig(state_size=3)),
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
    assert torch.equal(generate(model.model, prompt, 7), want)  # in place, and not by value
    assert torch.equal(generate(model, prompt, 7, piece=2), want)
    assert model.lengths[-9:] == [2, 2, 1] + [1] * 6


@pytest.mark.parametrize("pattern", ["M2", "S4H", "*-", "w-", "R*", "Z", "M*w2"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_prompts_of_different_lengths_as_if_each_was_alone(pattern, temperature, seeded):
    model = language_model(pattern)
    prompts = [seeded.integers(0, 11, t) for t in (5, 1, 9, 5)]
    settings = {"temperature": temperature, "piece": 3}
    together = generate(model, prompts, 8, seed=3, **settings)
    alone = [generate(model, p[None], 8, seed=3 + i, **settings)[0] for i, p in enumerate(prompts)]
    assert all(map(torch.equal, together, alone))
    each = generate(Watched(model), prompts, 8, seed=[3, 4, 5, 6], **settings)
    assert all(map(torch.equal, each, alone))


def test_rows_draw_from_seeds_of_their_own(seeded):
    model, prompt = language_model("M"), seeded.integers(0, 11, 3, 4)
    together = generate(model, prompt, 9, 1.0, seed=5)
    assert torch.equal(generate(model, prompt[2:], 9, 1.0, seed=7), together[2:])
    assert torch.equal(generate(model, prompt.flip(0), 9, 1.0, seed=[7, 6, 5]), together.flip(0))


def test_a_stop_ends_a_row_and_all_of_them_the_call(seeded):
    model, prompt = language_model("M"), seeded.integers(0, 11, 3, 4)
    free = generate(model, prompt, 12, 1.0, seed=1)[:, 4:].tolist()
    ends = [row.index(3) if 3 in row else 99 for row in free]
    assert sorted(ends)[0] < sorted(ends)[1] < 12  # or this says little
    tokens = generate(model, prompt, 12, 1.0, seed=1, stop=3)[:, 4:].tolist()
    for row, whole, end in zip(tokens, free, ends, strict=True):
        assert row == whole[: end + 1] + [3] * (11 - end)
    early = generate(model, prompt, 12, 1.0, seed=1, stop=range(11))
    assert early.shape == (3, 5)
    rows = generate(model, list(prompt), 12, 1.0, seed=1, stop=[3, 99])
    for row, whole, end in zip(rows, free, ends, strict=True):
        assert row[4:].tolist() == whole[: end + 1]


@pytest.mark.parametrize("pattern", ["M2", "S4H", "R*", "Z", "w-"])
def test_nothing_of_inference_mode_is_left_behind(pattern, seeded):
    model, prompt = (
        language_model(pattern).eval().requires_grad_(False),
        seeded.integers(0, 11, 2, 5),
    )
    tokens = generate(model, prompt, 3)
    assert not any(x.is_inference() for x in (tokens, *stream(model, prompt, 3)))
    with torch.inference_mode():
        assert torch.equal(generate(model, prompt, 3), tokens)
    x = seeded.normal(2, 5, 8).requires_grad_(True)  # what a frozen model reads may be learned
    model.backbone(x)[0].sum().backward()
    assert x.grad.isfinite().all()


def test_a_stream_is_what_generate_returns_as_it_comes(seeded):
    model, prompt = language_model("M*").train(), seeded.integers(0, 11, 2, 5)
    settings = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "seed": 2}
    want = generate(model, prompt, 6, **settings)
    tokens = stream(model, prompt, 6, **settings)
    assert model.training
    for i in range(3):
        assert torch.equal(next(tokens), want[:, 5 + i])
        assert torch.is_grad_enabled()
    assert not model.training
    tokens.close()
    assert model.training


@torch.no_grad()
def test_a_prompt_is_read_in_pieces_into_the_same_state(seeded):
    model, tokens = language_model("M*-w2"), seeded.integers(0, 11, 2, 13)
    want, state = model(tokens)
    for piece in (1, 4, 13, 99):
        got, kept = prefill(model, tokens, piece=piece)
        assert_close(got, want[:, -1])
        for x, y in zip(tensors(kept), tensors(state), strict=True):
            assert_close(x, y)
    _, half = prefill(model, tokens[:, :6])
    assert_close(prefill(model, tokens[:, 6:], half)[0], want[:, -1])


def test_memory_of_reading_does_not_grow_with_the_prompt(seeded):
    model = language_model("MM2").float()
    most = [
        allocated_at_most(lambda t=t: prefill(model, seeded.integers(0, 11, 1, t), piece=64))
        for t in (128, 1024)
    ]
    assert most[1] <= most[0] + 8 * 1024  # the tokens themselves
    whole = allocated_at_most(lambda: prefill(model, seeded.integers(0, 11, 1, 1024), piece=1024))
    assert whole > 2.5 * most[1]


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
    kinds = [(1.0, None, None), (0.5, None, None), (2.0, 3, None), (1.0, 99, None)]
    kinds += [
        (1.0, None, 0.5),
        (1.0, None, 0.9),
        (2.0, 3, 0.8),
        (1.0, None, 1.0),
        (1.0, None, 1e-9),
    ]
    left = [4, 4, 3, 4, 1, 3, 2, 4, 1]  # of p = .55, .34, .08, .03; at temperature 2 .46, .36, .18
    for (temperature, top_k, top_p), count in zip(kinds, left, strict=True):
        drawn = sample(logits.expand(many, 4), temperature, top_k, top_p, generator)
        kept = torch.full((4,), -torch.inf)
        likeliest = logits.topk(count).indices
        kept[likeliest] = logits[likeliest]
        want = torch.softmax(kept / temperature, 0)
        share = torch.bincount(drawn, minlength=4) / many
        assert ((share - want).abs() <= 4 * (want * (1 - want) / many).sqrt()).all()


def test_a_cold_or_narrow_draw_is_the_likeliest(seeded):
    logits = seeded.normal(5, 7)
    assert torch.equal(sample(logits, 0.0), logits.argmax(-1))
    assert torch.equal(sample(logits, 1.0, top_k=1), logits.argmax(-1))
    assert torch.equal(sample(logits, 1e-300), logits.argmax(-1))
    assert torch.equal(sample(logits.float(), 1e-300), logits.argmax(-1))
    assert torch.equal(sample(logits, 1.0, top_p=1e-9), logits.argmax(-1))


def test_what_has_no_chance_is_not_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    for number in (0.0, 0.25, 0.5, 0.75, 1 - 2**-24):
        token = pick(logits, torch.tensor([number]))
        assert token.item() == (1 if number < 0.5 else 3)


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
        ({"top_p": 0}, "top_p: expected a number above 0, got 0"),
        ({"top_p": 1.5}, "top_p: expected a finite number >= 0 <= 1, got 1.5"),
        ({"stop": -1}, "stop: expected a whole number >= 0, got -1"),
        ({"piece": 0}, "piece: expected a whole number >= 1, got 0"),
        (
            {"temperature": 1.0, "seed": [1, 2]},
            "seed: expected one, or one for each of 1 rows, got 2",
        ),
        (
            {"graph": True},
            "graph: expected False but for a LanguageModel on a GPU, got LanguageMod",
        ),
        ({"prompt": []}, "prompt: expected at least one, got an empty list"),
        ({"prompt": [torch.zeros(1, 2)]}, r"prompt\[0\]: expected \(t,\), got shape \(1, 2\)"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    settings = {"prompt": torch.zeros(1, 3, dtype=torch.long), "max_new_tokens": 2}
    with pytest.raises(ValueError, match=message):
        generate(language_model("M"), **settings | changes)


def test_a_captured_step_runs_twice_and_is_then_replayed(monkeypatch):
    """With a stand-in for CUDA, whose capture runs the step and takes back what it did."""
    place, calls = torch.zeros(2, dtype=torch.long), []

    def step(token, uniform):
        calls.append(token)
        place.add_(token)
        return place + (10 * uniform).long()

    class Graph:
        def replay(self):
            captured.drawn.copy_(step(captured.token, captured.uniform))

    @contextmanager
    def capture(graph):
        before = place.clone()
        yield
        place.copy_(before)

    class Stream:
        def wait_stream(self, other):
            pass

    cuda = {"CUDAGraph": Graph, "graph": capture, "Stream": Stream, "current_stream": Stream}
    cuda |= dict.fromkeys(("stream", "device"), lambda which: nullcontext())
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, stream: None)
    captured, drawn = Captured(step), []
    for i in range(6):
        drawn.append(captured(torch.tensor([i, 1]), torch.tensor([0.0, i / 10])))
    sums = torch.tensor([[0, 0, 1, 3, 6, 10, 15], [0, 1, 2, 3, 4, 5, 6]])[:, 1:]
    assert torch.equal(torch.stack(drawn, 1), sums + torch.tensor([[0] * 6, [0, 1, 2, 3, 4, 5]]))
    assert len({id(token) for token in calls[2:]}) == 1

    def refuse(token, uniform):
        if len(calls) == 2:
            calls.append(None)
            raise RuntimeError("operation not permitted when stream is capturing")
        return step(token, uniform)

    for must in (False, True):
        calls.clear()
        place.zero_()
        captured = Captured(refuse, must)
        for i in range(2):
            captured(torch.tensor([i, 1]), torch.zeros(2))
        if must:
            with pytest.raises(RuntimeError, match="not permitted"):
                captured(torch.tensor([2, 1]), torch.zeros(2))
            continue
        again = [captured(torch.tensor([i, 1]), torch.zeros(2)) for i in range(2, 6)]
        assert torch.equal(torch.stack(again, 1), sums[:, 2:])


@pytest.mark.gpu
class TestOnAGPU:
    @pytest.mark.parametrize("pattern", ["M-", "2", "RR", "*-", "w-", "Z", "M*w2-"])
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_a_graph_says_what_its_steps_say(self, pattern, temperature, seeded):
        model = language_model(pattern).float().cuda()
        prompt = seeded.integers(0, 11, 2, 9).cuda()
        settings = {"temperature": temperature, "seed": 1, "top_p": 0.9}
        steps = generate(model, prompt, 40, graph=False, **settings)
        assert torch.equal(generate(model, prompt, 40, graph=True, **settings), steps)
        rows = [prompt[0], prompt[1, :4]]
        alone = [
            generate(model, p[None], 40, **settings | {"seed": 1 + i}) for i, p in enumerate(rows)
        ]
        together = generate(model, rows, 40, **settings)
        assert all(torch.equal(x, y[0]) for x, y in zip(together, alone, strict=True))

    def test_the_memory_of_a_state_space_model_stays(self, seeded):
        model, prompt = language_model("M2").float().cuda(), seeded.integers(0, 11, 2, 9).cuda()
        held = []
        for i, _ in enumerate(stream(model, prompt, 300)):
            if i in (10, 299):
                held.append(torch.cuda.memory_allocated())
        assert held[0] == held[1]
