"""ssmlib.kernels.s4: interpreted on small sizes, compiled without a GPU, and run on one."""

from functools import partial

import pytest
import torch
from agreement import assert_same
from test_s4 import (
    FAST,
    assert_all_close,
    assert_close,
    complex_normal,
    from_pairs,
    grads,
    log_z,
    narrow,
    pair,
    system,
)
from uninterpreted import uninterpreted

from ssmlib.kernels.s4 import decay_scan_triton
from ssmlib.mixers.h3 import H3Config
from ssmlib.mixers.s4 import S4Config, S4DConfig
from ssmlib.s4 import cauchy, kernel_diagonal, kernel_dplr, project, s4d, vandermonde
from ssmlib.s4.chunks import _decay_scan

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("b", "d", "n", "t"), [(1, 2, 3, 1), (2, 1, 17, 65), (1, 1, 5, 300)])
def test_agrees_with_the_torch_form(b, d, n, t, dtype, seeded):
    c, v = (pair(complex_normal(seeded, m, d, n)).to(DEVICE, dtype) for m in (b, 5))
    z, x = pair(log_z(seeded, d, n)).to(DEVICE), seeded.normal(b, d, t).to(DEVICE, dtype)
    tolerance = 1e-10 if dtype == torch.float64 else 3e-6
    same = partial(assert_same, backend="triton", reference="torch", tolerance=tolerance)
    same(from_pairs(vandermonde), (c, z, t))
    same(from_pairs(project), (x[..., None], z))
    same(from_pairs(cauchy), (v, z, t))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("d", "b", "c", "n"), [(1, 1, 1, 1), (2, 3, 5, 3), (1, 1, 3, 70)])
def test_scan_agrees_with_the_torch_form(d, b, c, n, reverse, seeded):
    x, z, start = (seeded.normal(*shape, n, 2) for shape in ((d, b, c), (d,), (d, b)))
    args = [part.to(DEVICE) for part in (x, z / 2, start)]
    assert_all_close(decay_scan_triton(*args, reverse), _decay_scan(*args, reverse))


@pytest.mark.parametrize("kind", ["s4", "s4d"])
def test_carries_a_whole_system(kind, seeded):
    f, args = system(kind, 4, 1)
    leaves = [z.to(DEVICE) for z in (seeded.normal(1, 70, 1), *args)]
    fast = grads(partial(f, backend="triton"), leaves)
    assert_all_close(fast, grads(partial(f, backend="reference"), leaves))


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ssmlib.kernels import s4

data, wide, size = "*fp32", "*fp64", "i32"
powers = dict(decay_ptr=wide, turns_ptr=wide, d=size, n=size, t=size)
nodes = dict(a_ptr=wide, s_ptr=wide, w_ptr=wide, d=size, n=size, f=size)
kernels = [
    (s4.vandermonde_kernel, powers | dict(c_ptr=data, y_ptr=data), dict(ROWS=64, COLS=64, N=16)),
    (s4.project_kernel, powers | dict(x_ptr=data, s_ptr=data), dict(ROWS=32, COLS=64, N=32)),
    (s4.cauchy_kernel, nodes | dict(v_ptr=data, out_ptr=data, c=size), dict(C=4, F=256)),
    (
        s4.cauchy_backward_kernel,
        nodes | dict(grad_ptr=data, by_v_ptr=data, by_pole_ptr=data),
        dict(N=8, F=128),
    ),
]
pointers = ("x_ptr", "z_ptr", "start_ptr", "states_ptr", "last_ptr")
scan = dict.fromkeys(pointers, data) | dict.fromkeys("bcn", size)
kernels.append((s4.decay_scan_kernel, scan, dict(N=32, REVERSE=True)))
for kernel, signature, constants in kernels:
    signature |= dict.fromkeys(constants, "constexpr")
    signature = {name: signature[name] for name in kernel.arg_names}
    source = ASTSource(kernel, signature=signature, constexprs=constants)
    print(triton.compile(source, target=GPUTarget("cuda", CAPABILITY, 32)).metadata.shared)
