"""ssmlib.mixers.hax: places by brute force, sparse attention against exact, the layer in pieces."""

import math

import pytest
import torch
from agreement import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ssmlib.attention import attention
from ssmlib.mixers.attention import AttentionConfig
from ssmlib.mixers.hax import (
    HAXConfig,
    attend_to,
    buckets,
    dilated,
    hash_codes,
    recent,
    selected,
    sinks,
)
from ssmlib.mixers.mamba2 import Mamba2Config

SMALL = HAXConfig(base=Mamba2Config(state_size=4, head_dim=8), key_size=6)


def named(places: torch.Tensor) -> list[set[int]]:
    """What each query of (c m) names; none twice."""
    found = [[place for place in row if place != -1] for row in places.tolist()]
    assert all(len(row) == len(set(row)) for row in found)
    return [set(row) for row in found]


positions = st.integers(1, 20).flatmap(lambda t: st.tuples(st.integers(1, t), st.just(t)))


@given(positions, st.integers(1, 7))
def test_places_that_look_at_no_content(ct, some):
    (c, t), queries = ct, range(ct[1] - ct[0], ct[1])
    assert named(recent(c, t, some)) == [set(range(max(0, i - some + 1), i + 1)) for i in queries]
    assert named(sinks(c, t, some)) == [set(range(min(some, i + 1))) for i in queries]
    if some <= t:
        wanted = [{j for j in range(i + 1) if j % some == some - 1} for i in queries]
        assert named(dilated(c, t, some)) == wanted


@settings(max_examples=60, deadline=None)
@given(positions, st.integers(1, 5), st.integers(1, 6), st.integers(0, 999))
def test_a_bucket_holds_the_latest_of_its_code(ct, kinds, size, seed):
    c, t = ct
    generator = torch.Generator().manual_seed(seed)
    k_codes = torch.randint(kinds, (2, 3, 2, t), generator=generator)
    q_codes = torch.randint(kinds + 1, (2, 3, 2, c), generator=generator)
    places = buckets(q_codes, k_codes, size)
    assert places.shape == (2, 3, c, 2 * size)
    for b in range(2):
        for h in range(3):
            for s in range(2):
                wanted = []
                for i in range(c):
                    here = range(t - c + i + 1)
                    alike = [j for j in here if k_codes[b, h, s, j] == q_codes[b, h, s, i]]
                    wanted.append(set(alike[-size:]))
                assert named(places[b, h, :, s * size : (s + 1) * size]) == wanted


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 9), st.integers(0, 999), st.data())
def test_the_best_so_far_are_selected(t, count, seed, data):
    c = data.draw(st.integers(1, t))
    scores = torch.rand(1, 2, t, generator=torch.Generator().manual_seed(seed))
    places = selected(scores, c, count)
    assert places.shape == (1, 2, c, count)
    for h in range(2):
        score = scores[0, h].tolist()
        ranked = [sorted(range(i + 1), key=lambda j: -score[j])[:count] for i in range(t - c, t)]
        assert named(places[0, h]) == [set(best) for best in ranked]


def test_hashes_collide_as_often_as_the_angle_says(seeded):
    planes = seeded.normal(1, 4000, 3, 2)
    for angle in (0.1, 1.0, 2.0):
        x = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]]).double()
        codes = hash_codes(x.view(1, 2, 1, 2), planes)[0, 0]  # 4000 2
        wanted = (1 - angle / math.pi) ** 3
        share = (codes[:, 0] == codes[:, 1]).double().mean()
        assert abs(share - wanted) < 5 * (wanted * (1 - wanted) / 4000) ** 0.5
    assert codes.max() == 7


def sparse_case(seeded, c, t, m=7):
    q, k = seeded.normal(2, c, 2, 5), seeded.normal(2, t, 2, 5)
    v, bias = seeded.normal(2, t, 2, 3), seeded.normal(2, 2, t)
    places = seeded.integers(-1, t, 2, 2, c, m)
    places[0, 0, 0] = -1
    return [q, k, v, bias], places


def by_hand(q, k, v, bias, places):
    y = []
    for b in range(q.shape[0]):
        for i in range(q.shape[1]):
            for h in range(q.shape[2]):
                some = sorted(set(places[b, h, i].tolist()) - {-1})
                score = k[b, some, h] @ q[b, i, h] / math.sqrt(q.shape[-1]) + bias[b, h, some]
                y.append(score.softmax(0) @ v[b, some, h] if some else 0 * v[b, 0, h])
    return torch.stack(y).view(*q.shape[:3], -1)


