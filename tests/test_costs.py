"""Closed forms against counted FLOPs, real tensors' bytes, and published numbers."""

import subprocess
import sys
from math import inf, prod

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from ssmlib.costs import (
    DEVICES,
    DTYPES,
    MODELS,
    TRAINING,
    Cost,
    Device,
    ModelShape,
    attention_cost,
    attention_layer_cost,
    balance,
    context_bytes,
    device_named,
    dtype_bytes,
    kv_cache_bytes,
    linear_cost,
    mlp_cost,
    model_cost,
    pairs,
    parameter_bytes,
    parameters,
    roofline,
    scores_bytes,
    ssm_cost,
    ssm_layer_cost,
    state_bytes,
    users_that_fit,
)

TORCH_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8": torch.float8_e4m3fn,
    "int8": torch.int8,
}
TINY = ModelShape(
    pattern="*-MEM",
    vocab_size=11,
    d_model=8,
    heads=4,
    kv_heads=2,
    head_dim=3,
    hidden=10,
    experts=4,
    active=2,
    state=5,
    conv=3,
    dt_rank=2,
    mixer_norms=True,
    context=16,
    source="made up",
)


def counted(f, *args):
    with FlopCounterMode(display=False) as counter:
        f(*args)
    return counter.get_total_flops()


def nbytes(*tensors):
    return sum(x.nbytes for x in tensors)


def zeros(*shape, dtype="bfloat16"):
    return torch.zeros(shape, dtype=TORCH_DTYPES[dtype])


def visible(length, past, causal, window):
    i, j = torch.arange(past, past + length)[:, None], torch.arange(past + length)
    seen = (j <= i) | torch.tensor(not causal)
    return seen if window is None else seen & (i - j < window)


def attend(q, k, v, mask):
    """Scores in memory: q (b h t k), k v (b g t k), mask (t t)."""
    q = q.unflatten(1, (k.shape[1], -1))
    scores = q @ k.unsqueeze(2).mT
    return (scores.masked_fill(~mask, -inf).softmax(-1) @ v.unsqueeze(2)).flatten(1, 2)


@pytest.mark.parametrize("length", [1, 2, 7, 12])
@pytest.mark.parametrize("past", [0, 1, 5, 9])
@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 1), (True, 6), (False, None)])
def test_pairs_are_those_of_the_mask(length, past, causal, window):
    assert pairs(length, past, causal, window) == visible(length, past, causal, window).sum()


def test_causal_pairs_are_half_of_the_square_and_half_of_the_diagonal():
    assert pairs(1000) == 500_500
    assert pairs(6) == 21
    assert pairs(6, causal=False) == 36


@pytest.mark.parametrize(("length", "past"), [(1, 0), (9, 0), (1, 8), (4, 5)])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_core_is_what_torch_counts(length, past, kv_heads, causal, seeded):
    q = seeded.normal(2, 4, length, 6)
    k, v = (seeded.normal(2, kv_heads, past + length, 6) for _ in range(2))
    flops = counted(attend, q, k, v, visible(length, past, causal, None))
    sizes = {"kv_heads": kv_heads, "batch": 2, "past": past, "dtype": "float32"}
    stored = attention_cost(length, 4, 6, causal=causal, materialized=True, **sizes)
    tiled = attention_cost(length, 4, 6, causal=causal, **sizes)
    assert flops == stored.flops == attention_cost(length, 4, 6, causal=False, **sizes).flops
    assert tiled.flops * length * (past + length) == stored.flops * pairs(length, past, causal)
    q, k, v = q.float(), k.float(), v.float()
    assert tiled.bytes == nbytes(q, k, v, q)  # the output is as large as q
    scores = zeros(2, 4, length, past + length, dtype="float32")
    assert stored.bytes == tiled.bytes + 4 * scores.nbytes
    assert scores.nbytes == scores_bytes(length, 4, batch=2, past=past, dtype="float32")


@pytest.mark.parametrize("window", [None, 1, 5, 100])
def test_a_prompt_in_pieces_does_the_work_of_the_whole(window):
    whole = attention_cost(20, 4, 6, window=window).flops
    pieces = [attention_cost(n, 4, 6, past=p, window=window) for n, p in [(7, 0), (1, 7), (12, 8)]]
    assert sum(pieces, Cost()).flops == whole
    generated = [attention_cost(1, 4, 6, past=p, window=window) for p in range(20)]
    assert sum(generated, Cost()).flops == whole