"""


@pytest.mark.parametrize("capability", [80, 90])
def test_compiles_without_a_gpu(capability):
    told = uninterpreted(COMPILE.replace("CAPABILITY", str(capability)))
    shared = [int(line) for line in told.split()]
    assert len(shared) == 5
    assert max(shared) <= 48 * 1024  # bytes that every GPU has


@pytest.mark.gpu
class TestOnAGPU:
    @pytest.mark.parametrize("t", [1, 63, 1000, 16384])
    @pytest.mark.parametrize("n", [2, 64, 200])
    @pytest.mark.parametrize("kind", ["s4", "s4d"])
    def test_kernels_in_float64(self, kind, n, t):
        _, args = system(kind, n, 64)
        args = [z.cuda() for z in args]
        made = partial(kernel_dplr if kind == "s4" else kernel_diagonal, length=t)
        fast = grads(lambda *a: [made(*a, backend="triton")], args)
        assert_all_close(fast, grads(lambda *a: [made(*a, backend="torch")], args))

    @pytest.mark.parametrize("t", [1, 63, 1000, 16384])
    @pytest.mark.parametrize("kind", ["s4", "s4d"])
    def test_kernels_in_float32(self, kind, t):
        """The gradient by dt sums large terms of either sign over the poles of S4."""
        _, args = system(kind, 64, 64)
        args = [narrow(z).cuda() for z in args]
        wide = [z.to(torch.complex128 if z.is_complex() else torch.float64) for z in args]
        made = partial(kernel_dplr if kind == "s4" else kernel_diagonal, length=t)
        k, *fast = grads(lambda *a: [made(*a, backend="triton")], args)
        want, *exact = grads(lambda *a: [made(*a, backend="torch")], wide)
        assert_close(k, want, 1e-5)
        assert_all_close(fast, exact, 5e-3 if kind == "s4" else 1e-5)

    @pytest.mark.parametrize(("kind", "backend"), [*FAST, ("s4", "triton"), ("s4d", "triton")])
    def test_pieces_equal_the_whole(self, kind, backend, seeded):
        f, args = system(kind, 64, 32)
        f = partial(f, backend=backend)
        x, *args = (z.cuda() for z in (seeded.normal(2, 1000, 32), *args))
        y, last = f(x, *args)
        state, outputs = None, []
        for piece in x.split([1, 500, 498, 1], dim=1):
            out, state = f(piece, *args, state=state)
            outputs.append(out)
        assert_close(torch.cat(outputs, dim=1), y)
        assert_close(state, last)

    def test_same_bits_twice(self, seeded):
        f, args = system("s4", 64, 32)
        leaves = [z.cuda() for z in (seeded.normal(2, 1000, 32), *args)]
        first, second = (grads(f, leaves) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    @pytest.mark.parametrize(
        "config", [S4Config(), S4DConfig(), S4DConfig(backend="fft"), H3Config()]
    )
    def test_a_step_can_be_captured_in_a_graph(self, config, seeded):
        mixer, x = config.build(16).cuda(), seeded.normal(2, 300, 16).float().cuda()

        def step():
            return torch.autograd.grad(mixer(x)[0].square().mean(), list(mixer.parameters()))

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            want = [step() for _ in range(3)][-1]
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        graph.replay()
        assert_all_close(captured, want, 1e-5)

    def test_memory_of_a_long_sequence(self):
        b, d, n, t = 1, 512, 64, 16384
        _, args = system("s4d", n, d)
        args = [z.to("cuda", torch.complex64 if z.is_complex() else torch.float32) for z in args]
        x = torch.randn(b, t, d, device="cuda", requires_grad=True)
        for leaf in args:
            leaf.requires_grad_()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        s4d(x, *args)[0].sum().backward()
        peak = torch.cuda.max_memory_allocated() - before
        assert peak < d * (n // 2) * t * 8 / 2  # half of one complex (d, n/2, t)

    def test_offsets_beyond_32_bits(self):
        b, d, n, t = 3, 1024, 2, 2**20  # 3 * 2^30 results, 12 GiB
        z = torch.complex(torch.full((d, n), -1e-3).double(), torch.ones(d, n).double()).cuda()
        c = torch.randn(b, d, n, dtype=torch.complex64, device="cuda")
        y = vandermonde(c, z, t, "triton")
        assert_close(y[-1, -1:, :4096], vandermonde(c[-1:, -1:], z[-1:], 4096, "torch")[0], 1e-5)
        last = project(y, z, "triton")[-1:, -1:]
        assert_close(last, project(y[-1:, -1:].clone(), z[-1:], "torch"), 1e-5)