@pytest.mark.parametrize("backend", ["reference", "gather", "auto"])
@pytest.mark.parametrize(("c", "t"), [(1, 1), (9, 9), (3, 11)])
def test_it_attends_to_what_is_named(backend, c, t, seeded):
    inputs, places = sparse_case(seeded, c, t)
    for x in inputs:
        x.requires_grad_()
    wanted = by_hand(*inputs, places)
    weight = seeded.normal(*wanted.shape)
    grads = torch.autograd.grad((wanted * weight).sum(), inputs)
    y = attend_to(*inputs[:3], places, inputs[3], backend)
    assert_close(y, wanted)
    got = torch.autograd.grad((y * weight).sum(), inputs)
    for name, one, ref in zip(["q", "k", "v", "bias"], got, grads, strict=True):
        assert_close(one, ref), name
    assert (y[0, 0, 0] == 0).all()


@pytest.mark.parametrize("backend", ["reference", "gather"])
def test_it_is_exact_attention_when_one_bucket_holds_all(backend, seeded):
    q, k, v = seeded.normal(2, 33, 2, 4), seeded.normal(2, 33, 2, 4), seeded.normal(2, 33, 2, 6)
    planes = torch.zeros(2, 1, 3, 4)
    places = buckets(hash_codes(q, planes), hash_codes(k, planes), 33)
    assert_close(attend_to(q, k, v, places, backend=backend), attention(q, k, v))
    last = buckets(hash_codes(q[:, -5:], planes), hash_codes(k, planes), 33)
    assert_close(attend_to(q[:, -5:], k, v, last, backend=backend), attention(q[:, -5:], k, v))


def test_more_hashes_find_more(seeded):
    """A key near the query, among 400: found with the probability that angle and hashes give."""
    batch, t = 300, 400
    k = torch.nn.functional.normalize(seeded.normal(batch, t, 1, 32), dim=-1)
    noise = torch.nn.functional.normalize(seeded.normal(batch, 1, 1, 32), dim=-1)
    q = torch.nn.functional.normalize(k[:, 100:101] + 0.5 * noise, dim=-1)
    angle = (q * k[:, 100:101]).sum(-1).acos()
    before = 0.0
    for rounds in (1, 4, 16):
        planes = seeded.normal(1, rounds, 6, 32)
        places = buckets(hash_codes(q, planes), hash_codes(k, planes), t)
        found = (places == 100).any(-1).double().mean()
        wanted = (1 - (1 - (1 - angle / math.pi) ** 6) ** rounds).mean()
        assert abs(found - wanted) < 0.1  # the planes are the same for all
        assert found > before
        before = found


