"""ssmlib.convolution: the transform equals the direct sum, in outputs and gradients."""

import pytest
import torch
from agreement import TOLERANCE, assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmlib.convolution import direct_conv, fft_conv

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