def test_a_window_bounds_what_a_step_reads():
    step = attention_cost(1, 4, 6, past=1000, window=10)
    assert step == attention_cost(1, 4, 6, past=9)
    assert step == attention_cost(1, 4, 6, past=10**6, window=10)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_layer_is_what_torch_counts(kv_heads, causal, seeded):
    x, w_qkv, w_out = (
        seeded.normal(2, 9, 8),
        seeded.normal(8, 12 + 6 * kv_heads),
        seeded.normal(12, 8),
    )

    def layer(x):
        heads = (x @ w_qkv).unflatten(-1, (4 + 2 * kv_heads, 3)).transpose(1, 2)
        y = attend(*heads.split([4, kv_heads, kv_heads], 1), visible(9, 0, causal, None))
        return y.transpose(1, 2).flatten(2) @ w_out

    sizes = {"kv_heads": kv_heads, "head_dim": 3, "batch": 2}
    cost = attention_layer_cost(9, 8, 4, causal=causal, materialized=True, **sizes)
    assert counted(layer, x) == cost.flops
    assert attention_layer_cost(9, 8, 4) == attention_layer_cost(9, 8, 4, kv_heads=4, head_dim=2)


def test_mlp_is_what_torch_counts_and_training_is_three_times_that(seeded):
    x = seeded.normal(2, 9, 8).requires_grad_()
    w_1, w_2, w_3 = (seeded.normal(*s).requires_grad_() for s in [(8, 20), (20, 8), (8, 40)])

    def plain(x):
        return F.gelu(x @ w_1) @ w_2

    def swiglu(x):
        gate, up = (x @ w_3).chunk(2, -1)
        return (F.silu(gate) * up) @ w_2

    for f, gated in [(plain, False), (swiglu, True)]:
        cost = mlp_cost(9, 8, 20, gated=gated, batch=2)
        assert counted(f, x) == cost.flops
        assert counted(lambda: f(x).sum().backward()) == (TRAINING * cost).flops  # noqa: B023


def test_linear_bytes_are_the_tensors():
    x, w, y = zeros(9, 8), zeros(8, 20), zeros(9, 20)
    assert linear_cost(9, 8, 20).bytes == nbytes(x, w, y)
    assert linear_cost(9, 8, 20, matrices=3).bytes == nbytes(x, w, w, w, y)


def mamba_maps(x, m):
    """Every product and the convolution of a Mamba-1 layer, its scan left out."""
    c = m.channels
    u, z = (x @ x.new_ones(m.d_model, 2 * c)).chunk(2, -1)
    u = F.conv1d(F.pad(u.mT, (m.conv - 1, 0)), x.new_ones(c, 1, m.conv), groups=c).mT
    dt, B, C = (u @ x.new_ones(c, m.dt_rank + 2 * m.state)).split([m.dt_rank, m.state, m.state], -1)
    return (u * z * (dt @ x.new_ones(m.dt_rank, c)) + (B * C).sum()) @ x.new_ones(c, m.d_model)


@pytest.mark.parametrize("length", [1, 9])
def test_mamba_layer_is_what_torch_counts_plus_the_scan(length, seeded):
    flops = counted(mamba_maps, seeded.normal(2, length, 8), TINY)
    cost = ssm_layer_cost(length, 8, state=5, conv=3, dt_rank=2, batch=2)
    assert flops == cost.flops - ssm_cost(length, 16, 5, batch=2).flops
    assert ssm_layer_cost(1, 40) == ssm_layer_cost(1, 40, dt_rank=3)


