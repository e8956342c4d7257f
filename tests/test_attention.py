"""ssmlib.attention against its definition: outputs and gradients, every backend, every mask."""

import pytest
import torch
from agreement import TOLERANCE, Seeded, assert_close, assert_same, error

from ssmlib.attention import (
    BACKENDS,
    KVCache,
    attend_cached,
    attention,
    attention_reference,
    attention_tiled,
    attention_torch,
    rotary_rates,
    rotate,
    visible,
)
from ssmlib.bench import peak_memory

FAST = [name for name in BACKENDS if name != "reference"]
LENGTHS = [1, 2, 3, 63, 64, 65, 130, 257]


def qkv(
    seeded: Seeded, t: int, h: int = 4, g: int = 4, k: int = 8, v: int = 8, c: int | None = None
):
    return seeded.normal(2, c or t, h, k), seeded.normal(2, t, g, k), seeded.normal(2, t, g, v)


def with_inputs(q, k, v, *args, **kwargs):
    """Attention, and q and k: where one key is seen their gradient is 0, and needs a scale."""
    return attention(q, k, v, *args, **kwargs), q, k


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("t", LENGTHS)
def test_backends_agree_with_the_definition(backend, causal, t, seeded):
    """eq-attention, and through the tiled backend eq-online-softmax."""
    assert_same(with_inputs, (*qkv(seeded, t), causal), backend=backend, reference="reference")


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [1, 2, 7, 63, 64, 65, 100, 129, 130, 500])
def test_windows(backend, causal, window, seeded):
    assert_same(
        with_inputs, (*qkv(seeded, 130), causal, window), backend=backend, reference="reference"
    )


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("t", LENGTHS)
def test_a_window_at_every_length(backend, t, seeded):
    args = (*qkv(seeded, t, g=2), True, 5)
    assert_same(with_inputs, args, backend=backend, reference="reference")


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("g", [1, 2, 3, 6])
@pytest.mark.parametrize("window", [None, 20])
def test_shared_heads(backend, g, window, seeded):
    args = (*qkv(seeded, 150, h=6, g=g), True, window)
    assert_same(with_inputs, args, backend=backend, reference="reference")


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 9, 70])
@pytest.mark.parametrize("c", [1, 2, 64, 139])
def test_fewer_queries_than_keys(backend, causal, window, c, seeded):
    args = (*qkv(seeded, 140, g=2, c=c), causal, window)
    assert_same(with_inputs, args, backend=backend, reference="reference")


@pytest.mark.parametrize("backend", FAST)
def test_values_of_another_width_and_odd_heads(backend, seeded):
    args = qkv(seeded, 30, h=3, g=1, k=5, v=11)
    assert_same(with_inputs, args, backend=backend, reference="reference")


@pytest.mark.parametrize("width", [4, 16])
@pytest.mark.parametrize(("causal", "window"), [(True, None), (False, None), (True, 20)])
@pytest.mark.parametrize("g", [1, 4])
def test_values_of_another_width_agree_in_every_mask(width, causal, window, g, seeded):
    args = (*qkv(seeded, 150, g=g, v=width), causal, window)
    assert_same(attention, args, backend="torch", reference="reference")


@pytest.mark.parametrize("width", [16, 64])
@pytest.mark.parametrize("causal", [True, False])
def test_values_of_another_width_keep_memory_linear(width, causal, seeded):
    def held(t):
        q, k, v = (x.float().requires_grad_() for x in qkv(seeded, t, h=1, g=1, k=32, v=width))
        return peak_memory(lambda: attention(q, k, v, causal).sum().backward(), device="cpu")

    assert held(2048) < 2.5 * held(1024)  # all scores would be four times as many


@pytest.mark.parametrize("block", [1, 3, 64, 1000])
@pytest.mark.parametrize("window", [None, 10])
def test_tiles_of_any_size(block, window, seeded):
    """eq-online-softmax: no cut into tiles changes the result."""
    q, k, v = qkv(seeded, 65)
    expected = attention(q, k, v, True, window, backend="reference")
    assert_close(attention_tiled(q, k, v, True, window, block), expected)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 30])
