"""ssmlib.model: the picture and its legend, states through all layers, errors that name glyphs."""

import copy
from dataclasses import replace

import pytest
import torch
from agreement import assert_close, tensors

from ssmlib.attention import ring
from ssmlib.attention.operators import rotate_by_kernel as turn
from ssmlib.costs import count_kept
from ssmlib.generate import state_bytes
from ssmlib.layers import MLPConfig, MoEConfig, RMSNorm, SharedConfig
from ssmlib.mixers import attention
from ssmlib.mixers.attention import AttentionConfig
from ssmlib.mixers.h3 import H3Config
from ssmlib.mixers.linear_attention import LinearAttentionConfig
from ssmlib.mixers.mamba import MambaConfig
from ssmlib.mixers.mamba2 import Mamba2Config
from ssmlib.mixers.rglru import RGLRUConfig
from ssmlib.mixers.s4 import S4Config, S4DConfig
from ssmlib.mixers.zamba import ZambaConfig
from ssmlib.model import ModelConfig, SequenceConfig

MAMBA2 = Mamba2Config(state_size=3, head_dim=4)
ZAMBA = ZambaConfig(AttentionConfig(heads=2), MLPConfig(12, activation="gelu"), MAMBA2, blocks=2)
LEGEND = {
    "M": MambaConfig(state_size=3),
    "F": MambaConfig(state_size=3, norms="plain"),
    "J": MambaConfig(state_size=3, norms="learned"),
    "2": MAMBA2,
    "R": RGLRUConfig(heads=2),
    "S": S4DConfig(state_size=4),
    "4": S4Config(state_size=4),
    "H": H3Config(state_size=4, shift_size=3),
    "L": LinearAttentionConfig(features=3, heads=2),
    "*": AttentionConfig(heads=2),
    "w": AttentionConfig(heads=2, kv_heads=1, window=4, rotated=0.5),
    "s": SharedConfig(AttentionConfig(heads=2, window=3)),
    "Z": ZAMBA,
    "z": replace(ZAMBA, adapter_rank=2, attention_adapters=True),
    "-": MLPConfig(hidden=12),
    "E": MoEConfig(experts=4, active=2, hidden=6),
    "p": AttentionConfig(heads=2, max_length=5),
}
HYBRIDS = ["M-ME*-ME", "R-R-w-", "2z2zz", "2s-Ms-w"]  # Jamba, Griffin, Zamba2, all sorts
PATTERNS = [*(glyph for glyph in LEGEND if glyph not in "-Ep"), *HYBRIDS, "*-"]


def legend_of(pattern):
    return {glyph: LEGEND[glyph] for glyph in pattern}


def language_model(pattern="S-*-4", **changes):
    torch.manual_seed(0)
    return ModelConfig(11, 8, pattern, legend_of(pattern), **changes).build().double()


def sequence_model(**changes):
    torch.manual_seed(0)
    settings = {"d_output": 3, "d_model": 8, "pattern": "S-*-4", "legend": legend_of("S-*-4")}
    return SequenceConfig(**settings | changes).build().double()


def test_every_glyph_is_one_residual_layer(seeded):
    model, tokens = language_model("S-"), seeded.integers(0, 11, 2, 6)
    x = model.embedding(tokens)
    for layer in model.backbone.layers:
        x = x + layer.mixer(layer.norm(x))[0]
    logits, state = model(tokens)
    assert_close(logits, model.backbone.norm_f(x) @ model.embedding.weight.mT)
    assert len(state) == 2
    assert state[1] is None  # an MLP