def test_scan_costs_nine_by_convention_and_seven_step_by_step(seeded):
    x, dt, B, C = (seeded.normal(s) for s in (6, 6, 5, 5))
    A, h = seeded.normal(6, 5), seeded.normal(6, 5)
    aten = torch.ops.aten

    def elementwise(*args, out_shape=None, **kwargs):
        return prod(out_shape)

    def matrix_vector(a_shape, b_shape, *args, out_shape=None, **kwargs):
        return 2 * prod(a_shape)

    def step():
        return (torch.exp(dt[:, None] * A) * h + (dt * x)[:, None] * B) @ C

    mapping = dict.fromkeys([aten.mul, aten.add, aten.exp], elementwise) | {aten.mv: matrix_vector}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        step()
    assert counter.get_total_flops() == 7 * 6 * 5 + 6  # dt * x is once per channel
    assert ssm_cost(1, 6, 5).flops == 9 * 6 * 5
    assert ssm_cost(8, 6, 5).flops == 8 * ssm_cost(1, 6, 5).flops


def test_scan_bytes_are_the_tensors():
    x, B, h = zeros(2, 9, 6), zeros(2, 9, 5), zeros(2, 6, 5, dtype="float32")
    A, D = zeros(6, 5, dtype="float32"), zeros(6, dtype="float32")
    assert ssm_cost(9, 6, 5, batch=2).bytes == nbytes(x, x, x, x, B, B, A, D, D, h, h)


@pytest.mark.parametrize(("length", "past"), [(1, 6), (5, 0), (3, 4)])
def test_a_whole_model_is_what_torch_counts(length, past, seeded):
    m, batch = TINY, 2

    def attention(x):
        q, k = x.new_ones(batch, 4, length, 3), x.new_ones(batch, 2, past + length, 3)
        x = x @ x.new_ones(8, 24)
        y = attend(q, k, k, visible(length, past, True, None))
        return y.transpose(1, 2).flatten(2) @ x.new_ones(12, 8)

    def mlp(x):
        up, gate = (x @ x.new_ones(8, 20)).chunk(2, -1)
        return up * gate @ x.new_ones(10, 8)

    def experts(x):
        chosen = (x @ x.new_ones(8, 4)).topk(2).indices
        return [mlp(x[(chosen == e).any(-1)]) for e in range(4)]

    def forward(x):
        attention(x), mlp(x), mamba_maps(x, m), experts(x), mamba_maps(x, m)
        return x @ x.new_ones(8, 11)

    scans = 2 * ssm_cost(length, 16, 5, batch=batch).flops
    core = {"kv_heads": 2, "batch": batch, "past": past}
    masked = attention_cost(length, 4, 3, materialized=True, **core).flops
    masked -= attention_cost(length, 4, 3, **core).flops
    flops = counted(forward, seeded.normal(batch, length, 8))
    assert model_cost(m, length, batch=batch, past=past).flops == flops + scans - masked


def test_mamba_layer_bytes_are_the_tensors():
    tokens, wide, u, read = zeros(18, 8), zeros(18, 32), zeros(18, 16), zeros(18, 12)
    taps, last = zeros(16, 3 + 1), zeros(2, 16, 2, dtype="float32")
    moved = [tokens, zeros(8, 32), wide, u, taps, last, last, u, u, zeros(16, 12), read]
    moved += [zeros(18, 2), zeros(2, 16), u, u, zeros(16, 8), tokens]
    scan = ssm_cost(9, 16, 5, batch=2).bytes
    assert ssm_layer_cost(9, 8, state=5, conv=3, dt_rank=2, batch=2).bytes == nbytes(*moved) + scan


@pytest.mark.parametrize(("length", "met"), [(1, 2), (9, 4)])
def test_a_whole_model_moves_what_its_layers_move(length, met):
    """The experts met are as many as there are visits, two for each token, up to all four."""
    attention = attention_layer_cost(length, 8, 4, kv_heads=2, head_dim=3)
    mamba = ssm_layer_cost(length, 8, state=5, conv=3, dt_rank=2)
    layers = attention + mlp_cost(length, 8, 10) + 2 * mamba + linear_cost(length, 8, 4)
    layers += linear_cost(2 * length, 8, 20, matrices=met)
    layers += linear_cost(2 * length, 10, 8, matrices=met)
    looked_up = zeros(length, 8)
    ends = linear_cost(length, 8, 11) + Cost(0, nbytes(looked_up, looked_up))
    assert model_cost(TINY, length) == layers + ends