def test_dtypes(backend, dtype, window, seeded):
    q, k, v = (x.to(dtype) for x in qkv(seeded, 130, g=2))
    out = attention(q, k, v, window=window, backend=backend)
    assert out.dtype == dtype
    truth = attention(q.double(), k.double(), v.double(), window=window, backend="reference")
    assert_close(out, truth, TOLERANCE[dtype])


def test_large_scores_do_not_overflow(seeded):
    q, k, v = (x.float() for x in qkv(seeded, 65))
    for backend in BACKENDS:
        out = attention(1e3 * q, 1e3 * k, v, backend=backend)
        assert torch.isfinite(out).all(), backend


def test_comparisons_of_six_tokens():
    assert visible(6, 6, causal=False).sum() == 36
    assert visible(6, 6).sum() == 21
    assert visible(6, 6, window=2).sum() == 11
    assert visible(2, 6).tolist() == [[True] * 5 + [False], [True] * 6]


@pytest.mark.parametrize("backend", list(BACKENDS))
@pytest.mark.parametrize("window", [None, 16])
def test_the_future_is_unseen(backend, window, seeded):
    q, k, v = qkv(seeded, 150)
    before = attention(q, k, v, window=window, backend=backend)
    for x in (q, k, v):
        x[:, 100:] = seeded.normal(*x[:, 100:].shape)
    after = attention(q, k, v, window=window, backend=backend)
    assert torch.equal(before[:, :100], after[:, :100])
    assert not torch.equal(before[:, 100], after[:, 100])


