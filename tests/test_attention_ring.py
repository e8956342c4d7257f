"""ssmlib.attention.ring and its kernel: a cache written over is the cache that grows."""

import pytest
import torch
from agreement import TOLERANCE, assert_close
from uninterpreted import uninterpreted

from ssmlib.attention import (
    KVCache,
    RingCache,
    attend_cached,
    attend_ring_,
    attend_slots,
    rotary_rates,
    to_ring,
)
from ssmlib.attention.operators import slots_by_kernel, step_by_kernel_

COMPILE = """
import sys, torch
from ssmlib.bench.assembly import compiled
from ssmlib.kernels.attend import step_
sizes = ((1, 16, 128), (1, 4, 128), (1, 4096, 4, 128))
q, k, ring = (torch.zeros(s, dtype=torch.bfloat16) for s in sizes)
rates, position = torch.zeros(1, 64).double(), torch.zeros(1, dtype=torch.long)
for turns in (rates, None):
    call = lambda: step_(q, k, k, ring, ring, position, turns, 1.0, False)
    for made in compiled(call, int(sys.argv[1])):
        print(made.name)
"""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def qkv(seeded, t, h=4, g=2, k=8, v=6, b=2):
    return (seeded.normal(b, t, n, size) for n, size in ((h, k), (g, k), (g, v)))