def test_a_whole_models_weights_are_the_tensors():
    attention = [(8, 24), (12, 8), (8,)]
    mlp = [(8, 20), (10, 8), (8,)]
    mamba = [(8, 32), (16, 3), (16,), (16, 12), (2, 16), (16,), (16, 5), (16,), (16, 8), (8,)]
    mamba += [(2,), (5,), (5,)]  # the norms of dt, B and C
    experts = [(8, 4), (4, 8, 20), (4, 10, 8), (8,)]
    shapes = [*attention, *mlp, *mamba, *experts, *mamba, (8,), (11, 8), (8, 11)]
    weights = [zeros(*shape) for shape in shapes]
    assert parameters(TINY) == sum(w.numel() for w in weights)
    assert parameter_bytes(TINY) == nbytes(*weights)
    assert parameters(TINY) - parameters(TINY, active=True) == 2 * (8 * 20 + 10 * 8)


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
def test_caches_and_states_are_the_tensors(dtype):
    cache = zeros(2, 3, 4, 7, 2, 5, dtype=dtype)  # K and V, layers, batch, time, heads, head_dim
    assert kv_cache_bytes(3, 2, 5, 7, 4, dtype) == cache.nbytes
    assert kv_cache_bytes(3, 2, 5, 7, 4, dtype, window=4) == cache[:, :, :, -4:].clone().nbytes
    assert kv_cache_bytes(3, 2, 5, 7, 4, dtype, window=99) == cache.nbytes
    h, last = zeros(3, 4, 6, 5, dtype=dtype), zeros(3, 4, 6, 3, dtype=dtype)
    assert state_bytes(3, 6, 5, batch=4, dtype=dtype) == nbytes(h, last)
    h, last = zeros(3, 4, 2, 3, 5, dtype=dtype), zeros(3, 4, 6 + 2 * 2 * 5, 3, dtype=dtype)
    assert state_bytes(3, 6, 5, groups=2, batch=4, dtype=dtype) == nbytes(h, last)


def test_int4_is_packed_two_to_a_byte():
    assert set(DTYPES) == {*TORCH_DTYPES, "int4"}
    assert [dtype_bytes(n, "int4") for n in (0, 1, 2, 3)] == [0, 1, 1, 2]
    assert kv_cache_bytes(3, 2, 5, 7, dtype="int4") * 4 == kv_cache_bytes(3, 2, 5, 7)


def test_a_context_is_its_caches_and_states():
    for length in (0, 100):
        cache = kv_cache_bytes(1, 2, 3, length, 4)
        assert context_bytes(TINY, length, 4) == cache + state_bytes(2, 16, 5, conv=3, batch=4)
    assert context_bytes("Mamba-2.8B", 100) == context_bytes("Mamba-2.8B", 100_000)
    assert context_bytes("Llama-3-8B", 200) == 2 * context_bytes("Llama-3-8B", 100)


PUBLISHED = {  # as transformers builds the checkpoint; // 2: from the bytes its index file states
    "Llama-2-7B": 6_738_415_616,
    "Llama-3-8B": 8_030_261_248,
    "Llama-3-70B": 141_107_412_992 // 2,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.1-70B": 141_107_412_992 // 2,
    "Mamba-2.8B": 2_768_345_600,
    "Falcon-Mamba-7B": 7_272_665_088,
    "Jamba-v0.1": 103_140_646_656 // 2,
}


def test_models_have_their_published_number_of_weights():
    assert {name: parameters(name) for name in MODELS} == PUBLISHED
    assert parameters("Jamba-v0.1", active=True) == pytest.approx(12.11e9, rel=5e-4)
    assert all(m.source for m in MODELS.values())
    jamba = MODELS["Jamba-v0.1"].pattern
    assert [jamba.count(glyph) for glyph in "*M-E"] == [4, 28, 16, 16]
    assert [MODELS[f"Llama-3{v}-70B"].context for v in ("", ".1")] == [8192, 131_072]


