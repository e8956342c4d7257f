"""ssmlib.costs of a ModelConfig: what the built model weighs, keeps and does."""

from dataclasses import replace

import pytest
import torch
from agreement import tensors
from torch.utils.flop_counter import FlopCounterMode

from ssmlib import costs
from ssmlib.generate import state_bytes
from ssmlib.layers import MLPConfig, MoEConfig, NormConfig, SharedConfig
from ssmlib.mixers.attention import AttentionConfig
from ssmlib.mixers.h3 import H3Config
from ssmlib.mixers.linear_attention import LinearAttentionConfig
from ssmlib.mixers.mamba import MambaConfig, MambaState
from ssmlib.mixers.mamba2 import Mamba2Config
from ssmlib.mixers.rglru import RGLRUConfig
from ssmlib.mixers.s4 import S4Config, S4DConfig
from ssmlib.mixers.zamba import ZambaConfig
from ssmlib.model import ModelConfig

D = 16
MAMBA2 = Mamba2Config(state_size=6, head_dim=8)
SHARED = ZambaConfig(AttentionConfig(heads=2), MLPConfig(12), MAMBA2)
LEGEND = {
    "*": AttentionConfig(heads=4, kv_heads=2),
    "h": AttentionConfig(heads=3, kv_heads=3, head_dim=6, bias=True, out_bias=True),
    "w": AttentionConfig(heads=2, kv_heads=1, window=4),
    "-": MLPConfig(),
    "b": MLPConfig(24, gated=False, bias=True),
    "E": MoEConfig(experts=5, active=2, hidden=24, backend="grouped"),
    "M": MambaConfig(state_size=3),
    "n": MambaConfig(state_size=3, norms="learned", bias=True, conv_bias=False),
    "l": MambaConfig(state_size=3, selective=("B",), gated=False, conv_width=None),
    "2": MAMBA2,
    "g": Mamba2Config(state_size=4, head_dim=8, groups=2, bias=True, wide_skip=True),
    "R": RGLRUConfig(heads=2),
    "r": RGLRUConfig(width=24, heads=3, conv_width=3),
    "L": LinearAttentionConfig(features=3, heads=2),
    "e": LinearAttentionConfig(features=3, heads=2, feature_map="elu"),
    "4": S4Config(state_size=4),
    "d": S4DConfig(state_size=4, gated=False),
    "H": H3Config(state_size=4, shift_size=5, head_dim=2),
    "S": SharedConfig(AttentionConfig(heads=2)),
    "Z": SHARED,
    "z": replace(SHARED, blocks=2, adapter_rank=3, attention_adapters=True),
}
UNCOUNTED = "4dH"
PATTERNS = [*LEGEND, "ZZZ", "zzzzz", "S-S-S", "2Z2Z-", "MEM-*-w-", "RRw-ghnlrz*E"]


def config(pattern, **changes):
    return ModelConfig(11, D, pattern, {glyph: LEGEND[glyph] for glyph in pattern}, **changes)


def weights(model, active=False):
    total = sum(p.numel() for p in model.parameters())
    if not active:
        return total
    for name, p in model.named_parameters():
        if ".experts." in name:
            total -= p.numel() * 3 // 5  # two of five
    return total


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(
    "changes", [{}, {"tied": False, "norm": NormConfig(place="both")}], ids=["tied", "both"]
)
def test_parameters_are_those_of_the_model(pattern, changes):
    wanted = config(pattern, **changes)
    with torch.device("meta"):
        model = wanted.build()
    assert costs.count_parameters(wanted) == weights(model)
    assert costs.count_parameters(wanted, active=True) == weights(model, active=True)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("length", [1, 9])
def test_what_is_kept_is_the_state(pattern, length):
    wanted = config(pattern)
    model = wanted.build()
    _, state = model(torch.zeros(2, length, dtype=torch.long))
    kept = costs.count_kept(wanted, length, batch=2, dtype="float32")
    assert kept.total == state_bytes(state)
    held = sum(x.untyped_storage().nbytes() for x in tensors(state))  # no view of something longer
    assert held == kept.total
    half = costs.count_kept(wanted, length, batch=2)
    assert (2 * half.cache, 2 * half.conv, half.state) == tuple(kept)


def test_each_kind_of_memory_is_in_its_place():
    wanted, tokens = config("M*"), torch.zeros(1, 7, dtype=torch.long)
    (mamba, cache), kept = wanted.build()(tokens)[1], costs.count_kept(wanted, 7, dtype="float32")
    assert isinstance(mamba, MambaState)
    assert kept == (cache.k.nbytes + cache.v.nbytes, mamba.conv.nbytes, mamba.ssm.nbytes)


