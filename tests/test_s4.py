"""ssmlib.s4: every fast form against its definition, and all forms of one system as one."""

import math
import sys
from functools import partial

import agreement
import pytest
import torch
from agreement import Seeded, assert_same, error

from ssmlib import discretize, hippo
from ssmlib.bench.s4 import allocated_at_most
from ssmlib.convolution import fft_conv
from ssmlib.s4 import (
    INITS,
    cauchy,
    dense,
    discretize_diagonal,
    initial,
    kernel_diagonal,
    kernel_dplr,
    poles,
    project,
    s4,
    s4d,
    timescales,
    vandermonde,
)
from ssmlib.s4.chunks import _decay_scan
from ssmlib.s4.fractions import _cauchy
from ssmlib.s4.powers import _project, _vandermonde

LENGTHS = [1, 2, 3, 63, 64, 65, 130, 257]
METHODS = ["zoh", "bilinear"]
FAST = [("s4", "torch"), ("s4d", "torch"), ("s4d", "fft")]


def pair(z):
    return torch.view_as_real(z.contiguous())


def assert_close(out, ref, tolerance=None, name="out"):
    """agreement's, for complex tensors too."""
    out, ref = (pair(z.resolve_conj()) if z.is_complex() else z for z in (out, ref))
    agreement.assert_close(out, ref, tolerance, name)


def from_pairs(f):
    """f with pairs of real numbers for its first two arguments and its results, for assert_same."""

    def g(first, second, *rest, backend):
        first = torch.view_as_complex(first) if first.shape[-1] == 2 else first[..., 0]
        out = f(first, torch.view_as_complex(second), *rest, backend)
        return pair(out) if out.is_complex() else out

    return g


def log_z(seeded, d, n):
    return torch.complex(-seeded.uniform(d, n, high=0.3), 10 * seeded.normal(d, n))


def complex_normal(seeded, *shape):
    return torch.complex(seeded.normal(*shape), seeded.normal(*shape))


def system(kind, n=16, d=3, init="legs", seed=0):
    """The function, and dt, A, (P,) B, C in float64."""
    generator = torch.Generator().manual_seed(seed)
    s = (initial.dplr if kind == "s4" else initial.diagonal)(init, n, d, generator)
    C = torch.randn(s.A.shape, generator=generator, dtype=s.A.dtype)
    middle = (s.P, s.B) if kind == "s4" else (s.B,)
    return (s4 if kind == "s4" else s4d), [timescales(d, generator=generator), s.A, *middle, C]


def narrow(z):
    return z.to(torch.complex64 if z.is_complex() else torch.float32)


def grads(f, leaves):
    """Outputs and gradients of f at copies of the leaves, with one cotangent for everything."""
    leaves = [z.detach().clone().requires_grad_() for z in leaves]
    out = f(*leaves)
    generator = torch.Generator().manual_seed(1)
    loss = 0
    for o in out:
        parts = pair(o) if o.is_complex() else o
        loss = loss + (parts * torch.randn(parts.shape, generator=generator).to(parts)).sum()
    return [*out, *torch.autograd.grad(loss, leaves)]


def assert_all_close(got, want, tolerance=1e-10):
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        assert_close(g, w, tolerance, f"tensor {i}")