def test_caches_of_published_models():
    per_token = {name: context_bytes(name, 1) for name in MODELS if "Llama" in name}
    assert per_token["Llama-3-70B"] == 327_680
    assert per_token["Llama-3-8B"] == 131_072
    assert per_token["Llama-2-7B"] == 524_288
    assert context_bytes("Llama-3.1-70B", 131_072) == 40 * 2**30
    assert context_bytes("Llama-3.1-70B", 131_072, dtype="float32") / 1e9 == pytest.approx(
        85.9, abs=0.05
    )
    assert context_bytes("Llama-3.1-70B", 131_072, dtype="float8") / 1e9 == pytest.approx(
        21.5, abs=0.05
    )
    assert kv_cache_bytes(80, 64, 128, 131_072) / 1e9 == pytest.approx(343.6, abs=0.05)
    assert context_bytes("Llama-3-8B", 2**20) / 1e9 == pytest.approx(137.4, abs=0.05)
    assert context_bytes("Llama-2-7B", 100_000) / 1e9 == pytest.approx(52.4, abs=0.05)
    assert kv_cache_bytes(16, 32, 128, 100_000) / 1e9 == pytest.approx(26.2, abs=0.05)
    assert kv_cache_bytes(4, 8, 128, 262_144) == 4 * 2**30  # Jamba's four attention layers
    assert scores_bytes(131_072) / 1e9 == pytest.approx(34.36, abs=0.005)


def test_states_of_published_models():
    assert state_bytes(64, 8192, 16, conv=1, dtype="float16") == 16 * 2**20  # Falcon-Mamba-7B
    assert state_bytes(64, 8192, 16, conv=1) / 1e6 == pytest.approx(33.6, abs=0.05)
    assert state_bytes(64, 5120, 16, conv=1, dtype="float16") / 1e6 == pytest.approx(10.5, abs=0.05)
    assert state_bytes(64, 5120, 128, conv=1, dtype="float16") / 1e6 == pytest.approx(
        83.9, abs=0.05
    )
    conv = state_bytes(32, 8192, 16, dtype="float16") - state_bytes(
        32, 8192, 16, 1, dtype="float16"
    )
    assert conv / 1e6 == pytest.approx(1.6, abs=0.05)


@pytest.mark.parametrize(
    ("length", "core", "layer", "block"),
    [
        (10**3, 6.94, 0.67, 0.97),
        (10**4, 69.4, 1.02, 1.15),
        (10**5, 694, 4.5, 2.9),
        (10**6, 6944, 39, 20),
    ],
)
def test_how_much_more_attention_works_than_mamba(length, core, layer, block):
    """d_model 4096, 16 states: cores, layers, and attention with an MLP against two Mambas."""
    attention, mamba = attention_layer_cost(length, 4096, 32), ssm_layer_cost(length, 4096)
    mlp = mlp_cost(length, 4096, 16_384, gated=False)
    ratio = attention_cost(length, 32, 128).flops / ssm_cost(length, 8192, 16).flops
    assert ratio == pytest.approx(core, rel=2e-3)
    assert attention.flops / mamba.flops == pytest.approx(layer, rel=1e-2)
    assert (attention + mlp).flops / (2 * mamba).flops == pytest.approx(block, rel=2e-2)


def test_how_a_whole_7b_model_grows():
    """Weights that multiply are 6.607e9 of 6.738e9: looking an embedding up multiplies nothing."""
    flops = {n: model_cost("Llama-2-7B", n).flops for n in (10**3, 10**4, 10**5, 10**6)}
    growth = [flops[n] / flops[10**3] for n in flops]
    assert growth == pytest.approx([1, 11.75, 292.6, 20_432], rel=1e-3)
    multiplying = PUBLISHED["Llama-2-7B"] - 32_000 * 4096 - 65 * 4096
    core = 32 * attention_cost(10**3, 32, 128).flops
    assert flops[10**3] == 2 * multiplying * 10**3 + core
    # attention's share equals the rest where 4 (n + 1) / 2 * d_model * layers = 2 * multiplying
    even = multiplying // (4096 * 32)
    n = even - 1
    assert 2 * 32 * attention_cost(n, 32, 128).flops == pytest.approx(
        model_cost("Llama-2-7B", n).flops, rel=1e-4
    )
    assert n == pytest.approx(50_400, rel=1e-3)


