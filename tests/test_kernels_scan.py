"""ssmlib.kernels.scan: interpreted on small sizes, compiled without a GPU, and run on one."""

import pytest
import torch
from agreement import TOLERANCE, assert_close, assert_same
from test_scan import scan_of_pairs
from uninterpreted import uninterpreted

from ssmlib.kernels import scan as kernels
from ssmlib.scan import _scan, scan

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(params=[1, 3], ids=["whole", "segments"])
def segments(request, monkeypatch):
    """Time is walked whole, or in segments of at least three tokens, however many lanes."""
    monkeypatch.setattr(kernels, "SHORTEST", 1 << 30 if request.param == 1 else 3)
    monkeypatch.setattr(kernels, "LANES", 1 << 30)
    monkeypatch.setattr(kernels, "ENOUGH", 1 << 30)


@pytest.mark.usefixtures("segments")
@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize(("b", "t", "d"), [(1, 1, 1), (2, 2, 3), (2, 11, 5), (1, 17, 70)])
def test_agrees_with_the_definition(b, t, d, start, is_complex, seeded):
    f = scan_of_pairs if is_complex else scan
    pair = (2,) if is_complex else ()
    a, x = seeded.normal(b, t, d, *pair) / 2, seeded.normal(b, t, d, *pair)
    state = seeded.normal(b, d, *pair).to(DEVICE) if start else None
    assert_same(f, (a.to(DEVICE), x.to(DEVICE), state), backend="triton", reference="reference")


@pytest.mark.usefixtures("segments")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype, seeded):
    a, x = (v.to(DEVICE, dtype) for v in (seeded.uniform(1, 11, 3), seeded.normal(1, 11, 3)))
    state = seeded.normal(1, 3).to(DEVICE).float()
    tolerance = 2 * TOLERANCE[dtype]
    assert_same(scan, (a, x, state), backend="triton", reference="reference", tolerance=tolerance)
    assert scan(a, x, state, "triton")[1].dtype == torch.float32


def test_strides_and_broadcasts(seeded):
    a = seeded.uniform(7, 1).to(DEVICE)
    for x in (seeded.normal(2, 7, 6)[:, :, ::2], seeded.normal(3, 7, 2).mT.mT.transpose(0, 2)):
        assert_same(scan, (a, x.to(DEVICE), None), backend="triton", reference="reference")


def test_states_that_are_slices_and_gradients_that_are_expanded(seeded):
    a, x = (v.to(DEVICE) for v in (seeded.uniform(3, 7, 2), seeded.normal(3, 7, 2)))
    state = seeded.normal(3, 5).to(DEVICE)[:, 1:3]
    results = []
    for backend in ("triton", "reference"):
        leaves = [v.detach().requires_grad_() for v in (a, x, state)]
        h, last = scan(*leaves, backend)
        (last.sum(0) * a[0, 0] + h.sum((0, 1)) * a[1, 0]).sum().backward()
        results.append([v.grad for v in leaves])
    for got, want in zip(*results, strict=True):
        assert_close(got, want)


def test_is_a_custom_operator(seeded):
    args = [seeded.uniform(1, 3, 2), seeded.normal(1, 3, 2), seeded.normal(1, 2)]
    args = [v.to(DEVICE).requires_grad_() for v in args]
    torch.library.opcheck(_scan, (*args, "triton"))


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ssmlib.kernels import scan

pointers = "a x h dh dlast start last product end da dx dstart".split()
for data, is_complex, stages in (("*bf16", False, 16), ("*fp32", True, 8)):
    given = {name + "_ptr": data for name in pointers}
    given |= {name + "_ptr": "*fp32" for name in ("dlast", "start", "last", "product", "end")}
    sizes = dict.fromkeys("a_b a_t x_b x_t g_b g_t t d segment".split(), "i32")
    plan = dict(COMPLEX=is_complex, BLOCK=64, STAGES=stages, UNROLL=4)
    for kernel, flags in (
        (scan.scan_kernel, dict(HAS_START=True, SPLIT=is_complex)),
        (scan.scan_backward_kernel, dict(HAS_START=True, SPLIT=is_complex)),
        (scan.ends_kernel, dict(REVERSE=is_complex)),
    ):
        constants = plan | flags
        signature = given | sizes | dict.fromkeys(constants, "constexpr")
        signature = {name: signature[name] for name in kernel.arg_names}
        source = ASTSource(kernel, signature=signature, constexprs=constants)
        options = dict(num_warps=1)
        target = GPUTarget("cuda", CAPABILITY, 32)
        print(triton.compile(source, target=target, options=options).metadata.shared)