@pytest.mark.parametrize("cuts", [(4,), (1, 6), tuple(range(1, 9))])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_pieces_equal_the_whole(pattern, cuts, seeded):
    model, tokens = language_model(pattern), seeded.integers(0, 11, 2, 9)
    state, pieces = None, []
    for piece in tokens.tensor_split(cuts, dim=1):
        logits, state = model(piece, state)
        pieces.append(logits)
    whole, last = model(tokens)
    assert_close(torch.cat(pieces, dim=1), whole)
    for got, want in zip(tensors(state), tensors(last), strict=True):
        assert_close(got, want, 1e-10)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_token_sees_the_future(pattern, seeded):
    model, tokens = language_model(pattern), seeded.integers(0, 10, 1, 9)
    other = tokens.clone()
    other[:, 5:] = 10
    before, after = model(tokens)[0], model(other)[0]
    assert_close(after[:, :5], before[:, :5])
    assert (after[:, 5:] - before[:, 5:]).abs().max() > 1e-3


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_row_sees_another(pattern, seeded):
    model, tokens = language_model(pattern), seeded.integers(0, 11, 3, 9)
    whole, state = model(tokens)
    for i in range(3):
        alone, own = model(tokens[i : i + 1])
        assert_close(alone, whole[i : i + 1])
        for got, want in zip(tensors(own), tensors(state), strict=True):
            assert_close(got, want[i : i + 1], 1e-10)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_states_are_as_large_as_the_calculator_says(pattern, seeded):
    model = language_model(pattern).float()
    for t in (1, 9):
        _, state = model(seeded.integers(0, 11, 2, t))
        kept = count_kept(model.config, t, batch=2, dtype="float32")
        assert state_bytes(state) == kept.total


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_step_in_place_is_the_step(pattern, seeded):
    model, tokens = language_model(pattern), seeded.integers(0, 11, 2, 9)
    with torch.no_grad():
        want, last = model(tokens)
        _, before = model(tokens[:, :4])
        kept = [x.clone() for x in tensors(before)]
        place = model.hold(before, 5)
        where = [x.data_ptr() for x in tensors(place)]
        got = [model.step_(tokens[:, t : t + 1], place) for t in range(4, 9)]
    assert_close(torch.cat(got, dim=1), want[:, 4:])
    assert [x.data_ptr() for x in tensors(place)] == where
    assert all(torch.equal(x, y) for x, y in zip(tensors(before), kept, strict=True))
    assert state_bytes(model.hold(last, 1)) >= state_bytes(last)