@pytest.mark.parametrize("backend", ["reference", "tiled"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_not_finite_spoils_only_the_rows_that_see_it(which, window, bad, backend, seeded):
    inputs = qkv(seeded, 150)
    clean = attention(*inputs, window=window, backend=backend)
    inputs[which][:, 100] = bad
    y = attention(*inputs, window=window, backend=backend)
    seen = torch.arange(150) == 100 if which == 0 else visible(150, 150, True, window)[:, 100]
    assert torch.equal(y[:, ~seen], clean[:, ~seen])
    if which != 1:  # a score of infinity either outshines all others or hides itself
        assert y[:, seen].isnan().all()


@pytest.mark.parametrize("backend", ["reference", "tiled"])
def test_the_gradient_of_rows_before_a_nan_is_clean_and_of_later_ones_is_not(backend, seeded):
    q, k, v = (x.requires_grad_() for x in qkv(seeded, 9))
    spoiled = torch.where((torch.arange(9) == 5)[:, None, None], float("nan"), v)
    y = attention(q, k, spoiled, backend=backend)
    past = torch.autograd.grad(y[:, :5].square().sum(), (q, k, v), retain_graph=True)
    assert all(x.isfinite().all() for x in past)
    assert torch.autograd.grad(y.square().sum(), q)[0][:, 6:].isnan().all()


@pytest.mark.parametrize("backend", list(BACKENDS))
def test_members_of_a_batch_do_not_meet(backend, seeded):
    q, k, v = qkv(seeded, 150, g=2)
    both = attention(q, k, v, window=16, backend=backend)
    alone = attention(q[1:], k[1:], v[1:], window=16, backend=backend)
    assert error(both[1:], alone) < 1e-14


@pytest.mark.parametrize("backend", list(BACKENDS))
def test_the_same_bits_twice(backend, seeded):
    args = [x.float() for x in qkv(seeded, 130)]
    assert torch.equal(attention(*args, backend=backend), attention(*args, backend=backend))


@pytest.mark.parametrize("backend", list(BACKENDS))
@pytest.mark.parametrize("window", [None, 1, 5, 200])
@pytest.mark.parametrize("pieces", [[1] * 20, [130], [64, 1, 65], [3, 90, 37], [129, 1]])
def test_pieces_equal_the_whole(backend, window, pieces, seeded):
    t = sum(pieces)
    q, k, v = qkv(seeded, t, g=2, v=6)
    cache, out = None, []
    for q_i, k_i, v_i in zip(*(x.split(pieces, dim=1) for x in (q, k, v)), strict=True):
        y, cache = attend_cached(q_i, k_i, v_i, cache, window, backend)
        out.append(y)
    assert_close(torch.cat(out, dim=1), attention(q, k, v, window=window, backend="reference"))
    kept = t if window is None else min(window, t)
    assert cache.position == t
    assert torch.equal(cache.k, k[:, -kept:])
    assert torch.equal(cache.v, v[:, -kept:])


@pytest.mark.parametrize("window", [None, 20])
def test_gradients_flow_through_the_cache(window, seeded):
    def in_two(q, k, v, backend):
        y, cache = attend_cached(q[:, :50], k[:, :50], v[:, :50], None, window, backend)
        z, cache = attend_cached(q[:, 50:], k[:, 50:], v[:, 50:], cache, window, backend)
        return torch.cat([y, z], dim=1)

    def at_once(q, k, v, backend):
        return attention(q, k, v, window=window, backend=backend)

    assert_same(
        lambda *qkv, backend: (at_once if backend == "reference" else in_two)(
            *qkv, backend=backend
        ),
        qkv(seeded, 110),
        backend="torch",
        reference="reference",
    )


def test_a_window_may_narrow_but_not_outgrow_the_cache(seeded):
    q, k, v = qkv(seeded, 10)
    _, cache = attend_cached(q[:, :9], k[:, :9], v[:, :9], window=4)
    new = (q[:, 9:], k[:, 9:], v[:, 9:])
    for window, wanted in ((None, 9), (8, 7), (6, 5)):
        told = rf"cache: expected the last {wanted} of 9 tokens \(for window={window}\), got 4"
        with pytest.raises(ValueError, match=told):
            attend_cached(*new, cache, window)
    for window in (5, 4, 2):  # a window of 5 is oneself and the four that are there
        y, _ = attend_cached(*new, cache, window)
        assert_close(y, attention(q, k, v, window=window)[:, 9:])


@pytest.mark.parametrize("position", ["x", 2, 10.0, True, None])
def test_a_position_that_cannot_be_is_refused(position, seeded):
    q, k, v = qkv(seeded, 10)
    with pytest.raises(ValueError, match=r"cache.position: expected a whole number >= 10, got"):
        attend_cached(q, k, v, KVCache(k, v, position))


@pytest.mark.parametrize("window", ["x", 0, 2.5])
def test_a_window_that_cannot_be_is_refused_beside_a_cache(window, seeded):
    q, k, v = qkv(seeded, 10)
    with pytest.raises(ValueError, match="window: expected a whole number >= 1, got"):
        attend_cached(q, k, v, KVCache(k, v, 10), window)


def test_a_windowed_cache_holds_no_more_than_the_window(seeded):
    _, cache = attend_cached(*qkv(seeded, 100), window=10)
    stored = cache.k.untyped_storage().nbytes() + cache.v.untyped_storage().nbytes()
    assert stored == 2 * 2 * 10 * 4 * 8 * 8  # k and v, b, w, g, k, bytes


@pytest.mark.parametrize("window", [8, 64, 100])
def test_a_window_never_holds_t_times_t(window, seeded):
    t, largest = 2048, 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            nonlocal largest
            out = op(*args, **(kwargs or {}))
            for x in torch.utils._pytree.tree_leaves(out):
                largest = max(largest, x.numel() if isinstance(x, torch.Tensor) else 0)
            return out

    q, k, v = (x.float().requires_grad_() for x in qkv(seeded, t, h=1, g=1))
    with Watch():
        attention(q, k, v, window=window).sum().backward()
    assert largest <= 4 * q.numel() + 4 * max(window, 64) ** 2 < t * t


def test_rotated_scores_depend_on_distance_alone(seeded):
    """eq-rope."""

    q, k = seeded.normal(1, 1, 2, 8), seeded.normal(1, 1, 2, 8)

    def score(i, j):
        return (rotate(q, torch.tensor([i])) * rotate(k, torch.tensor([j]))).sum(-1)

    assert_close(score(3, 1), score(1002, 1000))
    assert_close(score(0, 7), score(131072, 131079))
    assert error(score(3, 1), score(3, 2)) > 1e-3


def test_a_shift_of_all_positions_changes_no_output(seeded):
    q, k, v = qkv(seeded, 40, h=2, g=2)
    there = [
        attention(rotate(q, p), rotate(k, p), v) for p in (torch.arange(40), torch.arange(40) + 9)
    ]
    assert_close(*there)


def test_rotation_turns_each_pair_at_its_own_rate():
    x = torch.zeros(1, 1, 1, 4, dtype=torch.float64)
    x[..., 0] = x[..., 1] = 1
    angle = torch.tensor([3.0, 3.0 / 100**0.5], dtype=torch.float64)  # base 100: rates 1 and 1/10
    turned = rotate(x, torch.tensor([3]), base=100.0).flatten()
    assert_close(turned, torch.cat([angle.cos(), angle.sin()]))
    assert torch.equal(rotate(x, torch.tensor([0])), x)


def test_rotation_keeps_length_and_takes_positions_per_sequence(seeded):
    x, positions = seeded.normal(2, 5, 3, 6), torch.tensor([[0, 1, 2, 3, 4], [7, 8, 9, 10, 11]])
    y = rotate(x, positions)
    assert_close(y.norm(dim=-1), x.norm(dim=-1))
    assert_close(y[1:], rotate(x[1:], torch.arange(7, 12)))


def test_far_positions_keep_their_precision(seeded):
    x, far = seeded.normal(1, 2, 1, 64), torch.tensor([2**20, 2**20 + 1])
    assert_close(rotate(x.float(), far), rotate(x, far))
    assert rotate(x.bfloat16(), far).dtype == torch.bfloat16


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("g", [2, 4])
def test_compiles_without_a_break(window, g, seeded):
    q, k, v = qkv(seeded, 150, g=g)
    compiled = torch.compile(attention, fullgraph=True, backend="eager")
    assert_close(compiled(q, k, v, window=window), attention(q, k, v, window=window))


def test_decoding_compiles_without_a_break(seeded):
    q, k, v = qkv(seeded, 9)
    compiled, cache = torch.compile(attend_cached, fullgraph=True, backend="eager"), None
    for t in range(9):
        y, cache = compiled(q[:, t : t + 1], k[:, t : t + 1], v[:, t : t + 1], cache)
    assert_close(y, attention(q, k, v)[:, 8:])
    assert cache.position == 9


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("window", [None, 4])
def test_any_length_compiles_without_a_break(dynamic, window, seeded):
    torch.compiler.reset()  # of what other tests compiled there may be only so much
    compiled = torch.compile(
        attend_cached, fullgraph=True, backend="eager", dynamic=dynamic or None
    )
    for t in (7, 9, 70):
        q, k, v = qkv(seeded, t, v=6)
        _, cache = compiled(q[:, :5], k[:, :5], v[:, :5], None, window)
        y, _ = compiled(q[:, 5:], k[:, 5:], v[:, 5:], cache, window)
        assert_close(y, attention(q, k, v, window=window)[:, 5:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": (2, 5, 6, 8)}, r"q: expected h a multiple of g=4 \(from k\), got h=6"),
        ({"q": (2, 6, 4, 8)}, r"q: expected at most t=5 queries \(from k\), got 6"),
        ({"q": (2, 4, 8)}, r"q: expected \(b, c, h, k\), got shape \(2, 4, 8\)"),
        ({"k": (2, 5, 4, 7)}, r"k: expected \(b, t, g, k\) with k=8 \(from q\), got shape"),
        ({"v": (2, 4, 4, 8)}, r"v: expected \(b, t, g, v\) with t=5 \(from k\), got shape"),
        ({"k": (2, 0, 4, 8)}, r"k: expected \(b, t, g, k\) with t >= 1, got shape"),
    ],
)
def test_wrong_shapes_are_named(change, message, seeded):
    shapes = dict.fromkeys("qkv", (2, 5, 4, 8)) | change
    with pytest.raises(ValueError, match=message):
        attention(**{name: seeded.normal(*shape) for name, shape in shapes.items()})


@pytest.mark.parametrize("backend", [attention_reference, attention_torch, attention_tiled])
def test_each_implementation_checks_for_itself(backend, seeded):
    q, k, v = qkv(seeded, 5)
    with pytest.raises(ValueError, match=r"q: expected at most t=4 queries \(from k\), got 5"):
        backend(q, k[:, :4], v[:, :4])
    with pytest.raises(ValueError, match=r"window: expected a whole number >= 1, got 0"):
        backend(q, k, v, window=0)
    with pytest.raises(ValueError, match=r"k: expected dtype torch.float64 \(from q\), got"):
        backend(q, k.float(), v)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, 3), "c: expected a whole number >= 1 <= 3, got 5"),
        ((0, 3), "c: expected a whole number >= 1 <= 3, got 0"),
        ((1, 0), "t: expected a whole number >= 1, got 0"),
        ((2, 3, True, 0), "window: expected a whole number >= 1, got 0"),
    ],
)
def test_refusals_of_visible(arguments, message):
    with pytest.raises(ValueError, match=message):
        visible(*arguments)


