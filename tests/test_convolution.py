"""ssmlib.convolution: each form equals the definition, in outputs and gradients."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from agreement import TOLERANCE, assert_close, assert_same
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmlib.convolution import (
    causal_conv1d,
    causal_conv1d_step,
    causal_conv1d_step_,
    direct_conv,
    fft_conv,
)
from ssmlib.convolution.operator import conv_by, step_by_

LENGTHS = [1, 2, 3, 63, 64, 65, 130, 257]


def by_definition(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    y = torch.zeros_like(x)
    for i, taps in enumerate(kernel.unbind(1)):
        y[:, i:] += taps * x[:, : x.shape[1] - i]
    return y


@pytest.mark.parametrize("convolve", [direct_conv, fft_conv])
@pytest.mark.parametrize("taps", [1, 2, 7, None])
@pytest.mark.parametrize("t", LENGTHS)
def test_equals_the_definition_with_gradients(convolve, taps, t, seeded):
    w = min(t, taps or t)
    leaves = [seeded.normal(2, t, 3).requires_grad_(), seeded.normal(3, w).requires_grad_()]
    y, truth, cotangent = convolve(*leaves), by_definition(*leaves), seeded.normal(2, t, 3)
    assert_close(y, truth)
    for got, want in zip(
        torch.autograd.grad(y, leaves, cotangent),
        torch.autograd.grad(truth, leaves, cotangent),
        strict=True,
    ):
        assert_close(got, want)


@pytest.mark.parametrize("t", LENGTHS)
def test_future_is_the_other_direction(t, seeded):
    x, past, future = seeded.normal(2, t, 3), seeded.normal(3, t), seeded.normal(3, t)
    later = by_definition(x.flip(1), future).flip(1)[:, 1:]
    both = by_definition(x, past)
    both[:, :-1] += later
    assert_close(fft_conv(x, past, future=future), both)


@given(st.integers(1, 40), st.data())
@settings(max_examples=30, deadline=None)
def test_any_number_of_taps(t, data):
    w = data.draw(st.integers(1, t))
    generator = torch.Generator().manual_seed(t * 41 + w)
    x = torch.randn(2, t, 2, generator=generator, dtype=torch.float64)
    kernel = torch.randn(2, w, generator=generator, dtype=torch.float64)
    assert_close(fft_conv(x, kernel), by_definition(x, kernel))


def test_is_linear_not_circular():
    x, kernel = torch.zeros(1, 8, 1), torch.zeros(1, 8)
    x[0, 5], kernel[0, 7] = 1.0, 1.0  # 5 + 7 would come around to 4
    assert fft_conv(x, kernel).abs().max() < 1e-6


def test_the_future_does_not_reach_back(seeded):
    x, kernel = seeded.normal(1, 50, 2), seeded.normal(2, 50)
    changed = x.clone()
    changed[:, 30:] += 1
    assert_close(fft_conv(changed, kernel)[:, :30], fft_conv(x, kernel)[:, :30])


@pytest.mark.parametrize("convolve", [direct_conv, fft_conv])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(convolve, dtype, seeded):
    x, kernel = seeded.normal(2, 130, 3).to(dtype), seeded.normal(3, 130).to(dtype)
    y = convolve(x, kernel)
    assert y.dtype == dtype
    assert_close(y, by_definition(x.double(), kernel.double()), TOLERANCE[dtype])


def test_half_precision_input_with_a_float32_kernel(seeded):
    x, kernel = seeded.normal(2, 64, 3).bfloat16(), seeded.normal(3, 64).float()
    y = fft_conv(x, kernel)
    assert y.dtype == torch.bfloat16
    assert_close(y, by_definition(x.double(), kernel.double()))


def test_strides_do_not_matter(seeded):
    x, kernel = seeded.normal(2, 65, 6), seeded.normal(65, 3)
    want = by_definition(x[:, :, ::2], kernel.T)
    assert_close(fft_conv(x[:, :, ::2], kernel.T), want)
    assert_close(fft_conv(x[:, :, ::2].mT.contiguous().mT, kernel.T), want)


@pytest.mark.parametrize("convolve", [direct_conv, fft_conv])
def test_refusals(convolve, seeded):
    x = seeded.normal(2, 5, 3)
    with pytest.raises(ValueError, match=r"kernel: expected at most t=5 taps \(from x\), got .*6"):
        convolve(x, seeded.normal(3, 6))
    with pytest.raises(ValueError, match=r"kernel: expected \(d, w\) with d=3 \(from x\)"):
        convolve(x, seeded.normal(4, 5))
    with pytest.raises(ValueError, match=r"x: expected \(b, t, d\) with t >= 1"):
        convolve(x[:, :0], seeded.normal(3, 1))
    with pytest.raises(ValueError, match="kernel: expected a floating point tensor"):
        convolve(x, torch.ones(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="x: expected a floating point tensor"):
        convolve(x.to(torch.complex128), seeded.normal(3, 2))


def test_a_future_that_is_too_long_is_named(seeded):
    with pytest.raises(ValueError, match=r"future: expected at most t=5 taps"):
        fft_conv(seeded.normal(2, 5, 3), seeded.normal(3, 5), future=seeded.normal(3, 6))


def taps_of(w, seeded, d=3, bias=True):
    return seeded.normal(d, w), seeded.normal(d) if bias else None


@pytest.mark.parametrize("w", [2, 3, 4, 16])
@pytest.mark.parametrize("t", LENGTHS)
def test_causal_conv1d_is_the_long_convolution_with_its_taps_turned(t, w, seeded):
    x, (weight, bias) = seeded.normal(2, t, 3), taps_of(w, seeded)
    want = by_definition(torch.cat([x.new_zeros(2, w - 1, 3), x], 1), weight.flip(1))[:, w - 1 :]
    for backend in ("reference", "torch"):
        y, state = causal_conv1d(x, weight, bias, backend=backend)
        assert_close(y, want + bias)
        assert_close(state, F.pad(x.mT, (w - 1, 0))[..., t:])
        y, _ = causal_conv1d(x, weight, None, "silu", backend=backend)
        assert_close(y, F.silu(want))


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize(("t", "w"), [(1, 2), (1, 4), (2, 4), (3, 4), (65, 3), (257, 4), (9, 16)])
def test_causal_conv1d_fast_form(t, w, activation, bias, start, seeded):
    state = seeded.normal(2, 3, w - 1) if start else None
    args = (seeded.normal(2, t, 3), *taps_of(w, seeded, bias=bias), activation, state)
    assert_same(causal_conv1d, args, backend="torch", reference="reference")


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize(
    "bounds", [[0, 1], [0, 15], [0, 1, 2, 3], [0, 1, 64, 65, 100], [0, 63, 65, 66, 130, 131]]
)
def test_packed_sequences(bounds, start, seeded):
    w, t, s = 4, bounds[-1], len(bounds) - 1
    x, (weight, bias) = seeded.normal(1, t, 3), taps_of(w, seeded)
    state = seeded.normal(s, 3, w - 1) if start else None
    for dtype in (torch.int32, torch.int64):
        args = (x, weight, bias, "silu", state, torch.tensor(bounds, dtype=dtype))
        assert_same(causal_conv1d, args, backend="torch", reference="reference")
    y, last = causal_conv1d(*args)
    for k, (i, j) in enumerate(itertools.pairwise(bounds)):
        start_k = None if state is None else state[k : k + 1]
        alone, after = causal_conv1d(x[:, i:j], weight, bias, "silu", start_k)
        assert_close(y[:, i:j], alone)
        assert_close(last[k : k + 1], after)


@pytest.mark.parametrize("pieces", [[1] * 9, [2, 1, 6], [8, 1]])
def test_pieces_and_steps_equal_the_whole(pieces, seeded):
    x, (weight, bias) = seeded.normal(2, 9, 3), taps_of(4, seeded)
    whole, last = causal_conv1d(x, weight, bias, "silu")
    state, outputs = None, []
    for piece in x.split(pieces, dim=1):
        y, state = causal_conv1d(piece, weight, bias, "silu", state)
        outputs.append(y)
    assert_close(torch.cat(outputs, 1), whole)
    assert_close(state, last)
    state, held = None, x.new_zeros(2, 3, 3)
    for i in range(9):
        y, state = causal_conv1d_step(x[:, i], weight, bias, "silu", state)
        assert_close(y, whole[:, i])
        assert_close(causal_conv1d_step_(x[:, i], weight, bias, "silu", state=held), y)
        assert torch.equal(held, state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mixed", [False, True])
def test_causal_conv1d_dtypes(dtype, mixed, seeded):
    x, (weight, bias), state = seeded.normal(2, 65, 3), taps_of(4, seeded), seeded.normal(2, 3, 3)
    x, state = x.to(dtype), state.to(dtype)
    weight, bias = (v.float() if mixed else v.to(dtype) for v in (weight, bias))
    y, last = causal_conv1d(x, weight, bias, "silu", state)
    assert (y.dtype, last.dtype) == (dtype, dtype)
    want, _ = causal_conv1d(*(v.double() for v in (x, weight, bias)), "silu", state.double())
    assert_close(y, want, TOLERANCE[dtype])
    args = (x, weight, bias, "silu", state)
    tolerance = 2 * TOLERANCE[dtype]
    assert_same(causal_conv1d, args, backend="torch", reference="reference", tolerance=tolerance)


def test_causal_conv1d_does_not_see_the_future_or_a_neighbour(seeded):
    x, (weight, bias), cu = seeded.normal(1, 50, 3), taps_of(4, seeded), torch.tensor([0, 20, 50])
    x[0, 19] = float("nan")
    leaf = x.clone().requires_grad_()
    y, _ = causal_conv1d(leaf, weight, bias, "silu", cu_seqlens=cu)
    assert y.isnan().nonzero()[:, 1].unique().tolist() == [19]
    (grad,) = torch.autograd.grad(y.sum(), leaf)
    assert grad.isnan().nonzero()[:, 1].unique().tolist() == [16, 17, 18, 19]
    x[0, 19], x[0, 30] = 0, float("nan")
    bad = causal_conv1d(x, weight, bias, cu_seqlens=cu)[0].isnan()
    assert bad[0, 30:34].all()
    assert bad.sum() == 12


def test_causal_conv1d_strides(seeded):
    wide, (weight, bias) = seeded.normal(2, 40, 7), taps_of(4, seeded)
    for x in (wide[:, :, 2:5], wide[:, :, ::3], wide.mT.contiguous().mT[:, :, 1:4]):
        args = (x, weight, bias)
        assert_same(causal_conv1d, args, backend="torch", reference="reference")
        assert_close(causal_conv1d(*args)[0], causal_conv1d(x.contiguous(), weight, bias)[0])


def test_causal_conv1d_gradients_by_differences(seeded):
    args = [seeded.normal(1, 6, 2), *taps_of(3, seeded, d=2), "silu", seeded.normal(2, 2, 2)]
    args = [v.requires_grad_() if isinstance(v, torch.Tensor) else v for v in args]
    assert torch.autograd.gradcheck(causal_conv1d, (*args, torch.tensor([0, 1, 6])))


def test_causal_conv1d_is_a_custom_operator(seeded):
    x, (weight, bias), state = seeded.normal(1, 9, 3), taps_of(4, seeded), seeded.normal(2, 3, 3)
    leaves = [v.requires_grad_() for v in (x, weight, bias, state)]
    cu = torch.tensor([0, 2, 9])
    torch.library.opcheck(conv_by, (*leaves[:3], True, state, cu, "torch"))
    torch.library.opcheck(conv_by, (*leaves[:2], None, False, None, None, "torch"))
    x, weight, bias, state = (v.detach() for v in leaves)
    torch.library.opcheck(step_by_, (x[0, :2], weight, bias, True, state, "torch"))
    compiled = torch.compile(causal_conv1d, fullgraph=True, backend="aot_eager")
    got = compiled(x, weight, bias, "silu", state, cu)[0]
    assert_close(got, causal_conv1d(x, weight, bias, "silu", state, cu)[0])


def test_causal_conv1d_refusals(seeded):
    x, (weight, bias), state = seeded.normal(1, 5, 3), taps_of(4, seeded), seeded.normal(1, 3, 3)

    def refused(message, *args, **kw):
        with pytest.raises(ValueError, match=message):
            causal_conv1d(*args, **kw)

    for w in (1, 17):
        refused(f"weight: expected .* with 2 <= w <= 16, got w={w}", x, seeded.normal(3, w))
    refused(r"weight: expected \(d, w\) with d=3 \(from x\)", x, seeded.normal(4, 4))
    refused("activation: expected None or 'silu', got 'gelu'", x, weight, bias, "gelu")
    refused(r"state: expected \(b, d, k\) with d=3", x, weight, state=state[:, :2])
    refused(
        r"state: expected w - 1 = 3 inputs .*got shape \(1, 3, 2\)", x, weight, state=state[..., 1:]
    )
    refused("state: expected dtype torch.float64 .from x.", x, weight, state=state.float())
    refused("x: expected a floating point tensor", x.long(), weight)
    refused("weight: expected a floating point tensor", x, weight.long())
    refused("backend: expected one of auto, reference, torch", x, weight, backend="cuda")
    for bounds, told in (
        ([0, 3, 3, 5], "boundaries that increase, got 3 and 3 at 1 and 2"),
        ([0, 4, 2, 5], "boundaries that increase, got 4 and 2 at 1 and 2"),
        ([0, 3], "t=5 .from x. last, got 3"),
        ([0, 6], "t=5 .from x. last, got 6"),
        ([1, 5], "0 first, got 1"),
    ):
        cu = torch.tensor(bounds)
        refused(f"cu_seqlens: expected {told}", x, weight, cu_seqlens=cu)
    cu = torch.tensor([0, 2, 5])
    refused("cu_seqlens: expected dtype int32 or int64", x, weight, cu_seqlens=cu.float())
    refused(r"cu_seqlens: expected \(s\+1,\) with s >= 1", x, weight, cu_seqlens=cu[:1])
    refused("x: expected b=1 with cu_seqlens, got b=2", x.expand(2, 5, 3), weight, cu_seqlens=cu)
    refused("state: expected s=2 sequences .*got 1", x, weight, state=state, cu_seqlens=cu)
    with pytest.raises(ValueError, match="state: expected no gradients"):
        causal_conv1d_step_(x[:, 0], weight.requires_grad_(), bias, state=state)
    with pytest.raises(ValueError, match=r"state: expected a tensor \(b, d, w-1\), got NoneType"):
        causal_conv1d_step_(x[:, 0], weight, bias, state=None)


def test_causal_conv1d_on_triton_needs_a_gpu(monkeypatch, seeded):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="backend: 'triton' needs CUDA tensors, got device cpu"):
        causal_conv1d(seeded.normal(1, 5, 3), seeded.normal(3, 4), backend="triton")
