"""ssmlib.kernels.s4d: interpreted on small sizes, compiled without a GPU, and run on one."""

from functools import partial

import pytest
import torch
from test_s4 import METHODS, assert_all_close, assert_close, complex_normal, grads, narrow, system
from uninterpreted import uninterpreted

from ssmlib.kernels import s4d as kernels
from ssmlib.s4 import s4d
from ssmlib.s4.walk import _walk

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
fused = partial(s4d, backend="triton")
truth = partial(s4d, backend="reference")


@pytest.fixture
def short_segments(monkeypatch):
    """Segments of 4 tokens or more, for sequences that would make one."""
    monkeypatch.setattr(kernels, "SHORTEST", 4)


def leaves_of(seeded, b, t, d, n, device=DEVICE):
    """x, dt, A, B, C and D."""
    leaves = [seeded.normal(b, t, d), *system("s4d", n, d)[1], seeded.normal(d)]
    return [z.to(device) for z in leaves]


class TestAgreement:
    @pytest.mark.parametrize("t", [2, 3, 63, 64, 65, 130])
    def test_lengths(self, t, seeded):
        leaves = leaves_of(seeded, 2, t, 3, 6)
        assert_all_close(grads(fused, leaves), grads(truth, leaves))

    @pytest.mark.parametrize("t", [16, 17, 65])
    def test_segments(self, t, seeded, short_segments):
        leaves = leaves_of(seeded, 2, t, 3, 6)
        assert kernels.segment_length(2, t, 3, 3) < t
        assert_all_close(grads(fused, leaves), grads(truth, leaves))

    @pytest.mark.parametrize(("d", "n"), [(1, 2), (33, 4), (5, 18), (9, 64), (2, 200)])
    def test_channels_and_states(self, d, n, seeded):
        leaves = leaves_of(seeded, 1, 11, d, n)
        assert_all_close(grads(fused, leaves), grads(truth, leaves))

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("t", [3, 40])
    def test_a_state_goes_in_and_comes_out(self, t, method, seeded, short_segments):
        leaves = [complex_normal(seeded, 2, 3, 3).to(DEVICE), *leaves_of(seeded, 2, t, 3, 6)]

        def run(state, *rest, f):
            return f(*rest, state=state, method=method)

        fast, want = (grads(partial(run, f=f), leaves) for f in (fused, truth))
        assert_all_close(fast, want)

    @pytest.mark.parametrize("which", [0, 1])
    def test_either_result_alone(self, which, seeded, short_segments):
        *leaves, C, D = leaves_of(seeded, 2, 20, 3, 6)
        fast, want = (grads(lambda *a, f=f: [f(*a, C, D)[which]], leaves) for f in (fused, truth))
        assert_all_close(fast, want)

    def test_a_source_of_zero_feeds_nothing(self, seeded):
        """The walk's h is divided by b_bar: no trace of that division may show."""
        x, dt, A, B, C, D = leaves_of(seeded, 2, 20, 3, 6)
        leaves = [x, dt, A, 0 * B, C, D, complex_normal(seeded, 2, 3, 3).to(DEVICE)]
        fast, want = (
            grads(lambda *a, f=f: f(*a[:-1], state=a[-1]), leaves) for f in (fused, truth)
        )
        assert_all_close(fast, want)


class TestContract:
    def test_pieces_equal_the_whole(self, seeded, short_segments):
        x, *args = leaves_of(seeded, 2, 40, 3, 6)
        y, last = fused(x, *args)
        state, outputs = None, []
        for piece in x.split([17, 1, 22], dim=1):
            out, state = fused(piece, *args, state=state)
            outputs.append(out)
        assert_close(torch.cat(outputs, dim=1), y)
        assert_close(state, last)

    def test_causal_and_batch_independent(self, seeded):
        x, *args = leaves_of(seeded, 2, 20, 3, 6)
        changed = x.clone()
        changed[:, 11:] += 1
        changed[1] += 1
        assert torch.equal(fused(changed, *args)[0][0, :11], fused(x, *args)[0][0, :11])

    def test_time_last_in_memory(self, seeded):
        x, *args = leaves_of(seeded, 2, 20, 3, 6)
        assert torch.equal(fused(x.mT.contiguous().mT, *args)[0], fused(x, *args)[0])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, dtype, seeded):
        x, *args = leaves_of(seeded, 2, 20, 3, 6)
        x, args = x.to(dtype), [narrow(z) for z in args]
        y, h = fused(x, *args)
        assert (y.dtype, h.dtype) == (dtype, torch.complex64)
        want, last = fused(x.float(), *args)
        assert_close(y, want, 1e-2)
        assert_close(h, last, 0.0)

    def test_custom_operator(self, seeded):
        x, _, log_a, _, c, D = leaves_of(seeded, 2, 9, 1, 2)
        pairs = [torch.view_as_real(z).contiguous() for z in (log_a, c)]
        leaves = [z.detach().requires_grad_() for z in (x, *pairs, D)]
        for length in (9, 4):
            torch.library.opcheck(_walk, (*leaves, length))
        torch.library.opcheck(_walk, (*leaves[:3], None, 9))

    def test_traces_in_one_graph(self, seeded):
        leaves = leaves_of(seeded, 2, 20, 3, 6)
        compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
        assert_all_close(grads(compiled, leaves), grads(fused, leaves), 1e-12)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ssmlib.kernels import s4d

