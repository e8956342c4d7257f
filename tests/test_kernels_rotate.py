"""ssmlib.kernels.rotate against `rotate`: interpreted, compiled, and on a GPU."""

import pytest
import torch
from agreement import TOLERANCE, assert_close
from uninterpreted import uninterpreted

from ssmlib.attention import rotary_rates, rotate
from ssmlib.attention.operators import rotate_by_kernel

COMPILE = """
import sys, torch
from ssmlib.bench.assembly import compiled
from ssmlib.kernels.rotate import rotate
x, at = torch.zeros(2, 9, 16, 64, dtype=torch.bfloat16), torch.arange(9)
for made in compiled(lambda: rotate(x, at, torch.zeros(16).double(), False), int(sys.argv[1])):
    print(made.name)
"""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CUDA = [torch.profiler.ProfilerActivity.CUDA]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [False, True], ids=["t", "b t"])
@pytest.mark.parametrize(
    ("t", "h", "k", "n"), [(1, 1, 2, 1), (5, 3, 8, 4), (9, 4, 10, 2), (3, 2, 6, 3)]
)
def test_it_is_the_rotation(t, h, k, n, rows, dtype, seeded):
    x, dy = seeded.normal(2, t, h, k), seeded.normal(2, t, h, k)
    at = seeded.integers(0, 10**6, 2, t) if rows else torch.arange(t) + 99_999
    rates = rotary_rates(2 * n)
    x.requires_grad_()
    want = rotate(x, at, rates=rates)
    (grad,) = torch.autograd.grad(want, x, dy)
    narrow = x.detach().to(DEVICE, dtype).requires_grad_()
    got = rotate_by_kernel(narrow, at.to(DEVICE), rates.to(DEVICE), False)
    assert got.dtype == dtype
    assert_close(got, want, TOLERANCE[dtype])
    (back,) = torch.autograd.grad(got, narrow, dy.to(got))
    assert_close(back, grad, TOLERANCE[dtype])


def test_strides_and_fractions(seeded):
    wide, at = seeded.normal(2, 3, 5, 16).float().to(DEVICE), torch.tensor([0.5, 2.0, 7.25])
    x, rates = wide.transpose(1, 2)[..., 4:12], rotary_rates(8)  # (2 5 3 8)
    x, at = x.transpose(1, 2), at.to(DEVICE)
    want = rotate(x.double(), at, rates=rates.to(DEVICE))
    assert_close(rotate_by_kernel(x, at, rates.to(DEVICE), False), want, 1e-5)


def test_it_is_an_operator(seeded):
    x = seeded.normal(1, 3, 2, 8).float().to(DEVICE).requires_grad_()
    args = (x, torch.arange(3, device=DEVICE), rotary_rates(4, device=DEVICE), False)
    torch.library.opcheck(rotate_by_kernel, args)


@pytest.mark.parametrize("capability", [80, 90])
def test_it_compiles_without_a_gpu(capability):
    told = uninterpreted(COMPILE, capability)
    assert told.split() == ["rotate_kernel"]


@pytest.mark.gpu
def test_rotate_takes_it_on_a_gpu(seeded):
    x = seeded.normal(2, 300, 4, 64).to("cuda", torch.bfloat16)
    with torch.profiler.profile(activities=CUDA, acc_events=True) as profile:
        y = rotate(x, torch.arange(300, device="cuda"), rates=rotary_rates(64, device="cuda"))
    assert "rotate_kernel" in {e.key for e in profile.key_averages()}
    assert_close(y, rotate(x.double(), torch.arange(300, device="cuda")), 1e-2)