class TestSums:
    @pytest.mark.parametrize("t", LENGTHS)
    @pytest.mark.parametrize(("b", "d", "n"), [(1, 3, 1), (2, 2, 5), (1, 2, 40)])
    def test_powers(self, t, b, d, n, seeded):
        c, z = complex_normal(seeded, b, d, n), log_z(seeded, d, n)
        args = (pair(c), pair(z), t)
        assert_same(from_pairs(vandermonde), args, backend="torch", reference="reference")

    @pytest.mark.parametrize("t", LENGTHS)
    @pytest.mark.parametrize(("b", "d", "n"), [(1, 3, 1), (2, 2, 5), (1, 2, 40)])
    def test_last_state(self, t, b, d, n, seeded):
        x, z = seeded.normal(b, d, t), log_z(seeded, d, n)
        args = (x[..., None], pair(z))
        assert_same(from_pairs(project), args, backend="torch", reference="reference")

    @pytest.mark.parametrize("t", LENGTHS)
    @pytest.mark.parametrize(("c", "d", "n"), [(1, 3, 1), (6, 2, 5), (4, 2, 40)])
    def test_cauchy(self, t, c, d, n, seeded):
        v, a = complex_normal(seeded, c, d, n), log_z(seeded, d, n)
        args = (pair(v), pair(a), t)
        assert_same(from_pairs(cauchy), args, backend="torch", reference="reference")

    def test_slabs_of_channels_do_not_show(self, seeded, monkeypatch):
        c, z = complex_normal(seeded, 2, 7, 5), log_z(seeded, 7, 5)
        x, v = seeded.normal(2, 7, 100), complex_normal(seeded, 3, 7, 5)
        calls = [
            partial(vandermonde, c, z, 100),
            partial(project, x, z),
            partial(cauchy, v, z, 100),
        ]
        whole = [f() for f in calls]
        monkeypatch.setitem(sys.modules["ssmlib.s4.powers"].BUDGET, "cpu", 200)
        for f, want in zip(calls, whole, strict=True):
            assert_close(f(), want, 1e-13)

    def test_one_channel_without_a_batch(self, seeded):
        c, z = complex_normal(seeded, 3, 4), log_z(seeded, 3, 4)
        assert_close(vandermonde(c, z, 9), vandermonde(c[None], z, 9)[0], 0.0)

    def test_second_derivatives_of_the_powers(self, seeded):
        c, z, x = complex_normal(seeded, 1, 2, 3), log_z(seeded, 2, 3), seeded.normal(1, 2, 6)
        for leaf in (c, z, x):
            leaf.requires_grad_()
        torch.autograd.gradgradcheck(lambda c, z: vandermonde(c, z, 6), (c, z))
        torch.autograd.gradgradcheck(lambda x, z: pair(project(x, z)), (x, z))

    @pytest.mark.parametrize("backend", ["torch", "triton"])
    def test_custom_operators(self, backend, seeded):
        c, z = pair(complex_normal(seeded, 2, 1, 3)), pair(log_z(seeded, 1, 3))
        x = seeded.normal(2, 1, 5)
        for leaf in (c, z, x):
            leaf.requires_grad_()
        torch.library.opcheck(_vandermonde, (c, z, 5, backend))
        torch.library.opcheck(_project, (x, z, backend))
        torch.library.opcheck(_cauchy, (c, z, 5, backend))

    @pytest.mark.parametrize("reverse", [False, True])
    def test_custom_operator_of_the_scan(self, reverse, seeded):
        shapes = (1, 2, 4, 3, 2), (1, 3, 2), (1, 2, 3, 2)
        leaves = [seeded.normal(*shape).requires_grad_() for shape in shapes]
        torch.library.opcheck(_decay_scan, (*leaves, reverse))

    def test_refusals(self, seeded):
        c, z, x = complex_normal(seeded, 2, 3), log_z(seeded, 2, 3), seeded.normal(1, 2, 5)
        with pytest.raises(ValueError, match="length: expected a whole number >= 1, got 0"):
            vandermonde(c, z, 0)
        with pytest.raises(ValueError, match="length: expected a whole number >= 1, got 0"):
            cauchy(c[None], z, 0)
        with pytest.raises(ValueError, match=r"log_z: expected torch.complex128, got .*complex64"):
            vandermonde(c, z.to(torch.complex64), 5)
        with pytest.raises(ValueError, match=r"c: expected torch.complex64 or torch.complex128"):
            vandermonde(c.real, z, 5)
        with pytest.raises(ValueError, match=r"x: expected torch.float32 or torch.float64"):
            project(x.bfloat16(), z)
        with pytest.raises(ValueError, match=r"log_z: expected \(d, n\) with d=2 \(from x\)"):
            project(x, z[:1])
        with pytest.raises(ValueError, match="backend: expected one of auto, reference, torch"):
            project(x, z, "cuda")