@pytest.mark.parametrize("name", ["Llama-3-8B", "Llama-3-70B", "Mamba-2.8B"])
def test_a_decoding_step_moves_the_weights_and_the_context_once(name):
    m = MODELS[name]
    lookup = 0 if m.tied else dtype_bytes(m.vocab_size * m.d_model, "bfloat16")
    floor = parameter_bytes(name) - lookup + context_bytes(name, 10_000)
    assert model_cost(name, 1, past=9999).bytes == pytest.approx(floor, rel=0.01)


def test_costs_add_and_scale():
    cost = Cost(6, 2) + 2 * Cost(1, 3) + Cost(1, 1) * 0.5
    assert cost == Cost(8.5, 8.5)
    assert Cost(6, 2).intensity == 3
    assert Cost(6).intensity == inf
    assert sum([Cost(1, 2), Cost(3, 4)], Cost()) == Cost(4, 6)


def test_roofline_is_the_longer_of_computing_and_moving():
    slow = Device(matmul=100.0, bandwidth=10.0, memory=1.0, source="made up")
    assert balance(slow) == 10
    assert roofline(Cost(1000, 50), slow) == 10
    assert roofline(Cost(100, 50), slow) == 5
    assert roofline(Cost(500, 50), slow) == 5  # at the balance both take as long
    assert balance("H100 SXM") == pytest.approx(295, abs=0.5)
    assert balance("A100 80GB SXM") == pytest.approx(153, abs=0.5)
    assert all(d.source.startswith("NVIDIA") and "https://" in d.source for d in DEVICES.values())


def test_a_device_is_found_by_exactly_the_name_that_its_driver_reports():
    assert device_named("NVIDIA H200") is DEVICES["H200 SXM"]
    assert device_named("NVIDIA H100 80GB HBM3") is DEVICES["H100 SXM"]
    assert device_named("NVIDIA L4") is DEVICES["L4"]
    others = ("NVIDIA L40S", "NVIDIA H100 PCIe", "NVIDIA H200 NVL", "NVIDIA GeForce RTX 3090", "L4")
    others += ("Tesla V100-SXM2-16GB", "NVIDIA A100-SXM4-40GB", "CPU AMD EPYC, 2 threads", "")
    assert [device_named(name) for name in others] == [None] * len(others)


def test_every_device_is_reported_by_names_of_its_own():
    names = [name for device in DEVICES.values() for name in device.reported]
    assert all(device.reported for device in DEVICES.values())
    assert len(set(names)) == len(names)


def test_prefill_is_limited_by_computing_and_decoding_by_memory():
    heads = {"kv_heads": 8}
    step = attention_cost(1, 64, 128, past=131_071, **heads)
    assert step.intensity == pytest.approx(8, rel=1e-3)  # the queries that share a key
    assert (
        step.intensity < balance("H100 SXM") < attention_cost(131_072, 64, 128, **heads).intensity
    )
    prefill = model_cost("Llama-3.1-70B", 131_072)
    assert 80 * attention_cost(131_072, 64, 128).flops == pytest.approx(2.25e16, rel=2e-3)
    assert roofline(prefill, "H100 SXM") == prefill.flops / DEVICES["H100 SXM"].matmul


