"""ssmlib.kernels.causal_conv1d: interpreted on small sizes, compiled without a GPU, run on one."""

import pytest
import torch
from agreement import TOLERANCE, assert_close, assert_same
from uninterpreted import uninterpreted

from ssmlib.convolution import causal_conv1d, causal_conv1d_step, causal_conv1d_step_
from ssmlib.convolution.operator import conv_by, step_by_

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def inputs(seeded, b, t, d, w, activation, bias=True, sequences=None, dtype=torch.float64):
    """Arguments of `causal_conv1d`; a state of its own for each of `sequences`."""
    x, weight = seeded.normal(b, t, d), seeded.normal(d, w)
    bias = seeded.normal(d) if bias else None
    state = None if sequences is None else seeded.normal(sequences, d, w - 1)
    tensors = (None if v is None else v.to(DEVICE, dtype) for v in (x, weight, bias, state))
    x, weight, bias, state = tensors
    return x, weight, bias, activation, state


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize(
    ("t", "d", "w", "activation", "bias"),
    [
        (1, 3, 2, "silu", True),
        (2, 1, 4, None, False),
        (3, 5, 4, "silu", False),
        (4, 3, 16, "silu", True),
        (19, 3, 3, None, True),
        (140, 2, 2, None, True),
        (40, 70, 4, "silu", True),
    ],
)
def test_agrees_with_the_definition(t, d, w, activation, bias, start, seeded):
    args = inputs(seeded, 2, t, d, w, activation, bias, 2 if start else None)
    assert_same(causal_conv1d, args, backend="triton", reference="reference")


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize(
    ("bounds", "w", "activation"),
    [
        ([0, 15], 4, "silu"),
        ([0, 1, 2, 3], 4, None),
        ([0, 7, 8, 9, 17], 4, "silu"),
        ([0, 2, 5], 7, "silu"),
    ],
)
def test_packed_sequences(bounds, w, activation, start, seeded):
    args = inputs(
        seeded, 1, bounds[-1], 3, w, activation, sequences=len(bounds) - 1 if start else None
    )
    cu = torch.tensor(bounds, device=DEVICE, dtype=torch.int32)
    assert_same(causal_conv1d, (*args, cu), backend="triton", reference="reference")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype, seeded):
    args = inputs(seeded, 2, 11, 3, 4, "silu", sequences=2, dtype=dtype)
    tolerance = 2 * TOLERANCE[dtype]
    assert_same(causal_conv1d, args, backend="triton", reference="reference", tolerance=tolerance)


def test_strides(seeded):
    x, *rest = inputs(seeded, 2, 9, 7, 4, "silu")
    weight, bias, *rest = (v[:3] if isinstance(v, torch.Tensor) else v for v in rest)
    for part in (x[:, :, 2:5], x[:, :, ::3], x.mT.contiguous().mT[:, :, 1:4]):
        args = (part, weight, bias, *rest)
        y, state = causal_conv1d(*args, backend="triton")
        want, want_state = causal_conv1d(*args, backend="reference")
        assert_close(y, want)
        assert_close(state, want_state)


def test_steps_equal_the_whole(seeded):
    x, weight, bias, activation, _ = inputs(seeded, 2, 5, 3, 4, "silu")
    whole, last = causal_conv1d(x, weight, bias, activation, backend="reference")
    for held in (x.new_zeros(2, 3, 3), x.new_zeros(2, 3, 3).mT):
        state = None
        for i in range(5):
            args = (x[:, i], weight, bias, activation)
            y, state = causal_conv1d_step(*args, state, backend="triton")
            assert_close(y, whole[:, i])
            assert_close(causal_conv1d_step_(*args, state=held, backend="triton"), y)
            assert torch.equal(held, state)
        assert_close(state, last)


def test_is_a_custom_operator(seeded):
    x, weight, bias, _, state = inputs(seeded, 1, 3, 2, 2, "silu", sequences=1)
    leaves = [v.requires_grad_() for v in (x, weight, bias)]
    torch.library.opcheck(conv_by, (*leaves, True, state, None, "triton"))
    x, weight, bias = (v.detach() for v in leaves)
    torch.library.opcheck(step_by_, (x[:, 0], weight, bias, True, state, "triton"))