class TestKernels:
    def test_dplr_reassembles_hippo(self):
        n = 64
        A, P, B = initial.dplr("legs", n)
        V = hippo.dplr(n)[3][:, : n // 2]
        into = torch.cat([2 * V.real, -2 * V.imag], dim=1)  # real coordinates to HiPPO's
        A_real, B_real, _ = dense(A, P, B, torch.zeros_like(B))
        A_want, B_want = hippo.legs(n)
        assert (into @ A_real[0] @ torch.linalg.inv(into) - A_want).abs().max() < 1e-10
        assert (into @ B_real[0] - B_want).abs().max() < 1e-10

    def test_cauchy_kernel_equals_the_powers_of_hippo(self):
        n, t, dt = 64, 1024, 0.01
        A, P, B = initial.dplr("legs", n)
        V, C = hippo.dplr(n)[3], Seeded().normal(1, n)
        half = (C.to(V.dtype) @ V)[:, : n // 2]  # y = C x = 2 Re(C V h)
        got = kernel_dplr(torch.tensor([dt], dtype=torch.float64), A, P, B, half, t)
        want = discretize.kernel(*discretize.bilinear(*hippo.legs(n), dt), C, t)[:, 0, 0]
        assert (got[0] - want).abs().max() < 1e-10
        assert_close(got[0], want)

    @pytest.mark.parametrize("t", [*LENGTHS, 1024])
    @pytest.mark.parametrize("init", ["legs", "lin", "random"])
    def test_dplr(self, init, t):
        _, args = system("s4", 64 if t == 1024 else 8, init=init)
        assert_close(kernel_dplr(*args, t), kernel_dplr(*args, t, backend="reference"))

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("init", INITS)
    def test_diagonal(self, init, method):
        _, args = system("s4d", 64, init=init)
        fast = kernel_diagonal(*args, 1024, method=method)
        dt, A, B, C = args
        A_dense, B_dense, C_dense = dense(A, torch.zeros_like(A), B, C)
        discretise = discretize.METHODS[method]
        for k, a, b, c, step in zip(fast, A_dense, B_dense, C_dense, dt, strict=True):
            assert_close(k, discretize.kernel(*discretise(a, b, step), c, 1024)[:, 0, 0])

    def test_dplr_without_low_rank_is_the_bilinear_diagonal(self):
        _, (dt, A, B, C) = system("s4d")
        want = kernel_diagonal(dt, A, B, C, 100, method="bilinear")
        assert_close(kernel_dplr(dt, A, torch.zeros_like(A), B, C, 100), want)

    def test_a_pole_that_bilinear_sends_to_zero(self):
        dt, A = torch.ones(1).double(), torch.full((1, 1), -2.0, dtype=torch.complex128)
        one = torch.ones_like(A).requires_grad_()
        k = kernel_diagonal(dt, A.requires_grad_(), one, one, 4, method="bilinear")
        assert_close(k, torch.tensor([[1.0, 0, 0, 0]]).double(), 1e-12)
        assert all(g.isfinite().all() for g in torch.autograd.grad(k.sum(), (A, one)))

    def test_diagonal_legs_approaches_legs_on_average(self):
        """Responses e^(tA) B, smoothed over a tenth of a unit of time; unsmoothed they do not."""
        t = torch.linspace(0.05, 3, 300).double()
        window = torch.softmax(-50 * (t[:, None] - t).square(), dim=0)
        smooth, rough = [], []
        for n in (8, 32, 128):
            (A, _, B), V = initial.diagonal("legs", n), hippo.dplr(n)[3][:4, : n // 2]
            got = 2 * ((V * B) @ torch.exp(A[0, :, None] * t)).real
            A, B = (z[:4] for z in hippo.legs(4))  # a triangular A: four states need no others
            want = torch.cat([torch.linalg.matrix_exp(A * step) @ B for step in t], dim=1)
            smooth.append(error(got @ window, want @ window))
            rough.append(error(got, want))
        assert smooth[0] > 3 * smooth[1] > 9 * smooth[2]
        assert min(rough) > 1

    @pytest.mark.parametrize("t", [2, 64, 1024, 16384])
    @pytest.mark.parametrize("kind", ["s4", "s4d"])
    @pytest.mark.parametrize("init", ["legs", "lin"])
    def test_float32_holds_at_every_length(self, kind, init, t):
        _, args = system(kind, 64, init=init)
        args = [narrow(z) for z in args]
        kernel = kernel_dplr if kind == "s4" else kernel_diagonal
        got = kernel(*args, t)
        assert got.dtype == torch.float32
        wide = [z.to(torch.complex128 if z.is_complex() else torch.float64) for z in args]
        assert_close(got, kernel(*wide, t), 1e-5 if kind == "s4" else 1e-6)

    def test_float32_phases_would_not(self):
        """What is avoided: with little decay, a float32 phase of t radians is off by t 2^-24."""
        step, t = torch.tensor([[1.2345678]]).double(), 16384
        z = torch.complex(torch.full_like(step, -1e-6), step.float().double())
        want = vandermonde(torch.ones_like(z), z, t, "reference")
        naive = torch.exp(z.to(torch.complex64)[..., None] * torch.arange(t)).real[:, 0]
        one = torch.ones_like(z).to(torch.complex64)
        assert error(naive[:, -1000:], want[:, -1000:]) > 2e-4
        assert error(vandermonde(one, z, t)[:, -1000:], want[:, -1000:]) < 1e-6


class TestSystems:
    @pytest.mark.parametrize("t", LENGTHS)
    @pytest.mark.parametrize("start", [False, True])
    @pytest.mark.parametrize(("kind", "backend"), FAST)
    def test_convolution_equals_recurrence(self, kind, backend, start, t, seeded):
        f, args = system(kind, 6)
        leaves = [seeded.normal(2, t, 3), *args, seeded.normal(3)]
        if start:
            leaves.append(complex_normal(seeded, 2, 3, 3))

        def run(*leaves, backend):
            *most, last = leaves
            return f(*most, state=last, backend=backend) if start else f(*leaves, backend=backend)

        fast = grads(partial(run, backend=backend), leaves)
        assert_all_close(fast, grads(partial(run, backend="reference"), leaves))

    @pytest.mark.parametrize("backend", ["torch", "fft"])
    @pytest.mark.parametrize("method", METHODS)
    def test_convolution_equals_scan(self, method, backend, seeded):
        _, args = system("s4d", 6)

        def scan(x, dt, A, B, C):
            log_a, b_bar = discretize_diagonal(dt, A, B, method)
            a, h = torch.exp(log_a).expand(*x.shape, -1), b_bar * x[..., None]  # (b t d n)
            stride = 1
            while stride < x.shape[1]:
                late = h[:, stride:] + a[:, stride:] * h[:, :-stride]
                h = torch.cat([h[:, :stride], late], dim=1)
                a = torch.cat([a[:, :stride], a[:, stride:] * a[:, :-stride]], dim=1)
                stride *= 2
            return 2 * (C * h).sum(-1).real, h[:, -1]

        leaves = [seeded.normal(2, 65, 3), *args]
        fast = partial(s4d, method=method, backend=backend)
        assert_all_close(grads(fast, leaves), grads(scan, leaves))

    def test_dplr_equals_its_dense_system(self, seeded):
        x = seeded.normal(2, 50, 3)
        f, args = system("s4", 6)
        dt, A, P, B, C = args
        y, h = f(x, *args)
        for i, (a, b, c) in enumerate(zip(*dense(A, P, B, C), strict=True)):
            step = discretize.bilinear(a, b, dt[i])
            want, last = discretize.recurrence(*step, c, None, x[..., i : i + 1])
            assert_close(y[..., i : i + 1], want)
            assert_close(torch.cat([h[:, i].real, h[:, i].imag], dim=1), last)

    def test_large_states_take_larger_chunks(self, seeded):
        f, args = system("s4d", 300)
        leaves = [seeded.normal(2, 600, 3), *args]
        fast = grads(partial(f, backend="torch"), leaves)
        assert_all_close(fast, grads(partial(f, backend="fft"), leaves))

    @pytest.mark.parametrize("pieces", [[1] * 70, [69, 1], [1, 69], [3, 64, 1, 2], [35, 35]])
    @pytest.mark.parametrize(("kind", "backend"), FAST)
    def test_pieces_equal_the_whole(self, kind, backend, pieces, seeded):
        f, args = system(kind, 6)
        f = partial(f, backend=backend)
        x, start = seeded.normal(2, 70, 3), complex_normal(seeded, 2, 3, 3)

        def run(x, start, *args):
            state, outputs = start, []
            for piece in x.split(pieces, dim=1):
                y, state = f(piece, *args, state=state)
                outputs.append(y)
            return torch.cat(outputs, dim=1), state

        def whole(x, start, *args):
            return f(x, *args, state=start)

        leaves = [x, start, *args]
        assert_all_close(grads(run, leaves), grads(whole, leaves))

    @pytest.mark.parametrize("kind", ["s4", "s4d"])
    def test_output_is_the_kernels_convolution(self, kind, seeded):
        f, args = system(kind)
        x, D = seeded.normal(2, 65, 3), seeded.normal(3)
        kernel = (kernel_dplr if kind == "s4" else kernel_diagonal)(*args, 65)
        assert_close(f(x, *args, D)[0], fft_conv(x, kernel) + D * x)

    @pytest.mark.parametrize(("kind", "backend"), FAST)
    def test_half_precision_and_autocast(self, kind, backend, seeded):
        f, args = system(kind)
        f = partial(f, backend=backend)
        args = [narrow(z) for z in args]
        x = seeded.normal(2, 65, 3).bfloat16()
        y, h = f(x, *args)
        assert (y.dtype, h.dtype) == (torch.bfloat16, torch.complex64)
        want, last = f(x.float(), *args)
        assert_close(y, want, 1e-2)
        assert_close(h, last, 0.0)
        with torch.autocast("cpu", torch.bfloat16):
            assert_close(f(x.float(), *args)[0], want, 0.0)

    @pytest.mark.parametrize("kind", ["s4", "s4d"])
    def test_causal_and_batch_independent(self, kind, seeded):
        f, args = system(kind)
        x = seeded.normal(2, 65, 3)
        changed = x.clone()
        changed[:, 40:] += 1
        changed[1] += 1
        assert_close(f(changed, *args)[0][0, :40], f(x, *args)[0][0, :40])

    @pytest.mark.parametrize("kind", ["s4", "s4d"])
    def test_same_bits_twice(self, kind, seeded):
        f, args = system(kind)
        leaves = [seeded.normal(2, 130, 3), *args]
        first, second = (grads(f, leaves) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    @pytest.mark.parametrize(("kind", "backend"), FAST)
    def test_traces_in_one_graph(self, kind, backend, seeded):
        f, args = system(kind)
        f = partial(f, backend=backend)
        leaves = [seeded.normal(2, 33, 3), *args]
        compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
        assert_all_close(grads(compiled, leaves), grads(f, leaves), 1e-12)

    @pytest.mark.parametrize(("kind", "backend"), FAST)
    def test_no_state_per_token_is_held(self, kind, backend):
        b, d, n, t = 2, 32, 64, 8192
        f, args = system(kind, n, d)
        leaves = [narrow(z).requires_grad_() for z in (torch.ones(b, t, d), *args)]
        peak = allocated_at_most(lambda: f(*leaves, backend=backend)[0].sum().backward())
        assert peak < b * d * (n // 2) * t * 8 / 2  # half of one such tensor

    @pytest.mark.parametrize("kind", ["s4", "s4d"])
    def test_kernels_need_no_matrix(self, kind):
        d, n, t = 64, 64, 8192
        _, args = system(kind, n, d)
        args = [narrow(z) for z in args]
        kernel = kernel_dplr if kind == "s4" else kernel_diagonal
        matrix = d * (n // 2) * t * 8
        assert allocated_at_most(lambda: kernel(*args, t)) < matrix / (2 if kind == "s4" else 16)

    @pytest.mark.parametrize("kind", ["s4", "s4d"])
    def test_refusals(self, kind, seeded):
        f, args = system(kind, 6)
        x = seeded.normal(2, 5, 3)

        def changed(i, value):
            return [*args[:i], value, *args[i + 1 :]]

        with pytest.raises(ValueError, match=r"state: expected \(b, d, n\) with .*n=3 \(from A\)"):
            f(x, *args, state=torch.zeros(2, 3, 4, dtype=torch.complex128))
        with pytest.raises(ValueError, match=r"x: expected \(b, t, d\) with t >= 1"):
            f(x[:, :0], *args)
        with pytest.raises(ValueError, match="A: expected negative real parts, got 0"):
            f(x, *changed(1, args[1] - args[1].real))
        with pytest.raises(ValueError, match="A: expected complex values"):
            f(x, *changed(1, args[1].real))
        with pytest.raises(ValueError, match="dt: expected steps > 0, got -0"):
            f(x, *changed(0, torch.full_like(args[0], -0.1)))
        with pytest.raises(ValueError, match="backend: expected one of auto, reference"):
            f(x, *args, backend="cuda")

    def test_an_unknown_method(self, seeded):
        f, args = system("s4d")
        with pytest.raises(ValueError, match="method: expected one of zoh, bilinear, got 'euler'"):
            f(seeded.normal(2, 5, 3), *args, method="euler")


class TestInitialisations:
    def test_legs_are_the_normal_part_of_hippo(self):
        A, _ = hippo.legs(64)
        p = torch.sqrt(torch.arange(64).double() + 0.5)
        eigenvalues = torch.linalg.eigvals(A + p[:, None] * p)
        above = eigenvalues[eigenvalues.imag > 0]
        got = poles("legs", 64)[0]
        assert_close(got.imag.sort().values, above.imag.sort().values)
        assert (got.real + 0.5).abs().max() < 1e-12

    def test_closed_forms(self):
        assert_close(poles("lin", 6)[0].imag, math.pi * torch.arange(3.0).double(), 1e-15)
        assert_close(poles("real", 6)[0], torch.tensor([-1, -2, -3], dtype=torch.complex128), 1e-15)
        inv = 6 / math.pi * (6 / torch.tensor([1.0, 3.0, 5.0]).double() - 1)
        assert_close(poles("inv", 6)[0].imag, inv, 1e-15)

    def test_inv_is_close_to_legs(self):
        legs, inv = (poles(name, 256)[0].imag.sort().values for name in ("legs", "inv"))
        ratio = legs / inv
        assert abs(ratio[-1] - 1) < 0.005
        assert (ratio[-32:] - 1).abs().max() < 0.25

    @pytest.mark.parametrize("init", INITS)
    def test_shapes_and_real_parts(self, init):
        for s in (initial.diagonal(init, 10, 3), initial.dplr(init, 10, 3)):
            assert all(z.shape == (3, 5) and z.dtype == torch.complex128 for z in s)
            assert s.A.real.max() < 0

    def test_random_follows_its_generator(self):
        draws = [poles("random", 8, 2, torch.Generator().manual_seed(i)) for i in (0, 0, 1)]
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])
        assert not torch.equal(draws[0][0], draws[0][1])

    def test_timescales_are_log_uniform(self):
        dt = timescales(100_000, 1e-3, 0.1, torch.Generator().manual_seed(0))
        assert dt.min() >= 1e-3
        assert dt.max() <= 0.1
        quarters = torch.histc(dt.log10(), 4, -3, -1) / len(dt)
        assert (quarters - 0.25).abs().max() < 0.01

    def test_refusals(self):
        with pytest.raises(ValueError, match="n: expected an even number"):
            poles("legs", 5)
        with pytest.raises(ValueError, match="n: expected a whole number >= 2, got 0"):
            poles("lin", 0)
        with pytest.raises(ValueError, match="init: expected one of legs, lin, inv, real, random"):
            poles("hippo", 4)
        with pytest.raises(ValueError, match=r"dt_max: expected a finite number >= 0.1, got 0.01"):
            timescales(3, 0.1, 0.01)
        with pytest.raises(ValueError, match="dt_min"):
            timescales(3, 0.0, 0.1)