def test_users_that_fit():
    assert users_that_fit("Llama-3.1-70B", 131_072, "H100 SXM", devices=8) == 11
    assert users_that_fit("Llama-3.1-70B", 131_072, "H100 SXM") == 0
    assert users_that_fit("Llama-3.1-70B", 131_072, "H100 SXM", weights="int4") == 1
    mamba = {users_that_fit("Falcon-Mamba-7B", n, "RTX 4090") for n in (1, 10**9)}
    assert len(mamba) == 1
    full = mamba.pop()
    assert full > 200
    halved = users_that_fit("Falcon-Mamba-7B", 1, "RTX 4090", state_dtype="bfloat16")
    assert halved in (2 * full, 2 * full + 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pairs(0), "length: expected a whole number >= 1, got 0"),
        (lambda: pairs(3, past=-1), "past: expected a whole number >= 0, got -1"),
        (lambda: pairs(3.0), r"length: expected a whole number >= 1, got 3\.0"),
        (lambda: pairs(True), "length: expected a whole number >= 1, got True"),
        (lambda: pairs(3, window=0), "window: expected a whole number >= 1, got 0"),
        (
            lambda: pairs(3, causal=False, window=2),
            "window: expected None when causal=False, got 2",
        ),
        (lambda: attention_cost(3, 4, -2), "head_dim: expected a whole number >= 1, got -2"),
        (
            lambda: attention_cost(3, 4, 2, kv_heads=3),
            "kv_heads: expected a divisor of heads=4, got 3",
        ),
        (
            lambda: attention_cost(3, 4, 2, kv_heads=0),
            "kv_heads: expected a whole number >= 1, got 0",
        ),
        (lambda: attention_layer_cost(3, 8, 3), "heads: expected a divisor of d_model=8, got 3"),
        (lambda: attention_layer_cost(3, 8, 4, kv_heads=0), "kv_heads: expected a whole"),
        (lambda: attention_layer_cost(3, 8, 4, batch=0), "batch: expected a whole number >= 1"),
        (lambda: mlp_cost(0, 8, 4), "length: expected a whole number >= 1, got 0"),
        (
            lambda: linear_cost(1, 8, 4, "float12"),
            "dtype: expected one of float32, .*, got 'float12'",
        ),
        (lambda: ssm_cost(3, 8, 0), "state: expected a whole number >= 1, got 0"),
        (lambda: ssm_layer_cost(3, 8, dt_rank=0), "dt_rank: expected a whole number >= 1, got 0"),
        (lambda: kv_cache_bytes(1, 1, 1, 2.5), r"length: expected a whole number >= 0, got 2\.5"),
        (lambda: kv_cache_bytes(1, 1, 1, 2, dtype=8), "dtype: expected one of .*int4, got 8"),
        (lambda: state_bytes(1, 4, 4, conv=0), "conv: expected a whole number >= 1, got 0"),
        (lambda: state_bytes(1, 4, 4, groups=-1), "groups: expected a whole number >= 0, got -1"),
        (lambda: scores_bytes(-1), "length: expected a whole number >= 1, got -1"),
        (lambda: parameters("GPT-5"), "model: expected one of Llama-2-7B, .*, got 'GPT-5'"),
        (lambda: model_cost(None, 3), "model: expected one of .*, got None"),
        (lambda: model_cost(TINY, 0), "length: expected a whole number >= 1, got 0"),
        (lambda: context_bytes("Mamba-2.8B", 1, dtype="x"), "dtype: expected one of float32.*'x'"),
        (lambda: context_bytes(TINY, 3, state_dtype="f4"), "state_dtype: expected one of .*'f4'"),
        (lambda: users_that_fit(TINY, 3, "H100"), "device: expected one of B200, .*, got 'H100'"),
        (lambda: users_that_fit(TINY, 3, "L4", devices=0), "devices: expected a whole number"),
        (lambda: users_that_fit(TINY, 3, "L4", weights="?"), r"weights: expected one of .*'\?'"),
        (
            lambda: users_that_fit("Llama-3-8B", 0, "L4"),
            "length: expected >= 1 for a model without",
        ),
        (lambda: roofline((1, 2), "L4"), "cost: expected a Cost, got tuple"),
        (lambda: balance("TPU"), "device: expected one of .*, got 'TPU'"),
        (lambda: Cost(-1, 0), "flops: expected a finite number >= 0, got -1"),
        (lambda: Cost(0, float("nan")), "bytes: expected a finite number >= 0, got nan"),
        (lambda: Device(0, 1, 1, ""), "matmul: expected a finite number > 0, got 0"),
        (lambda: ModelShape("M?", 9, 8, 9, "", state=4, dt_rank=1), r"pattern: .*got '\?'"),
        (lambda: ModelShape("", 9, 8, 9, ""), "pattern: expected at least one glyph"),
        (lambda: ModelShape("M", 9, 8, 9, "", state=4), "dt_rank: expected a whole number >= 1"),
        (
            lambda: ModelShape("*", 9, 8, 9, "", heads=4, kv_heads=3, head_dim=2),
            "kv_heads: expected a divisor of heads=4, got 3",
        ),
        (
            lambda: ModelShape("E", 9, 8, 9, "", hidden=4, experts=2, active=3),
            "active: expected at most experts=2, got 3",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_costs_import_no_torch():
    code = "import sys, ssmlib.costs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