def test_other_refusals_are_named(seeded):
    q, k, v = qkv(seeded, 5)
    with pytest.raises(
        ValueError, match=r"k: expected dtype torch.float64 \(from q\), got dtype torch.fl"
    ):
        attention(q, k.float(), v)
    with pytest.raises(
        ValueError, match=r"q: expected a floating point tensor, got dtype torch.int64"
    ):
        attention(q.long(), k.long(), v.long())
    for window in (0, -3, 2.5, True):
        with pytest.raises(ValueError, match=r"window: expected a whole number >= 1, got"):
            attention(q, k, v, window=window)
    with pytest.raises(
        ValueError, match=r"backend: expected one of auto, reference, torch, tiled, got"
    ):
        attention(q, k, v, backend="flash")
    with pytest.raises(ValueError, match=r"block: expected a whole number >= 1, got 0"):
        attention_tiled(q, k, v, block=0)


def test_a_wrong_cache_is_named(seeded):
    q, k, v = qkv(seeded, 5)
    with pytest.raises(
        ValueError, match=r"cache.k: expected \(b, t, g, k\) with g=4 \(from k\), got"
    ):
        attend_cached(q, k, v, KVCache(k[:, :, :2], v[:, :, :2], 5))
    with pytest.raises(
        ValueError, match=r"cache.v: expected \(b, t, g, v\) with t=5 \(from cache.k\)"
    ):
        attend_cached(q, k, v, KVCache(k, v[:, :3], 5))
    with pytest.raises(ValueError, match=r"cache.k: expected dtype torch.float64 \(from k\), got"):
        attend_cached(q, k, v, KVCache(k.float(), v.float(), 5))
    with pytest.raises(ValueError, match=r"k: expected \(b, c, g, k\) with c=5 \(from q\), got"):
        attend_cached(q, k[:, :3], v[:, :3])


