"""ssmlib.kernels.norm: the RMS norm and its gradients, interpreted, compiled, and on a GPU."""

import pytest
import torch
from agreement import TOLERANCE, assert_close
from uninterpreted import uninterpreted

from ssmlib.kernels import norm
from ssmlib.layers import RMSNorm
from ssmlib.layers.norm import by_kernel

COMPILE = """
import sys, torch
from ssmlib.bench.assembly import compiled
from ssmlib.kernels.norm import backward, forward
x = torch.zeros(4, 1024, dtype=torch.bfloat16)
calls = (lambda: forward(x, x[0], 1e-5, 0.0)), (lambda: backward(x, x, x[0], 1e-5, 0.0))
for made in (kernel for call in calls for kernel in compiled(call, int(sys.argv[1]))):
    print(made.name, made.spills)
"""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CUDA = [torch.profiler.ProfilerActivity.CUDA]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize(("rows", "d"), [(1, 1), (2, 3), (7, 64), (3, 130), (17, 5)])
def test_it_is_the_norm(rows, d, offset, dtype, seeded, monkeypatch):
    monkeypatch.setattr(norm, "PROGRAMS", 4)  # so that some have more than a row
    wanted = RMSNorm(d, 1e-3, offset).double()
    wanted.weight.data = seeded.normal(d)
    x, dy = seeded.normal(rows, d).requires_grad_(), seeded.normal(rows, d)
    want = wanted(x)
    grads = torch.autograd.grad(want, (x, wanted.weight), dy)
    single = [v.detach().to(DEVICE, dtype).requires_grad_() for v in (x, wanted.weight)]
    got = by_kernel(*single, 1e-3, offset)
    assert got.dtype == dtype
    assert_close(got, want, TOLERANCE[dtype])
    for mine, theirs in zip(torch.autograd.grad(got, single, dy.to(got)), grads, strict=True):
        assert_close(mine, theirs, 2 * TOLERANCE[dtype])


def test_rows_may_lie_apart(seeded):
    wide = seeded.normal(4, 20).to(DEVICE, torch.float32)
    weight = seeded.normal(6).to(wide)
    assert torch.equal(
        by_kernel(wide[:, 3:9], weight, 1e-5, 0.0),
        by_kernel(wide[:, 3:9].contiguous(), weight, 1e-5, 0.0),
    )


def test_it_is_an_operator(seeded):
    x, weight = (seeded.normal(*s).to(DEVICE, torch.float32) for s in ((3, 8), (8,)))
    args = (x.requires_grad_(), weight.requires_grad_(), 1e-5, 1.0)
    torch.library.opcheck(torch.ops.ssmlib.rms_norm.default, args)


@pytest.mark.parametrize("capability", [80, 90])
def test_it_compiles_without_a_gpu(capability):
    told = uninterpreted(COMPILE, capability)
    assert told.split() == ["norm_kernel", "0", "norm_backward_kernel", "0"]  # no spills


@pytest.mark.gpu
def test_the_module_takes_it_on_a_gpu(seeded):
    x = seeded.normal(2, 50, 1024).to("cuda", torch.bfloat16)
    layer = RMSNorm(1024).to("cuda", torch.bfloat16)
    with torch.profiler.profile(activities=CUDA, acc_events=True) as profile:
        layer(x)
    ran = {e.key for e in profile.key_averages() if "_kernel" in e.key and "Fill" not in e.key}
    assert ran == {"norm_kernel"}  # besides the fixture that fills what is empty
    again = [layer(x) for _ in range(2)]
    assert torch.equal(*again)