class Largest(TorchDispatchMode):
    """The most numbers that any operation returned."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return out


def test_work_and_memory_are_linear_in_length(seeded):
    layer = HAXConfig(
        base=Mamba2Config(state_size=4, head_dim=8),
        key_size=4,
        bucket=8,
        selected=8,
        window=4,
        backend="gather",
    ).build(16)
    flops, largest = [], []
    for t in (512, 1024, 2048):
        x = torch.randn(1, t, 16)
        with torch.no_grad(), FlopCounterMode(display=False) as counter, Largest() as mode:
            layer(x)
        flops.append(counter.get_total_flops())
        largest.append(mode.numel)
    assert flops[2] - flops[1] == pytest.approx(2 * (flops[1] - flops[0]), rel=0.05)
    assert largest[2] <= 2.05 * largest[1]
    assert largest[2] < 2048 * 2048 / 4


CASES = {
    "all": {"rounds": 2, "bits": 2, "bucket": 3, "selected": 2, "window": 2},
    "hashes": {"rounds": 1, "bits": 3, "bucket": 2, "selected": 0},
    "selection": {"rounds": 0, "selected": 3, "heads": 2},
    "no content": {"rounds": 0, "selected": 0, "window": 3, "sinks": 2, "dilation": 4},
    "untied": {"tied": False, "bits": 1, "conv_width": 2},
}


def build(seeded, **changed):
    config = HAXConfig(**{"base": SMALL.base, "key_size": 6, **changed})
    torch.manual_seed(0)
    return config.build(16).double()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cuts", [(7,), (1, 5), tuple(range(1, 12))])
def test_pieces_equal_the_whole(case, cuts, seeded):
    layer = build(seeded, **CASES[case])
    x, state, pieces = seeded.normal(2, 12, 16), None, []
    whole, last = layer(x)
    for piece in x.tensor_split(cuts, dim=1):
        y, state = layer(piece, state)
        pieces.append(y)
    assert_close(torch.cat(pieces, dim=1), whole)
    for one, ref in zip(tree_leaves(state), tree_leaves(last), strict=True):
        if ref is not None:
            assert one.shape == ref.shape
            assert_close(one.double(), ref.double())


@pytest.mark.parametrize("case", CASES)
def test_it_sees_no_future_and_no_neighbour(case, seeded):
    layer, x = build(seeded, **CASES[case]), seeded.normal(3, 12, 16)
    y, _ = layer(x)
    later = x.clone()
    later[:, 8:] += 1
    assert_close(layer(later)[0][:, :8], y[:, :8])
    assert_close(layer(x[1:2])[0], y[1:2])


@pytest.mark.parametrize("case", CASES)
def test_everything_learns(case, seeded):
    layer, x = build(seeded, **CASES[case]), seeded.normal(2, 12, 16).requires_grad_()
    y, _ = layer(x)
    y.square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert x.grad.isfinite().all()


def test_with_one_bucket_for_all_it_is_attention_beside_the_base(seeded):
    layer, x = build(seeded, rounds=1, bucket=12, selected=0), seeded.normal(2, 12, 16)
    layer.planes.zero_()
    y, state = layer(x)
    q = layer.norm(layer.q_proj(x)[:, :, None])
    wanted = layer.base(x)[0] + layer.o_proj(attention(q, state.k, state.v).flatten(2))
    assert_close(y, wanted)
    shifted = torch.nn.functional.pad(layer.k_proj(x), (0, 0, 1, 0))[:, :-1]
    assert_close(state.k[:, :, 0], layer.norm(shifted))  # as it starts: what came before


def test_another_base_and_half_precision(seeded):
    layer = HAXConfig(base=AttentionConfig(heads=2, window=2), key_size=4).build(16).bfloat16()
    y, state = layer(seeded.normal(1, 9, 16).bfloat16())
    assert y.dtype == state.k.dtype == torch.bfloat16
    assert y.isfinite().all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": 3}, "heads: expected a divisor of d_model=16, got 3"),
        ({"window": 0}, "window: expected a whole number >= 1, got 0"),
        ({"bits": 33}, "bits: expected a whole number >= 1 <= 32, got 33"),
        ({"rounds": -1}, "rounds: expected a whole number >= 0, got -1"),
        ({"bucket": 0}, "bucket: expected a whole number >= 1, got 0"),
        ({"selected": -1}, "selected: expected a whole number >= 0, got -1"),
        ({"dilation": 0}, "dilation: expected a whole number >= 1, got 0"),
        ({"conv_width": 1}, "conv_width: expected a whole number >= 2 <= 16, got 1"),
    ],
)
def test_bad_configurations_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        HAXConfig(**wrong).build(16)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: recent(3, 2, 1), "c: expected a whole number >= 1 <= 2, got 3"),
        (lambda: selected(torch.rand(1, 1, 3), 4, 1), "c: expected a whole number >= 1 <= 3"),
        (
            lambda: buckets(torch.zeros(1, 1, 1, 3).long(), torch.zeros(1, 1, 2, 3).long(), 1),
            "k_codes: expected",
        ),
        (
            lambda: hash_codes(torch.rand(1, 2, 1, 3), torch.rand(1, 1, 40, 3)),
            "planes: expected a finite number <= 32, got 40",
        ),
        (
            lambda: attend_to(
                *[torch.rand(1, 2, 1, 3)] * 3, torch.zeros(1, 1, 2, 1).long(), backend="triton"
            ),
            "backend: expected one of auto, reference, gather, got 'triton'",
        ),
        (
            lambda: attend_to(*[torch.rand(1, 2, 1, 3)] * 3, torch.zeros(1, 1, 3, 1).long()),
            "places: expected",
        ),
    ],
)
def test_bad_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
