"""ssmlib.kernels.selective_scan: interpreted on small sizes, compiled without a GPU, run on one."""

from functools import partial

import pytest
import torch
from agreement import assert_close, assert_same
from torch import Tensor
from uninterpreted import uninterpreted

from ssmlib.kernels.selective_scan import backward, forward, layout, step, step_
from ssmlib.selective_scan import operator, selective_scan, selective_scan_step

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "state")
OPTIONAL = ("D", "z", "dt_bias", "state")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 1.5e-2}
NARROW = ("x", "dt", "B", "C", "z")  # what a model holds in 16 bits


def draw(
    seeded, b, t, d, n, g=1, s=None, without=(), dtype=torch.float32, dt=(-3.0, 1.0), device=DEVICE
) -> dict[str, Tensor]:
    """Inputs by name; dt is drawn before softplus, with this mean and spread."""
    inputs = {
        "x": seeded.normal(b, t, d),
        "dt": dt[0] + dt[1] * seeded.normal(b, t, d),
        "A": -seeded.uniform(d, n, low=0.1, high=float(n)),
        "B": seeded.normal(b, t, g, n),
        "C": seeded.normal(b, t, g, n),
        "D": seeded.normal(d),
        "z": seeded.normal(b, t, d),
        "dt_bias": 0.1 * seeded.normal(d),
        "state": seeded.normal(s or b, d, n),
    }
    return {
        name: v.to(device, dtype if name in NARROW else torch.float32)
        for name, v in inputs.items()
        if name not in without
    }


def same_as_the_definition(inputs: dict[str, Tensor], tolerance=None, softplus=True, pack=None):
    """y, the last state and all gradients, the narrow inputs rounded before either runs."""
    dtype = inputs["x"].dtype
    cu_seqlens = None if pack is None else torch.tensor(pack, device=inputs["x"].device)

    def scan(*tensors, backend):
        named = dict(zip(inputs, tensors, strict=True))
        if backend == "reference":  # on what the kernel is given, without its roundings
            named = {name: v.double() for name, v in named.items()}
        y, last = selective_scan(
            **named, dt_softplus=softplus, cu_seqlens=cu_seqlens, backend=backend
        )
        return y.to(dtype), last

    assert_same(
        scan,
        list(inputs.values()),
        backend="triton",
        reference="reference",
        tolerance=tolerance or TOLERANCE[dtype],
    )