def test_published_shapes_are_counted_alike():
    for name, glyphs in (("Llama-3-8B", "*-"), ("Jamba-v0.1", "M*-E")):
        m = costs.MODELS[name]
        legend = {
            "*": AttentionConfig(m.heads, m.kv_heads),
            "-": MLPConfig(m.hidden),
            "M": MambaConfig(norms="learned" if m.mixer_norms else None),
            "E": MoEConfig(m.experts, m.active, m.hidden) if m.experts else None,
        }
        legend = {glyph: legend[glyph] for glyph in glyphs}
        wanted = ModelConfig(m.vocab_size, m.d_model, m.pattern, legend, tied=False)
        for active in (False, True):
            assert costs.count_parameters(wanted, active) == costs.parameters(m, active)
        work = costs.count_work(wanted, 100, past=3)
        assert work.flops == costs.model_cost(m, 100, past=3).flops
        kept = costs.count_kept(wanted, 1000)
        other = costs.context_bytes(m, 1000)  # where the inputs of convolutions are float32
        assert kept.cache + 2 * kept.conv + kept.state == other


def conv(x, weight, *_, out_shape=None, **__):
    b, t, e = x
    return 2 * b * t * e * weight[1]


def mamba(x, dt, A, *_, out_shape=None, **__):
    b, t, e = x
    return costs.SCAN_FLOPS * b * t * e * A[1]


def duality(x, dt, A, B, *_, out_shape=None, **__):
    b, t, h, p = x
    return 5 * b * t * h * p * B[3]


def recurrence(a, x, *_, out_shape=None, **__):
    b, t, e = x
    return 2 * b * t * e


def grouped(x, w, *_, out_shape=None, **__):
    return 2 * x[0] * w[1] * w[2]


OPS = {
    torch.ops.ssmlib.causal_conv1d: conv,
    torch.ops.ssmlib.selective_scan: mamba,
    torch.ops.ssmlib.ssd: duality,
    torch.ops.ssmlib.scan: recurrence,
    torch.ops.aten._grouped_mm: grouped,
}


def unseen(wanted, length):
    """FLOPs on scores that a causal mask or a window hides, which torch counts."""
    total = 0
    for glyph in wanted.pattern:
        c, d = wanted.legend[glyph], D
        if isinstance(c, ZambaConfig):
            c, d = c.attention, 2 * D
        c = c.mixer if isinstance(c, SharedConfig) else c
        if isinstance(c, AttentionConfig):
            size = d // c.heads if c.head_dim is None else c.head_dim
            total += 4 * c.heads * size * (length**2 - costs.pairs(length, window=c.window))
    return total


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if not set(p) & set(UNCOUNTED)])
@pytest.mark.parametrize("length", [1, 9])
def test_work_is_what_torch_counts_on_the_meta_device(pattern, length):
    """Operators of ours by formulas of their shapes, products by torch's."""
    wanted, batch = config(pattern), 2
    with torch.device("meta"):
        model = wanted.build().bfloat16()
        tokens = torch.zeros(batch, length, dtype=torch.long)
    with FlopCounterMode(display=False, custom_mapping=OPS) as counter, torch.no_grad():
        model(tokens)
    counted = counter.get_total_flops() - batch * unseen(wanted, length)
    assert costs.count_work(wanted, length, batch=batch).flops == counted


@pytest.mark.parametrize("pattern", ["*-", "w", "MEM-*-", "RZ2"])
def test_a_step_of_decoding_reads_all_weights_and_all_that_is_kept(pattern):
    """Its bytes are no less, and not much more, than weights, states and caches together."""
    wanted = config(pattern)
    work = costs.count_work(wanted, 1, past=1000, dtype="float32")
    kept = costs.count_kept(wanted, 1000, dtype="float32")
    least = 4 * costs.count_parameters(wanted, active=True) + kept.total + kept.conv + kept.state
    assert 0.9 * least < work.bytes < 1.5 * least


def test_bytes_are_of_the_dtypes():
    wide, narrow = (costs.count_kept(config("*MR"), 50, dtype=t) for t in ("float32", "float8"))
    assert wide == (4 * narrow.cache, 4 * narrow.conv, narrow.state)
    half = costs.count_kept(config("*MR"), 50, dtype="float32", state_dtype="bfloat16")
    assert half == (wide.cache, wide.conv, wide.state // 2)


def test_a_layer_without_a_next_piece_keeps_nothing():
    wanted = ModelConfig(11, D, "S", {"S": S4DConfig(state_size=4, bidirectional=True)})
    assert costs.count_kept(wanted, 9).total == 0
    assert costs.count_parameters(wanted) == sum(p.numel() for p in wanted.build().parameters())


def test_what_cannot_be_counted_is_named():
    for glyph in UNCOUNTED:
        with pytest.raises(ValueError, match="legend: expected layers whose work is counted, got"):
            costs.count_work(config(glyph), 4)
    wanted = ModelConfig(11, D, "?", {"?": NormConfig()})
    known = "AttentionConfig, MLPConfig, MoEConfig, MambaConfig, Mamba2Config"
    for f in (costs.count_parameters, costs.count_kept, costs.count_work):
        args = () if f is costs.count_parameters else (4,)
        with pytest.raises(
            ValueError, match=f"legend: expected configs of {known}.*, got NormConf"
        ):
            f(wanted, *args)
    with pytest.raises(ValueError, match=r"dtype: expected one of float32, .*, got 'float7'"):
        costs.count_kept(config("*"), 4, dtype="float7")
    with pytest.raises(ValueError, match="length: expected a whole number >= 0, got -1"):
        costs.count_kept(config("*"), -1)