COMPILE = """
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ssmlib.kernels import causal_conv1d as conv

pointers = "dy dlast x state y dx dstate last".split()
given = {name + "_ptr": "*bf16" for name in pointers}
given |= {name + "_ptr": "*fp32" for name in ("w", "bias", "part", "dw", "dbias")}
given |= dict.fromkeys("g_b g_t x_b x_t t d s chunk parts".split(), "i32") | {"cu_ptr": "*i32"}
everything = dict(HAS_BIAS=True, SILU=True, HAS_STATE=True, HAS_DLAST=True, WIDE=tl.float32)
for kernel, W, BLOCK, N, PACKED in (
    (conv.conv_kernel, 4, 128, 8, True),
    (conv.conv_backward_kernel, 4, 128, 4, True),
    (conv.conv_backward_kernel, 16, 32, 2, False),
    (conv.ends_kernel, 4, 128, 0, True),
    (conv.ends_backward_kernel, 4, 128, 0, True),
    (conv.add_kernel, 4, 64, 0, False),
    (conv.step_kernel, 4, 128, 0, False),
):
    constants = everything | dict(W=W, N=N, BLOCK=BLOCK, PACKED=PACKED)
    constants = {name: constants[name] for name in constants if name in kernel.arg_names}
    signature = given | dict.fromkeys(constants, "constexpr")
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
    assert len(shared) == 7
    assert max(shared) <= 48 * 1024  # bytes that every GPU has


@pytest.mark.gpu
class TestOnAGPU:
    @pytest.mark.parametrize("t", [1, 2, 8, 130, 151, 372, 1134, 4096])
    @pytest.mark.parametrize(
        ("d", "w", "dtype"),
        [(64, w, torch.float32) for w in (2, 3, 4, 16)]
        + [(64, 4, torch.float16), (64, 4, torch.bfloat16), (1000, 4, torch.bfloat16)],
    )
    def test_shapes(self, d, w, dtype, t, seeded):
        args = inputs(seeded, 2, t, d, w, "silu", sequences=2, dtype=dtype)
        tolerance = 2 * TOLERANCE[dtype]
        assert_same(causal_conv1d, args, backend="triton", reference="torch", tolerance=tolerance)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize(
        "bounds",
        [[0, 15], [0, 256, 500, 1000], [0, 15, 100, 300, 1200, 2000], [0, 1, 100, 300, 1200, 2048]],
    )
    def test_packed(self, bounds, dtype, seeded):
        s, t = len(bounds) - 1, bounds[-1]
        args = inputs(seeded, 1, t, 200, 4, "silu", sequences=s, dtype=dtype)
        cu, tolerance = torch.tensor(bounds, device="cuda"), 2 * TOLERANCE[dtype]
        args = (*args, cu)
        assert_same(causal_conv1d, args, backend="triton", reference="torch", tolerance=tolerance)

    def test_a_slice_of_a_wider_tensor(self, seeded):
        wide = seeded.normal(2, 151, 4128 + 72).cuda().bfloat16()
        _, weight, bias, activation, _ = inputs(seeded, 1, 1, 4128, 4, "silu")
        for x in (wide[:, :, :4128], wide[:, :, 71:-1]):
            got, want = (
                causal_conv1d(x, weight, bias, activation, backend=b)[0]
                for b in ("triton", "torch")
            )
            assert_close(got, want)

    def test_same_bits_every_time(self, seeded):
        args = inputs(seeded, 2, 2048, 256, 4, "silu", dtype=torch.bfloat16)
        leaves = [v.requires_grad_() for v in args[:3]]

        def run():
            y, last = causal_conv1d(*leaves, "silu")
            return y, *torch.autograd.grad(y.sum() + last.sum(), leaves)

        first = run()
        for _ in range(100):
            assert all(torch.equal(u, v) for u, v in zip(first, run(), strict=True))

    def test_a_step_can_be_captured_in_a_graph(self, seeded):
        x, weight, bias, activation, state = inputs(seeded, 4, 6, 64, 4, "silu", sequences=4)
        want, _ = causal_conv1d(x, weight, bias, activation, state)
        token, first = x[:, 0].clone(), state.clone()
        causal_conv1d_step_(token, weight, bias, activation, state=state)
        state.copy_(first)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = causal_conv1d_step_(token, weight, bias, activation, state=state)
        for i in range(6):
            token.copy_(x[:, i])
            graph.replay()
            assert_close(y, want[:, i])

    def test_compiles_whole(self, seeded):
        args = inputs(seeded, 2, 100, 64, 4, "silu")
        compiled = torch.compile(causal_conv1d, fullgraph=True)
        assert_close(compiled(*args)[0], causal_conv1d(*args, backend="reference")[0])

    def test_offsets_beyond_32_bits(self):
        b, t, d = 3, 2**17, 6144  # 2.4e9 numbers
        x = torch.randn(b, t, d, device="cuda", dtype=torch.bfloat16).requires_grad_()
        weight = torch.randn(d, 4, device="cuda")
        y, _ = causal_conv1d(x, weight, None, "silu")
        tail = x.detach()[-1:, -64:].clone().requires_grad_()
        want, _ = causal_conv1d(tail, weight, None, "silu", backend="torch")
        assert_close(y[-1:, -32:], want[:, -32:])
        (dx,) = torch.autograd.grad(y, x, y.detach())
        (dtail,) = torch.autograd.grad(want, tail, want.detach())
        assert_close(dx[-1:, -16:], dtail[:, -16:])