@pytest.mark.parametrize("t", [1, 2, 7, 8, 63, 64, 65])
def test_lengths(t, seeded):
    same_as_the_definition(draw(seeded, 1, t, 3, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs(dtype, seeded):
    same_as_the_definition(draw(seeded, 2, 11, 5, 3, dtype=dtype))


def test_inputs_of_several_dtypes(seeded):
    inputs = draw(seeded, 1, 9, 3, 2)
    inputs |= {"dt": inputs["dt"].bfloat16(), "C": inputs["C"].half()}
    same_as_the_definition(inputs, tolerance=1.5e-2)


@pytest.mark.parametrize(
    ("d", "n", "g"), [(1, 1, 1), (6, 5, 3), (37, 2, 1), (66, 3, 2), (2, 33, 1)]
)
def test_sizes_and_groups(d, n, g, seeded):
    same_as_the_definition(draw(seeded, 1, 5, d, n, g))


@pytest.mark.parametrize("without", [*[(name,) for name in OPTIONAL], OPTIONAL])
@pytest.mark.parametrize("softplus", [False, True])
def test_what_may_be_left_out(without, softplus, seeded):
    mean = (-3.0, 1.0) if softplus else (0.2, 0.05)
    inputs = draw(seeded, 1, 4, 3, 2, without=without, dt=mean)
    same_as_the_definition(inputs, softplus=softplus)


@pytest.mark.parametrize("pack", [[0, 1, 9, 10, 11], [0, 7, 8], [0, 5], [0, 63, 65, 66]])
def test_packed_sequences(pack, seeded):
    inputs = draw(seeded, 1, pack[-1], 3, 2, g=1, s=len(pack) - 1)
    same_as_the_definition(inputs, pack=pack)


def test_segments_side_by_side(seeded, monkeypatch):
    monkeypatch.setattr(layout, "processors", lambda device: 2)
    inputs = draw(seeded, 1, 577, 2, 1)
    assert layout.Plan.of(inputs["x"], inputs["A"], inputs["B"], None, layout.FORWARD).segments > 1
    same_as_the_definition(inputs)


def test_narrow_programs(seeded, monkeypatch):
    monkeypatch.setattr(layout, "processors", lambda device: 1 / 4)
    inputs = draw(seeded, 1, 19, 17, 3)
    tile = layout.Plan.of(inputs["x"], inputs["A"], inputs["B"], None, layout.FORWARD).tile
    assert tile == layout.FORWARD[1]
    same_as_the_definition(inputs)


@pytest.mark.parametrize("form", ["torch", "triton"])
@pytest.mark.parametrize("pack", [None, [0, 1, 20]])
def test_a_last_state_that_nobody_used(form, pack, seeded):
    inputs = list(draw(seeded, 1, 20, 3, 2, 1, s=2 if pack else None).values())
    cu_seqlens = None if pack is None else torch.tensor(pack, device=inputs[0].device)
    module = operator.module_of(form)
    y, last, saved = module.forward(*inputs[:8], True, inputs[8], cu_seqlens, True)
    unused, zero = (
        module.backward(y, d_last, *inputs[:8], True, inputs[8], cu_seqlens, saved)
        for d_last in (None, torch.zeros_like(last))
    )
    assert all(map(torch.equal, unused, zero))


def test_strided_inputs(seeded):
    inputs = draw(seeded, 2, 6, 4, 3)
    wide = torch.cat([inputs["z"], inputs["x"]], dim=2)
    inputs["z"], inputs["x"] = wide.chunk(2, dim=2)
    inputs["dt"] = inputs["dt"].transpose(1, 2).contiguous().transpose(1, 2)
    inputs["B"] = inputs["B"][..., [2, 1, 0]].flip(-1)
    same_as_the_definition(inputs)


@pytest.mark.parametrize("mean", [-12.0, 5.0])
def test_tiny_and_large_steps(mean, seeded):
    """dt of 6e-6, where log(1 + e) loses four digits, and dt A of -10 and less."""
    same_as_the_definition(draw(seeded, 1, 5, 3, 2, dt=(mean, 1.0)))


def test_nan_stays_in_its_sequence(seeded):
    inputs, bounds = draw(seeded, 1, 12, 3, 2, s=3), [0, 5, 6, 12]
    inputs["B"][0, 5] = inputs["x"][0, 5] = float("nan")
    pack = torch.tensor(bounds, device=DEVICE)
    leaves = {name: v.requires_grad_() for name, v in inputs.items()}
    y, last = selective_scan(**leaves, dt_softplus=True, cu_seqlens=pack, backend="triton")
    assert y[0, 5].isnan().all()
    assert last[1].isnan().all()
    assert not y[0, [*range(5), *range(6, 12)]].isnan().any()
    assert not last[[0, 2]].isnan().any()
    dx = torch.autograd.grad(y.sum() + last.sum(), leaves["x"])[0]
    assert not dx[0, [*range(5), *range(6, 12)]].isnan().any()


def test_same_bits_twice(seeded):
    inputs = list(draw(seeded, 2, 9, 5, 3).values())
    runs = []
    for _ in range(2):
        y, last, saved = forward(*inputs[:8], True, inputs[8], None, True)
        runs.append((y, last, *backward(y, last, *inputs[:8], True, inputs[8], None, saved)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize(("n", "g", "without"), [(3, 1, ()), (16, 2, ("D", "z", "dt_bias"))])
def test_one_token(n, g, without, seeded):
    inputs = draw(seeded, 2, 1, 6, n, g, without=without)
    token = {k: v[:, 0] if k in ("x", "dt", "B", "C", "z") else v for k, v in inputs.items()}
    wide = {k: v.double() for k, v in token.items()}
    y, state = selective_scan_step(**wide, dt_softplus=True, backend="reference")
    given = [token.get(name) for name in NAMES]
    found, new = step(*given[:8], True, given[8])
    assert_close(found, y, 1e-6)
    assert_close(new, state, 1e-6)
    held = given[8].mT.contiguous().mT  # not side by side: still written in place
    assert_close(step_(*given[:8], True, held), y, 1e-6)
    assert_close(held, state, 1e-6)


COMPILE = """
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ssmlib.kernels.selective_scan.backward import ends_kernel, gather_kernel, gradient_kernel
from ssmlib.kernels.selective_scan.forward import carry_kernel, scan_kernel
from ssmlib.kernels.selective_scan.pack import pack_kernel
from ssmlib.kernels.selective_scan.step import step_kernel

NARROW = ("x_ptr", "dt_ptr", "z_ptr", "y_ptr", "dy_ptr", "dx_ptr", "ddt_ptr", "dz_ptr")
sizes = dict(DT=96, Z=96, D=96, G=1, N=16, N_PAD=16, SOFTPLUS=True)
tile = sizes | dict(X=96, T=8, WIDTH=32, CHUNK=64)
one = dict(D=96, G=1, N=16, N_PAD=16, WIDTH=64, SOFTPLUS=True, EARLY=CAPABILITY >= 90)
absent = dict.fromkeys(("start_ptr", "cu_ptr", "sum_ptr"))
kernels = [
    (scan_kernel, tile | absent),
    (scan_kernel, tile | dict.fromkeys(("y_ptr", "z_ptr", "d_ptr", "saved_ptr"))),
    (scan_kernel, tile | absent | dict(T=16, WIDTH=16)),
    (gradient_kernel, tile | dict(OPERAND=tl.bfloat16, PRECISION="tf32", cu_ptr=None, T=16)),
    (gradient_kernel, tile | dict(OPERAND=tl.float32, PRECISION="tf32x3", T=16)),
    (ends_kernel, sizes | dict(T=8, WIDTH=32)),
    (carry_kernel, dict(D=96, WIDTH=128, REVERSE=True)),
    (gather_kernel, dict(G=1, N=16, N_PAD=16, PACKED=False, SIZE=128, AHEAD=8)),
    (pack_kernel, dict(N=16, N_PAD=16, TOKENS=64)),
    (step_kernel, one),
]
for kernel, constants in kernels:
    signature = {}
    for name in kernel.arg_names:
        pointer = "*i64" if name == "cu_ptr" else "*bf16" if name in NARROW else "*fp32"
        kind = pointer if name.endswith("_ptr") else "i32"
        signature[name] = "constexpr" if name in constants else kind
    source = ASTSource(kernel, signature=signature, constexprs=constants)
    options = {"num_warps": 4 if kernel in (carry_kernel, pack_kernel, step_kernel) else 1}
    done = triton.compile(source, target=GPUTarget("cuda", CAPABILITY, 32), options=options)
    print(done.metadata.shared)
"""


@pytest.mark.parametrize("capability", [80, 90])
def test_compiles_without_a_gpu(capability):
    told = uninterpreted(COMPILE.replace("CAPABILITY", str(capability)))
    shared = [int(line) for line in told.split()]
    assert len(shared) == 10
    assert max(shared) <= 48 * 1024  # bytes that every GPU has


@pytest.mark.gpu
class TestOnAGPU:
    @pytest.mark.parametrize("dtype", TOLERANCE)
    @pytest.mark.parametrize("t", [1, 2, 3, 63, 64, 65, 130, 257, 1000])
    def test_lengths(self, t, dtype, seeded):
        same_as_the_definition(draw(seeded, 2, t, 64, 16, dtype=dtype))

    @pytest.mark.parametrize(
        ("d", "n", "g"),
        [(31, 1, 1), (127, 8, 1), (96, 16, 2), (60, 5, 60), (48, 64, 1), (40, 256, 1)],
    )
    def test_sizes_and_groups(self, d, n, g, seeded):
        same_as_the_definition(draw(seeded, 2, 66, d, n, g))

    @pytest.mark.parametrize("without", [*[(name,) for name in OPTIONAL], OPTIONAL])
    def test_what_may_be_left_out(self, without, seeded):
        same_as_the_definition(draw(seeded, 2, 70, 40, 16, without=without))

    @pytest.mark.parametrize("dtype", TOLERANCE)
    @pytest.mark.parametrize("pack", [[0, 1, 64, 65, 66, 300], [0, 15], [0, 200, 512, 1200]])
    def test_packed_sequences(self, pack, dtype, seeded):
        inputs = draw(seeded, 1, pack[-1], 48, 16, s=len(pack) - 1, dtype=dtype)
        same_as_the_definition(inputs, pack=pack)

    @pytest.mark.parametrize("dtype", TOLERANCE)
    def test_segments_side_by_side(self, dtype, seeded):
        inputs = draw(seeded, 1, 4099, 40, 16, dtype=dtype)
        plan = layout.Plan.of(inputs["x"], inputs["A"], inputs["B"], None, layout.FORWARD)
        assert plan.segments > 1
        same_as_the_definition(inputs, tolerance=max(TOLERANCE[dtype], 3e-5))

    @pytest.mark.parametrize("mean", [-12.0, -8.0, 5.0])
    def test_tiny_and_large_steps(self, mean, seeded):
        same_as_the_definition(draw(seeded, 2, 200, 64, 16, dt=(mean, 1.0)))

    def test_pieces_equal_the_whole(self, seeded):
        inputs = draw(seeded, 2, 300, 64, 16)
        y, last = selective_scan(**inputs, dt_softplus=True)
        state, pieces = inputs.pop("state"), []
        for first, end in ((0, 1), (1, 77), (77, 299), (299, 300)):
            part = {k: v[:, first:end] if v.ndim > 2 else v for k, v in inputs.items()}
            piece, state = selective_scan(**part, state=state, dt_softplus=True)
            pieces.append(piece)
        assert_close(torch.cat(pieces, dim=1), y)
        assert_close(state, last)

    def test_same_bits_twice(self, seeded):
        inputs = list(draw(seeded, 2, 1000, 192, 16, dtype=torch.bfloat16).values())
        runs = []
        for _ in range(3):
            y, last, saved = forward(*inputs[:8], True, inputs[8], None, True)
            runs.append((y, last, *backward(y, last, *inputs[:8], True, inputs[8], None, saved)))
        for other in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))

    def test_memory_above_the_inputs(self, seeded):
        b, t, d = 4, 2048, 1024
        inputs = draw(seeded, b, t, d, 16, without=("state",), dtype=torch.bfloat16)
        leaves = {name: v.requires_grad_() for name, v in inputs.items()}
        run = partial(selective_scan, **leaves, dt_softplus=True)
        dy = torch.randn_like(leaves["x"])
        torch.autograd.grad(run()[0], list(leaves.values()), dy)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.autograd.grad(run()[0], list(leaves.values()), dy)
        peak = torch.cuda.max_memory_allocated() - before
        assert peak <= 6.1 * b * t * d * 2  # y, three gradients, and two x for all the rest

    def test_offsets_beyond_32_bits(self):
        t, d, n, end = 2**19 + 8, 4096, 2, 512
        generator = torch.Generator("cuda").manual_seed(0)
        size = {"generator": generator, "device": "cuda", "dtype": torch.bfloat16}
        x, dt = (torch.randn(1, t, d, **size) for _ in range(2))
        B, C = (torch.randn(1, t, 1, n, **size) for _ in range(2))
        A = torch.full((d, n), -1.0, device="cuda")
        y, last = selective_scan(x, dt, A, B, C, dt_softplus=True)
        assert y.numel() > 2**31
        tail = [v[:, -end:].double() for v in (x, dt, B, C)]  # by then nothing earlier is left
        ref, h = selective_scan(
            *tail[:2], A.double(), *tail[2:], dt_softplus=True, backend="reference"
        )
        assert_close(y[:, -end // 2 :], ref[:, -end // 2 :], 1e-2)
        assert_close(last, h, 1e-4)