def test_a_model_and_its_step_are_one_graph_for_the_compiler(seeded):
    model, tokens = language_model("M-2Rw*zE"), seeded.integers(0, 11, 2, 9)
    whole = torch.compile(model, backend="aot_eager", fullgraph=True)
    step_ = torch.compile(model.step_, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        want, _ = model(tokens)
        assert_close(whole(tokens)[0], want)
        place = model.hold(model(tokens[:, :4])[1], 5)
        got = [step_(tokens[:, t : t + 1], place) for t in range(4, 9)]
    assert_close(torch.cat(got, dim=1), want[:, 4:])


def test_the_last_logits_alone(seeded):
    model, tokens = language_model(), seeded.integers(0, 11, 2, 9)
    (want, _), (got, state) = model(tokens), model(tokens, keep=2)
    assert_close(got, want[:, -2:])
    assert_close(model(tokens[:, :1], state, keep=5)[0], model(tokens[:, :1], state)[0])
    with pytest.raises(ValueError, match="keep: expected a whole number >= 1, got 0"):
        model(tokens, keep=0)


def test_scaled_embeddings_and_capped_logits(seeded):
    plain, tokens = language_model("*-"), seeded.integers(0, 11, 2, 6)
    scaled = language_model("*-", embedding_scale=30.0, logit_cap=2.0)
    y, _ = plain.backbone(30.0 * plain.embedding(tokens))
    assert_close(scaled(tokens)[0], 2 * torch.tanh(plain.lm_head(y) / 2))
    assert scaled(tokens)[0].abs().max() < 2


def test_longer_than_its_positions_is_refused(seeded):
    model = language_model("p")
    tokens = seeded.integers(0, 11, 1, 6)
    _, state = model(tokens[:, :5])
    with pytest.raises(ValueError, match=r"x: expected at most max_length=5 tokens .*, got 6"):
        model(tokens)
    with pytest.raises(ValueError, match=r"x: expected at most max_length=5 tokens .*, got 6"):
        model(tokens[:, 5:], state)


def test_names_are_those_of_the_checkpoints():
    names = dict(language_model("*-", tied=False).named_parameters())
    assert {"embedding.weight", "backbone.norm_f.weight", "lm_head.weight"} <= set(names)
    assert {"backbone.layers.0.norm.weight", "backbone.layers.0.mixer.q_proj.weight"} <= set(names)
    assert len(dict(language_model("*-").named_parameters())) == len(names) - 1  # tied


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pattern": "SX-?", "legend": legend_of("MS4*-")},
            r"pattern: expected glyphs of 'M', 'S', '4', '\*', '-', got 'X' at 1, '\?' at 3",
        ),
        ({"pattern": ""}, "pattern: expected glyphs of 'S', got ''"),
        ({"legend": {"SS": S4DConfig()}}, "legend: expected glyphs of one letter, got 'SS'"),
        (
            {"legend": legend_of("MS4*-")},
            r"legend: expected glyphs of 'S', got 'M', '4', '\*', '-' as well",
        ),
        ({"vocab_size": 0}, "vocab_size: expected a whole number >= 1, got 0"),
        ({"d_model": 0}, "d_model: expected a whole number >= 1, got 0"),
    ],
)
def test_a_bad_picture_is_named(changes, message):
    settings = {"vocab_size": 11, "d_model": 8, "pattern": "S", "legend": legend_of("S")}
    with pytest.raises(ValueError, match=message):
        ModelConfig(**settings | changes).build()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(1, 3), "tokens: expected integer token ids, got dtype torch.float32"),
        (torch.full((1, 3), 11), "tokens: expected ids from 0 to 10, got 11 to 11"),
        (torch.zeros(3, dtype=torch.long), r"tokens: expected \(b, t\), got shape \(3,\)"),
        (torch.zeros(1, 0, dtype=torch.long), r"tokens: expected \(b, t\) with t >= 1"),
    ],
)
def test_bad_tokens_are_named(tokens, message):
    with pytest.raises(ValueError, match=message):
        language_model("S")(tokens)


def test_a_state_of_another_model_is_refused(seeded):
    tokens = seeded.integers(0, 11, 1, 3)
    _, state = language_model("SS")(tokens)
    with pytest.raises(ValueError, match="state: expected a tuple of 1 entries, got 2 entries"):
        language_model("S")(tokens, state)
    with pytest.raises(ValueError, match="state: expected a tuple of 1 entries, got Tensor"):
        language_model("S")(tokens, state[0])


def test_continuous_inputs_and_an_output_per_step(seeded):
    model, x = sequence_model(d_input=2), seeded.normal(2, 7, 2)
    y, _ = model(x)
    assert y.shape == (2, 7, 3)
    first, middle = model(x[:, :4])
    second, _ = model(x[:, 4:], middle)
    assert_close(torch.cat([first, second], dim=1), y)


@pytest.mark.parametrize(
    ("pooling", "of"), [("last", lambda y: y[:, -1]), ("mean", lambda y: y.mean(1))]
)
def test_pooling(pooling, of, seeded):
    x = seeded.normal(2, 7, 2)
    pooled, each = (sequence_model(d_input=2, pooling=p)(x)[0] for p in (pooling, "none"))
    assert_close(pooled, of(each))  # the head is affine, so it commutes with a mean


def test_padding_behind_changes_nothing(seeded):
    model = sequence_model(vocab_size=9, pooling="mean", padding=0)
    tokens = seeded.integers(1, 9, 2, 6)
    padded = torch.nn.functional.pad(tokens, (0, 5))
    assert_close(model(padded)[0], model(tokens)[0])
    assert model(torch.zeros_like(tokens))[0].isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "d_input, vocab_size: expected exactly one of the two, got None and None"),
        ({"d_input": 1, "vocab_size": 2}, "expected exactly one of the two, got 1 and 2"),
        ({"d_input": 1, "pooling": "max"}, "pooling: expected one of none, last, mean, got 'max'"),
        ({"d_input": 1, "padding": 0}, "padding: expected None unless tokens are read"),
        ({"d_input": 0}, "d_input: expected a whole number >= 1, got 0"),
        ({"d_input": 1, "d_output": 0}, "d_output: expected a whole number >= 1, got 0"),
    ],
)
def test_bad_sequence_models_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        sequence_model(**changes)