pairs = dict.fromkeys(("a_ptr", "lost_ptr", "start_ptr", "end_ptr"), "*fp32")
pairs |= dict.fromkeys(("b", "t", "length", "n"), "i32")
walk = pairs | dict(x_ptr="*bf16", y_ptr="*bf16", c_ptr="*fp32", skip_ptr="*fp32")
sums = pairs | dict(x_ptr="*bf16", dy_ptr="*bf16")
sums |= dict.fromkeys(("by_c_ptr", "by_a_ptr", "by_skip_ptr"), "*fp32")
plan = s4d._plan(32)
kernels = [
    (s4d.walk_kernel, walk, plan | dict(d=1024, REVERSE=True, OUTPUT=True, STARTED=True)),
    (s4d.walk_kernel, walk, plan | dict(d=7, REVERSE=False, OUTPUT=False, STARTED=False)),
    (s4d.sums_kernel, sums, plan | dict(d=1024, STARTED=True)),
]
for kernel, signature, constants in kernels:
    signature |= dict.fromkeys(constants, "constexpr")
    signature = {name: signature[name] for name in kernel.arg_names}
    source = ASTSource(kernel, signature=signature, constexprs=constants)
    target = GPUTarget("cuda", CAPABILITY, 32)
    made = triton.compile(source, target=target, options={"num_warps": 1})
    moved = sum(made.asm["ptx"].count(word) for word in ("ld.shared", "st.shared", "bar.sync"))
    print(made.metadata.shared, moved)
"""


@pytest.mark.parametrize("capability", [80, 90])
def test_compiles_without_a_gpu_and_without_shared_memory(capability):
    """All of a program's numbers stay in the registers of the thread that uses them."""
    told = uninterpreted(COMPILE.replace("CAPABILITY", str(capability)))
    assert told.splitlines() == ["0 0"] * 3


@pytest.mark.gpu
class TestOnAGPU:
    @pytest.mark.parametrize(("b", "t", "d", "n"), [(2, 1000, 33, 64), (1, 4096, 5, 200)])
    @pytest.mark.parametrize("start", [False, True])
    def test_float64(self, b, t, d, n, start, seeded):
        state = complex_normal(seeded, b, d, n // 2).cuda()
        leaves = [state, *leaves_of(seeded, b, t, d, n)]

        def run(state, *rest, f):
            return f(*rest, state=state if start else 0 * state)

        fast, want = (
            grads(partial(run, f=f), leaves) for f in (fused, partial(s4d, backend="fft"))
        )
        assert_all_close(fast, want)

    @pytest.mark.parametrize("t", [1000, 16384])
    def test_float32(self, t, seeded):
        """One rounding of a, t times over, would cost more: what it loses is given back."""
        leaves = [narrow(z) for z in leaves_of(seeded, 2, t, 64, 64)]
        wide = [z.to(torch.complex128 if z.is_complex() else torch.float64) for z in leaves]
        assert_all_close(grads(fused, leaves), grads(fused, wide), 1e-5)

    def test_same_bits_twice(self, seeded):
        leaves = [narrow(z) for z in leaves_of(seeded, 2, 5000, 32, 64)]
        first, second = (grads(fused, leaves) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    def test_memory_is_that_of_x(self):
        b, t, d, n = 2, 16384, 256, 64
        args = [narrow(z).cuda() for z in system("s4d", n, d)[1]]
        x = torch.randn(b, t, d, device="cuda", dtype=torch.bfloat16)
        leaves = [z.requires_grad_() for z in (x, *args)]
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        fused(*leaves)[0].sum().backward()
        peak = torch.cuda.max_memory_allocated() - before
        assert peak < 4 * x.numel() * x.element_size()  # y, dy, dx, and less than one more

    def test_offsets_beyond_32_bits(self):
        b, t, d = 2, 2**21 + 5, 1024  # more than 2^31 numbers in either row
        args = [narrow(z).cuda() for z in system("s4d", 2, d)[1]]
        x = torch.zeros(b, t, d, device="cuda", dtype=torch.bfloat16)
        x[-1, -4096:] = torch.randn(4096, d, device="cuda")
        with torch.no_grad():
            y, last = fused(x, *args)
            want, want_last = fused(x[-1:, -4096:].float(), *args)
        assert_close(y[-1:, -4096:], want, 1e-2)
        assert_close(last[-1:], want_last, 1e-5)
