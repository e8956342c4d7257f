"""ssmlib.layers.gated and its kernel: interpreted, compiled without a GPU, run on one."""

import pytest
import torch
from agreement import TOLERANCE, assert_close, assert_same
from uninterpreted import uninterpreted

from ssmlib.layers import GatedRMSNorm
from ssmlib.layers.gated import by_kernel, in_torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ORDERS = pytest.mark.parametrize("gate_last", [False, True])


def norm(y, z, weight, groups, gate_last, backend):
    made = GatedRMSNorm(len(weight), groups, 1e-3, gate_last, backend)
    return torch.func.functional_call(made, {"weight": weight}, (y, z))


def inputs(seeded, shape, dtype=torch.float64):
    tensors = seeded.normal(*shape), seeded.normal(*shape), seeded.normal(shape[-1])
    return [v.to(DEVICE, dtype) for v in tensors]


@ORDERS
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((1, 1), 1), ((2, 3, 6), 1), ((2, 3, 6), 3), ((9, 70), 2), ((30, 33), 1), ((5, 4, 2, 8), 4)],
)
def test_agrees_with_the_definition(shape, groups, gate_last, seeded):
    args = (*inputs(seeded, shape), groups, gate_last)
    assert_same(norm, args, backend="triton", reference="torch")


@ORDERS
def test_the_definition_is_its_equation(gate_last, seeded):
    y, z, weight = inputs(seeded, (4, 6))
    gate = z / (1 + torch.exp(-z))
    v = (y if gate_last else y * gate).view(4, 2, 3)
    normed = (v / (v.square().mean(2, keepdim=True) + 1e-3).sqrt()).view(4, 6) * weight
    want = normed * gate if gate_last else normed
    assert_close(in_torch(y, z, weight, 2, 1e-3, gate_last), want)


@ORDERS
def test_rows_of_wider_tensors(gate_last, seeded):
    """As the gate is, a part of a projection; and a tensor whose rows are not contiguous."""
    (wide, other, weight), d = inputs(seeded, (2, 5, 21)), 7
    across = other.mT.contiguous().mT[..., :d]
    args = (wide[..., d : 2 * d], across, weight[:d], 1, gate_last)
    assert not args[0].is_contiguous()
    assert_close(norm(*args, "triton"), norm(*args, "torch"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_dtypes(dtype, seeded):
    y, z, weight = inputs(seeded, (5, 40), dtype)
    got = norm(y, z, weight.float(), 1, False, "triton")
    assert got.dtype == dtype
    want = norm(y.double(), z.double(), weight.double(), 1, False, "torch")
    assert_close(got, want, TOLERANCE[dtype])


def test_is_a_custom_operator(seeded):
    y, z, weight = (v.requires_grad_() for v in inputs(seeded, (3, 8)))
    torch.library.opcheck(by_kernel, (y, z, weight, 2, 1e-5, False))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d": 6, "groups": 4}, "groups: expected a divisor of d=6, got 4"),
        ({"d": 0}, "d: expected a whole number >= 1, got 0"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        GatedRMSNorm(**arguments)


def test_refuses_what_does_not_fit():
    x = torch.ones(2, 6)
    with pytest.raises(ValueError, match=r"z: expected \(\.\.\., 6\), got shape \(2, 5\)"):
        GatedRMSNorm(6)(x, x[:, :5])
    with pytest.raises(ValueError, match="backend: expected one of auto, torch, triton, got 'c'"):
        GatedRMSNorm(6, backend="c")(x, x)


COMPILE = """
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ssmlib.kernels import gated_norm

given = dict.fromkeys("dout_ptr y_ptr z_ptr out_ptr dy_ptr dz_ptr".split(), "*bf16")
given |= {"w_ptr": "*fp32", "dw_ptr": "*fp32", "eps": "fp32"}
given |= dict.fromkeys("dout_row y_row z_row d rows".split(), "i32")
for kernel in (gated_norm.norm_kernel, gated_norm.norm_backward_kernel):
    constants = dict(SIZE=4096, BLOCK=4096, GATE_LAST=False, WIDE=tl.float32)
    signature = given | dict.fromkeys(constants, "constexpr")
    signature = {name: signature[name] for name in kernel.arg_names}
    source = ASTSource(kernel, signature=signature, constexprs=constants)
    target = GPUTarget("cuda", CAPABILITY, 32)
    print(triton.compile(source, target=target, options=dict(num_warps=8)).metadata.shared)
"""


@pytest.mark.parametrize("capability", [80, 90])
def test_compiles_without_a_gpu(capability):
    told = uninterpreted(COMPILE.replace("CAPABILITY", str(capability)))
    assert max(map(int, told.split())) <= 48 * 1024


@pytest.mark.gpu
class TestOnAGPU:
    @ORDERS
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize(("d", "groups"), [(4096, 1), (5120, 8), (33, 1), (8192, 1)])
    def test_agrees_with_the_definition(self, d, groups, dtype, gate_last, seeded):
        y, z, weight = inputs(seeded, (3, 700, d), dtype)
        results = []
        for wide, backend in ((dtype, "triton"), (torch.float64, "torch")):
            leaves = [v.to(wide).requires_grad_() for v in (y, z)] + [weight.to(wide)]
            leaves[2].requires_grad_()
            out = norm(*leaves, groups, gate_last, backend)
            results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
        for got, want in zip(*results, strict=True):
            assert_close(got, want, 2 * TOLERANCE[dtype])

    def test_auto_is_the_kernel_and_the_same_bits_every_time(self, seeded):
        y, z, weight = (v.requires_grad_() for v in inputs(seeded, (999, 512), torch.float32))
        runs = [
            torch.autograd.grad(norm(y, z, weight, 2, False, "auto").square().sum(), [y, z, weight])
            for _ in range(5)
        ]
        assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))

    def test_a_row_too_wide_for_the_kernel_is_still_normed(self, seeded):
        y, z, weight = inputs(seeded, (2, 20000), torch.float32)
        got = norm(y, z, weight, 1, False, "auto")
        assert_close(got, norm(y, z, weight, 1, False, "torch"))