"""


@pytest.mark.parametrize("capability", [80, 90])
def test_compiles_without_a_gpu(capability):
    told = uninterpreted(COMPILE.replace("CAPABILITY", str(capability)))
    shared = [int(line) for line in told.split()]
    assert len(shared) == 6
    assert max(shared) <= 48 * 1024  # bytes that every GPU has


@pytest.mark.gpu
class TestOnAGPU:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize(
        ("b", "t", "d"),
        [(1, 63, 500), (2, 1024, 500), (2, 1024, 512), (9, 65, 4096), (1, 8000, 512)]
        + [(1, 16323, 64), (1, 33753, 64), (1, 2**16, 64)],
    )
    def test_shapes(self, b, t, d, dtype, seeded):
        a, x = (v.cuda() for v in (seeded.uniform(b, t, d), seeded.normal(b, t, d)))
        a, x = a.sqrt().to(dtype), x.to(dtype)
        state = seeded.normal(b, d).float().cuda()
        tolerance = 2 * TOLERANCE[dtype]
        assert_same(scan, (a, x, state), backend="triton", reference="torch", tolerance=tolerance)

    @pytest.mark.parametrize("t", [1, 2**12, 2**17, 127323])
    def test_complex_close_to_the_unit_circle(self, t, seeded):
        radius, turn = 0.99 + 0.01 * seeded.uniform(1, t, 64), seeded.uniform(1, t, 64)
        a = torch.view_as_real(torch.polar(radius, 6.28 * turn)).float().cuda()
        x = seeded.normal(1, t, 64, 2).float().cuda()
        args = (a, x, None)
        assert_same(scan_of_pairs, args, backend="triton", reference="torch", tolerance=1e-4)

    def test_pieces_equal_the_whole(self, seeded):
        a, x = seeded.uniform(2, 1000, 300).cuda(), seeded.normal(2, 1000, 300).cuda()
        whole, last = scan(a, x)
        state, pieces = None, []
        for part in (slice(0, 1), slice(1, 501), slice(501, 1000)):
            h, state = scan(a[:, part], x[:, part], state)
            pieces.append(h)
        assert_close(torch.cat(pieces, dim=1), whole)
        assert_close(state, last)

    def test_same_bits_twice(self, seeded):
        a, x = seeded.uniform(1, 5000, 300).cuda(), seeded.normal(1, 5000, 300).cuda()
        leaves = [v.bfloat16().requires_grad_() for v in (a, x)]
        runs = [torch.autograd.grad(scan(*leaves)[0].sum(), leaves) for _ in range(2)]
        assert all(torch.equal(u, v) for u, v in zip(*runs, strict=True))

    def test_compiles_whole(self, seeded):
        a, x = seeded.uniform(2, 100, 64).cuda(), seeded.normal(2, 100, 64).cuda()
        compiled = torch.compile(scan, fullgraph=True)
        assert_close(compiled(a, x)[0], scan(a, x, backend="reference")[0])

    def test_offsets_beyond_32_bits(self):
        b, t, d = 3, 2**17, 6144  # 2.4e9 numbers
        a = torch.full((d,), 0.5, device="cuda", dtype=torch.bfloat16)
        x = torch.randn(b, t, d, device="cuda", dtype=torch.bfloat16)
        h, last = scan(a, x)
        want, want_last = scan(a, x[-1:, -64:], backend="torch")
        assert_close(h[-1:, -16:], want[:, -16:])
        assert_close(last[-1:], want_last)