def test_inputs_of_a_sequence_model_are_checked():
    with pytest.raises(ValueError, match=r"x: expected \(b, t, 2\), got shape \(1, 4, 3\)"):
        sequence_model(d_input=2)(torch.zeros(1, 4, 3).double())
    with pytest.raises(ValueError, match="x: expected ids from 0 to 8, got -1 to -1"):
        sequence_model(vocab_size=9)(torch.full((1, 4), -1))


@pytest.mark.gpu
@pytest.mark.parametrize("pattern", [*HYBRIDS, "F2RL*"])
def test_on_a_gpu(pattern, seeded):
    """Logits, gradients, pieces and steps in place, by the kernels that run there."""
    model, tokens = language_model(pattern), seeded.integers(0, 11, 2, 70)
    twin = copy.deepcopy(model).float().cuda()
    want, _ = model(tokens)
    got, _ = twin(tokens.cuda())
    assert_close(got, want, 1e-4)
    grads = (
        torch.autograd.grad(y.square().sum(), list(m.parameters()))
        for y, m in ((want, model), (got, twin))
    )
    for theirs, ours in zip(*grads, strict=True):
        assert_close(ours, theirs, 1e-3)
    with torch.no_grad():
        first, state = twin(tokens[:, :64].cuda())
        place = twin.hold(state, 6)
        steps = [twin.step_(tokens[:, t : t + 1].cuda(), place) for t in range(64, 70)]
    assert_close(torch.cat([first, *steps], dim=1), want, 1e-4)


@pytest.mark.gpu
def test_a_graph_holds_a_step_of_every_mixer(seeded):
    glyphs = "".join(p for p in PATTERNS if len(p) == 1)
    model = language_model(glyphs).float().cuda()
    tokens = seeded.integers(0, 11, 2, 12).cuda()
    with torch.no_grad():
        want, _ = model(tokens)
        place = model.hold(model(tokens[:, :4])[1], 100)
        token, stream = tokens[:, 4:5].clone(), torch.cuda.Stream()
        kept = model.hold(model(tokens[:, :4])[1], 100)
        with torch.cuda.stream(stream):
            model.step_(token, kept)  # compiles
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            logits = model.step_(token, place)
        for t in range(4, 12):
            token.copy_(tokens[:, t : t + 1])
            graph.replay()
            assert_close(logits[:, 0], want[:, t], 1e-4)


def test_the_kernels_take_what_models_give_them(seeded, monkeypatch):
    """Norms, rotations and steps of attention by their kernels, as on a GPU, here interpreted."""
    model, tokens = language_model("R-w*zE").float(), seeded.integers(0, 11, 2, 12)
    results = []
    for kernels in (False, True):
        if kernels:
            monkeypatch.setattr(RMSNorm, "_fits_kernel", lambda self, x: True)
            monkeypatch.setattr(attention, "rotate", lambda x, at, rates: turn(x, at, rates, False))
            monkeypatch.setattr(ring, "_backend", lambda backend, q: "triton")
        logits, _ = model(tokens)
        grads = torch.autograd.grad(logits.square().sum(), list(model.parameters()))
        with torch.no_grad():
            place = model.hold(model(tokens[:, :8])[1], 4)
            steps = [model.step_(tokens[:, t : t + 1], place) for t in range(8, 12)]
        results.append((logits, torch.cat(steps, dim=1), *grads))
    for got, want in zip(*results, strict=True):
        assert_close(got, want, 1e-4)