@pytest.mark.parametrize("window", [None, 1, 4, 30])
@pytest.mark.parametrize("before", [1, 3, 9])
def test_a_ring_is_the_cache_that_grows(before, window, seeded):
    q, k, v = qkv(seeded, 20)
    head = (x[:, :before] for x in (q, k, v))
    _, cache = attend_cached(*head, None, window)
    want, last = attend_cached(*(x[:, before:] for x in (q, k, v)), cache, window)
    ring = to_ring(cache, 20 - before, window)
    shape, where = ring.k.shape, ring.k.data_ptr()
    assert shape[1] == min(20, window or 20)
    got = [attend_ring_(*(x[:, i] for x in (q, k, v)), ring, window) for i in range(before, 20)]
    assert_close(torch.stack(got, dim=1), want)
    assert ring.k.shape == shape
    assert ring.k.data_ptr() == where
    kept = ring.k[:, torch.arange(20 - last.k.shape[1], 20) % shape[1]]
    assert_close(kept, last.k, 0)
    assert ring.position.tolist() == [20, 20]


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize(
    ("h", "g", "k", "v", "m"),
    [(4, 2, 8, 8, 3), (6, 2, 5, 7, 64), (16, 1, 16, 32, 65), (3, 3, 33, 2, 700)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slots_by_definition(backend, h, g, k, v, m, dtype, seeded):
    """Rows of different lengths; what is behind them is NaN, and must not count."""
    count = torch.tensor([1, m, (m + 1) // 2], device=DEVICE)
    q = seeded.normal(3, h, k).to(DEVICE, dtype)
    keys, values = (seeded.normal(3, m, g, n).to(DEVICE, dtype) for n in (k, v))
    want = attend_slots(q.double(), keys.double(), values.double(), count, backend="reference")
    behind = (torch.arange(m, device=DEVICE) >= count[:, None])[..., None, None]
    if backend == "triton":
        keys, values = (x.masked_fill(behind, float("nan")) for x in (keys, values))
    got = attend_slots(q, keys, values, count, backend=backend)
    assert_close(got, want.cpu(), TOLERANCE[dtype])
    again = attend_slots(
        q, keys, values, count + 10 * (count == m), backend=backend
    )  # beyond m is m
    assert torch.equal(again, got)


def test_strides_of_any_kind(seeded):
    q, keys, values = seeded.normal(2, 4, 8), seeded.normal(2, 2, 40, 8), seeded.normal(40, 2, 2, 8)
    keys, values = keys.transpose(1, 2), values.transpose(0, 1)
    count = torch.tensor([40, 7])
    want = attend_slots(q, keys, values, count, backend="reference")
    single = (x.to(DEVICE, torch.float32) for x in (q, keys, values))
    assert_close(attend_slots(*single, count.to(DEVICE), backend="triton"), want)


def test_it_is_an_operator(seeded):
    q, keys, values = (seeded.normal(*s).float() for s in ((1, 2, 8), (1, 9, 2, 8), (1, 9, 2, 8)))
    args = tuple(x.to(DEVICE) for x in (q, keys, values, torch.tensor([5])))
    torch.library.opcheck(slots_by_kernel, (*args, 0.3))
    token = (args[0], *(x[:, 0].contiguous() for x in args[1:3]))
    args = (*token, *args[1:], rotary_rates(8, device=DEVICE)[None], 0.3)
    torch.library.opcheck(step_by_kernel_, args)


@pytest.mark.parametrize("rotated", [None, 2, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_turns_and_writes_as_it_should(rotated, dtype, seeded):
    """Rows at different positions, one of them far; the ring of one row goes round."""
    q, k, v = (seeded.normal(3, n, s).to(DEVICE, dtype) for n, s in ((6, 8), (2, 8), (2, 5)))
    rings = []
    keys, values = seeded.normal(3, 7, 2, 8).to(q), seeded.normal(3, 7, 2, 5).to(q)
    rates = None if rotated is None else rotary_rates(rotated, device=DEVICE).repeat(3, 1)
    for wide in (False, True):
        parts = (x.double() if wide else x.clone() for x in (keys, values))
        position = torch.tensor([0, 4, 1_000_003], device=DEVICE)
        ring = RingCache(*parts, position, rates)
        token = (x.double() if wide else x for x in (q, k, v))
        y = attend_ring_(*token, ring, 7, 0.4, backend="torch" if wide else "triton")
        rings.append((y, ring))
    (got, mine), (want, theirs) = rings
    assert_close(got, want, TOLERANCE[dtype])
    for name in ("k", "v"):
        assert_close(getattr(mine, name), getattr(theirs, name), TOLERANCE[dtype])
    assert mine.position.tolist() == theirs.position.tolist() == [1, 5, 1_000_004]


@pytest.mark.parametrize("capability", [80, 90])
def test_it_compiles_without_a_gpu(capability):
    told = uninterpreted(COMPILE, capability)
    assert told.split() == 2 * ["enter_kernel", "shares_kernel", "join_kernel"]


@pytest.mark.gpu
def test_a_graph_holds_a_cache_that_grows(seeded):
    q, k, v = (x.to("cuda", torch.bfloat16) for x in qkv(seeded, 40, 8, 2, 64, 64))
    _, cache = attend_cached(*(x[:, :8] for x in (q, k, v)))
    want, _ = attend_cached(*(x[:, 8:] for x in (q, k, v)), cache)
    ring, given = to_ring(cache, 40), [x[:, 0].clone() for x in (q, k, v)]
    stream = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(stream):
        attend_ring_(*given, RingCache(*(x.clone() for x in ring[:3])))  # compiles
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            y = attend_ring_(*given, ring)
        for i in range(8, 40):
            for place, x in zip(given, (q, k, v), strict=True):
                place.copy_(x[:, i])
            graph.replay()
            assert_close(y, want[:, i - 8], 1e-2)


@pytest.mark.gpu
def test_offsets_past_two_to_the_31():
    m, g, k = 2**24 + 64, 1, 128
    keys = torch.zeros(1, m, g, k, dtype=torch.bfloat16, device="cuda")
    keys[:, m - 1] = 1
    q = torch.full((1, 2, k), 8.0, dtype=torch.bfloat16, device="cuda")
    y = attend_slots(q, keys, keys, torch.tensor([m], device="cuda"))
    assert_close(y, torch.ones_like(y), 1e-2)


def test_what_does_not_fit_is_refused(seeded):
    q, k, v = qkv(seeded, 5)
    _, cache = attend_cached(q, k, v)
    token = [x[:, 0] for x in (q, k, v)]
    ring = to_ring(cache, 1)
    attend_ring_(*token, ring)
    with pytest.raises(ValueError, match="cache: expected room for one more token, got 6 slots"):
        attend_ring_(*token, ring)
    with pytest.raises(ValueError, match="cache: expected at most window=3 slots, got 6"):
        attend_ring_(*token, ring, window=3)
    with pytest.raises(ValueError, match="room: expected a whole number >= 1, got 0"):
        to_ring(cache, 0)
    with pytest.raises(ValueError, match="cache: expected no gradients, which cannot go through"):
        attend_ring_(token[0].requires_grad_(), *token[1:], to_ring(cache, 1))
    with pytest.raises(ValueError, match="q: expected h a multiple of g=2, got h=3"):
        attend_slots(token[0][:, :3], cache.k, cache.v, torch.tensor([5, 5]))
    with pytest.raises(ValueError, match="backend: expected one of auto, reference, torch, triton"):
        attend_slots(token[0], cache.k, cache.v, torch.tensor([5, 5]), backend="fast")


def test_a_row_may_be_ahead_of_another(seeded):
    q, k, v = qkv(seeded, 12)
    rows = []
    for i, t in enumerate((5, 9)):
        _, cache = attend_cached(*(x[i : i + 1, :t] for x in (q, k, v)))
        padded = to_ring(KVCache(*cache), 12 - t)
        rows.append(padded)
    ring = RingCache(*(torch.cat(parts) for parts in list(zip(*rows, strict=True))[:3]))
    got = attend_ring_(*(torch.stack([x[0, 5], x[1, 9]]) for x in (q, k, v)), ring)
    for i, t in enumerate((6, 10)):
        want, _ = attend_cached(*(x[i : i + 1, :t] for x in (q, k, v)))
        assert_close(got[i], want[0, -1])
    assert ring.position.tolist() == [6, 10]