def test_refusals_of_rotate(seeded):
    x, positions = seeded.normal(1, 4, 2, 6), torch.arange(4)
    with pytest.raises(ValueError, match=r"x: expected \(b, t, h, k\) with k even, got shape"):
        rotate(x[..., :5], positions)
    with pytest.raises(
        ValueError, match=r"positions: expected \(t,\) with t=4 \(from x\), got shape"
    ):
        rotate(x, torch.arange(3))
    with pytest.raises(ValueError, match=r"base: expected a finite number >= 1e-09, got 0"):
        rotate(x, positions, base=0)
    for wrong in ([0, 1, 2, 3], 3, range(4)):
        with pytest.raises(ValueError, match=r"positions: expected a tensor \(t,\), got"):
            rotate(x, wrong)
    with pytest.raises(ValueError, match=r"positions: expected \(b, t\), got shape \(\)"):
        rotate(x, torch.tensor(3))
    with pytest.raises(ValueError, match=r"positions: expected real numbers, got dtype torch.co"):
        rotate(x, positions + 1j)


def test_rates_turn_as_a_base_does_and_leave_the_rest(seeded):
    x, at = seeded.normal(2, 5, 3, 8), torch.tensor([0, 1, 2, 70, 9000])
    assert_close(rotate(x, at, rates=rotary_rates(8, 500.0)), rotate(x, at, 500.0))
    part = rotate(x, at, rates=rotary_rates(6))
    assert_close(part[..., :6], rotate(x[..., :6], at))
    assert torch.equal(part[..., 6:], x[..., 6:])
    with pytest.raises(
        ValueError, match="rates: expected at most 4, one for each pair of x, got 5"
    ):
        rotate(x, at, rates=rotary_rates(10))
    with pytest.raises(ValueError, match="size: expected an even number, got 5"):
        rotary_rates(5)
