"""ssmlib.kernels.ssd, the gradients: interpreted, compiled without a GPU, run on one."""

import pytest
import torch
from agreement import assert_close, assert_same
from torch import Tensor
from uninterpreted import uninterpreted

from ssmlib.kernels.ssd import backward, forward, layout
from ssmlib.kernels.ssd.backward import described, segment_of
from ssmlib.ssd import operator, ssd

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPTIONAL = ("D", "z", "dt_bias", "state")
TOKENS = ("x", "dt", "B", "C", "z")  # what a model holds in 16 bits
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 1.5e-2}


def draw(
    seeded, b, t, h, p, g, n, s=None, without=(), dtype=torch.float32, dt=-2.0, wide_skip=False
) -> dict[str, Tensor]:
    """Inputs by name; dt is drawn before softplus, around this mean."""
    inputs = {
        "x": seeded.normal(b, t, h, p),
        "dt": dt + seeded.normal(b, t, h),
        "A": -seeded.uniform(h, low=0.1, high=4.0),
        "B": seeded.normal(b, t, g, n),
        "C": seeded.normal(b, t, g, n),
        "D": seeded.normal(h, p) if wide_skip else seeded.normal(h),
        "z": seeded.normal(b, t, h, p),
        "dt_bias": 0.1 * seeded.normal(h),
        "state": seeded.normal(s or b, h, p, n),
    }
    return {
        name: v.to(DEVICE, dtype if name in TOKENS else torch.float32)
        for name, v in inputs.items()
        if name not in without
    }


def same_as_the_definition(inputs: dict[str, Tensor], pack=None, softplus=True, tolerance=None):
    """y, the last state and all gradients, in float64 on what the kernel is given."""
    dtype = inputs["x"].dtype
    cu_seqlens = None if pack is None else torch.tensor(pack, device=DEVICE)

    def run(*tensors, backend):
        named = dict(zip(inputs, tensors, strict=True))
        if backend == "reference":
            named = {name: v.double() for name, v in named.items()}
        y, last = ssd(**named, dt_softplus=softplus, cu_seqlens=cu_seqlens, backend=backend)
        return y.to(dtype), last

    assert_same(
        run,
        list(inputs.values()),
        backend="triton",
        reference="reference",
        tolerance=tolerance or TOLERANCE[dtype],
    )


def all_gradients(inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    *tensors, state = inputs.values()
    y, last, saved = forward(*tensors, True, state, None, None, True)
    return backward(y, last, *tensors, True, state, None, None, saved)


@pytest.mark.parametrize("t", [1, 2, 3, 63, 64, 65, 130, 257])
def test_lengths(t, seeded):
    same_as_the_definition(draw(seeded, 2, t, 2, 3, 1, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs(dtype, seeded):
    same_as_the_definition(draw(seeded, 1, 140, 2, 5, 1, 3, dtype=dtype))


@pytest.mark.parametrize("t", [64, 128, 135, 200])
def test_tiles_fetched_by_the_hardware(t, seeded):
    """Of rows that are whole numbers of 16 bytes; no remainder of t needs to be masked."""
    inputs = draw(seeded, 2, t, 2, 8, 2, 12)
    plan = layout.Plan.of(inputs["x"], inputs["B"], inputs["C"], None)
    assert DEVICE == "cuda" or described(plan, inputs["x"], inputs["B"], inputs["C"])
    same_as_the_definition(inputs)


def test_inputs_of_several_dtypes(seeded):
    inputs = draw(seeded, 1, 9, 2, 3, 1, 2)
    inputs |= {"dt": inputs["dt"].bfloat16(), "C": inputs["C"].half(), "D": inputs["D"].half()}
    same_as_the_definition(inputs, tolerance=1e-2)


@pytest.mark.parametrize(
    ("h", "p", "g", "n"),
    [(3, 1, 1, 1), (6, 2, 3, 4), (4, 7, 4, 3), (5, 70, 1, 17), (1, 20, 1, 130), (1, 256, 1, 256)],
)
def test_sizes_and_groups(h, p, g, n, seeded):
    same_as_the_definition(draw(seeded, 1, 20, h, p, g, n))


@pytest.mark.parametrize("without", [*[(name,) for name in OPTIONAL], OPTIONAL])
@pytest.mark.parametrize("softplus", [False, True])
def test_what_may_be_left_out(without, softplus, seeded):
    inputs = draw(seeded, 2, 20, 2, 3, 1, 2, without=without, wide_skip=True)
    if not softplus:
        inputs["dt"] = inputs["dt"].exp()
    same_as_the_definition(inputs, softplus=softplus)


@pytest.mark.parametrize("pack", [[0, 1, 2, 66, 70, 140], [0, 64, 65], [0, 5], [0, 128, 257, 300]])
def test_packed_sequences(pack, seeded):
    same_as_the_definition(draw(seeded, 1, pack[-1], 2, 3, 1, 2, s=len(pack) - 1), pack=pack)


@pytest.mark.parametrize("processors", [1, 64])
def test_heads_shared_out(processors, seeded, monkeypatch):
    """Where there are few chunks, a group's heads are several programs'; their sums are added."""
    monkeypatch.setattr(layout, "processors", lambda device: processors)
    same_as_the_definition(draw(seeded, 1, 70, 5, 3, 1, 2))


def test_segments_side_by_side(seeded, monkeypatch):
    """Where there are few heads, a sequence is cut, and gradients are carried over the cuts."""
    monkeypatch.setattr(layout, "processors", lambda device: 8)
    for t, pack in ((1030, None), (1100, [0, 1, 1000, 1100])):
        inputs = draw(seeded, 1, t, 1, 4, 1, 1, s=3 if pack else None)
        x, B, C = (inputs[name] for name in "xBC")
        cu_seqlens = None if pack is None else torch.tensor(pack)
        tile = layout.tile(x, B, C, None, backward=True)
        assert segment_of(x, cu_seqlens, tile) < t
        same_as_the_definition(inputs, pack=pack, tolerance=3e-5)


@pytest.mark.parametrize("form", ["torch", "triton"])
@pytest.mark.parametrize("pack", [None, [0, 1, 1000, 1100]])
@pytest.mark.parametrize("processors", [1, 8])
def test_a_last_state_that_nobody_used(form, pack, processors, seeded, monkeypatch):
    monkeypatch.setattr(layout, "processors", lambda device: processors)
    *tensors, state = draw(seeded, 1, 1100, 1, 4, 1, 1, s=3 if pack else None).values()
    packed = (state, None if pack is None else torch.tensor(pack, device=state.device), None)
    module = operator.module_of(form)
    y, last, saved = module.forward(*tensors, True, *packed, True)
    unused, zero = (
        module.backward(y, d_last, *tensors, True, *packed, saved)
        for d_last in (None, torch.zeros_like(last))
    )
    assert all(map(torch.equal, unused, zero))


def test_strided_inputs(seeded):
    inputs = draw(seeded, 2, 30, 4, 4, 2, 3)
    inputs["z"], inputs["x"] = torch.cat([inputs["z"], inputs["x"]], dim=2).chunk(2, dim=2)
    inputs["dt"] = inputs["dt"].transpose(1, 2).contiguous().transpose(1, 2)
    inputs["B"] = inputs["B"][..., [2, 1, 0]].flip(-1)
    inputs["C"] = inputs["C"].transpose(0, 1).contiguous().transpose(0, 1)
    same_as_the_definition(inputs)


@pytest.mark.parametrize("mean", [-12.0, 5.0])
def test_tiny_and_large_steps(mean, seeded):
    """dt of 6e-6, where log(1 + e) loses four digits, and dt A of -10 and less."""
    same_as_the_definition(draw(seeded, 1, 70, 2, 3, 1, 2, dt=mean), tolerance=3e-5)


def test_nan_stays_in_its_sequence(seeded):
    inputs, bounds = draw(seeded, 1, 140, 2, 3, 1, 2, s=3), [0, 70, 71, 140]
    inputs["B"][0, 70] = inputs["x"][0, 70] = inputs["dt"][0, 70] = float("nan")
    pack = torch.tensor(bounds, device=DEVICE)
    leaves = {name: v.requires_grad_() for name, v in inputs.items()}
    y, last = ssd(**leaves, dt_softplus=True, cu_seqlens=pack, backend="triton")
    wanted = [leaves[name] for name in (*TOKENS, "state")]
    *by_token, d_state = torch.autograd.grad(y.sum() + last.sum(), wanted)
    for grad in by_token:
        assert not grad[0, [*range(70), *range(71, 140)]].isnan().any()
    assert not d_state[[0, 2]].isnan().any()
    assert d_state[1].isnan().all()


def test_same_bits_twice(seeded):
    inputs = draw(seeded, 2, 70, 3, 3, 1, 2)
    assert all(map(torch.equal, all_gradients(inputs), all_gradients(inputs)))


def test_operator(seeded):
    *tensors, state = draw(seeded, 1, 5, 2, 3, 1, 2).values()
    y, last, saved = forward(*tensors, True, state, None, None, True)
    args = (y, last, *tensors, True, state, None, None, saved, "triton")
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.ssmlib.ssd_backward.default, args, test_utils=checks)


COMPILE = """
import torch
from ssmlib.bench.assembly import compiled
from ssmlib.kernels.ssd import backward, layout

def inputs(dtype, n, p, z):
    new = lambda *s, dtype=dtype: torch.zeros(*s, dtype=dtype)
    x, dt, B, C = new(1, 256, 2, p), new(1, 256, 2), new(1, 256, 1, n), new(1, 256, 1, n)
    A, last = new(2, dtype=torch.float32), new(1, 2, p, n, dtype=torch.float32)
    saved = new(*layout.saved_shape(x, B, None, None))
    gate = x if z else None
    return x, last, x, dt, A, B, C, A, gate, A, True, last, None, None, saved

for dtype, n, p, z in ((torch.bfloat16, 128, 64, True), (torch.float32, 16, 16, False)):
    for kernel in compiled(lambda: backward(*inputs(dtype, n, p, z)), CAPABILITY):
        print(kernel.name, kernel.spills, kernel.shared)
"""


@pytest.mark.parametrize("capability", [80, 90])
def test_compiles_without_a_gpu(capability):
    told = uninterpreted(COMPILE.replace("CAPABILITY", str(capability)))
    made = [line.split() for line in told.splitlines()]
    assert [name for name, *_ in made].count("pairs_kernel") == 2
    assert max(int(shared) for *_, shared in made) <= 227 * 1024  # bytes that an H100 has


@pytest.mark.gpu
class TestOnAGPU:
    @pytest.mark.parametrize("dtype", TOLERANCE)
    @pytest.mark.parametrize("t", [1, 2, 3, 63, 64, 65, 130, 257, 500])
    def test_lengths(self, t, dtype, seeded):
        same_as_the_definition(draw(seeded, 2, t, 4, 64, 1, 128, dtype=dtype))

    @pytest.mark.parametrize("dtype", TOLERANCE)
    @pytest.mark.parametrize(
        ("h", "p", "g", "n"),
        [
            (12, 1, 1, 1), (5, 60, 5, 60), (4, 32, 1, 16), (8, 64, 2, 64),
            (3, 96, 1, 100), (2, 128, 1, 128), (2, 80, 2, 256), (5, 256, 1, 256), (9, 16, 3, 8),
        ],
    )  # fmt: skip
    def test_sizes_and_groups(self, h, p, g, n, dtype, seeded):
        """Of a gradient of one or two numbers, rounding may be all that is left."""
        same_as_the_definition(draw(seeded, 2, 150, h, p, g, n, dtype=dtype))

    @pytest.mark.parametrize("without", [*[(name,) for name in OPTIONAL], OPTIONAL])
    @pytest.mark.parametrize("wide_skip", [False, True])
    def test_what_may_be_left_out(self, without, wide_skip, seeded):
        inputs = draw(
            seeded, 2, 140, 4, 64, 2, 64, without=without, dtype=torch.bfloat16, wide_skip=wide_skip
        )
        same_as_the_definition(inputs)

    @pytest.mark.parametrize("dtype", TOLERANCE)
    @pytest.mark.parametrize(
        "pack", [[0, 1, 64, 65, 66, 300], [0, 15], [0, 1, 100, 300, 700], [0, 128, 256, 500]]
    )
    def test_packed_sequences(self, pack, dtype, seeded):
        inputs = draw(seeded, 1, pack[-1], 4, 64, 1, 128, s=len(pack) - 1, dtype=dtype)
        same_as_the_definition(inputs, pack=pack)

    @pytest.mark.parametrize("mean", [-12.0, -8.0, 5.0])
    def test_tiny_and_large_steps(self, mean, seeded):
        same_as_the_definition(draw(seeded, 2, 200, 4, 64, 1, 64, dt=mean), tolerance=1e-4)

    def test_same_bits_five_times(self, seeded):
        inputs = draw(seeded, 2, 1000, 8, 64, 1, 128, dtype=torch.bfloat16)
        first = all_gradients(inputs)
        for _ in range(4):
            assert all(map(torch.equal, first, all_gradients(inputs)))

    def test_offsets_beyond_32_bits(self):
        """What came long ago is forgotten: the last tokens' gradients are those of a short t."""
        t, h, p, n, tail = 2**20 + 70, 33, 64, 16, 1024 + 70
        size = {"generator": torch.Generator("cuda").manual_seed(0), "device": "cuda"}
        x, dy = (torch.randn(1, t, h, p, dtype=torch.bfloat16, **size) for _ in range(2))
        dt, A = torch.rand(1, t, h, **size), torch.full((h,), -1.0, device="cuda")
        B, C = (torch.randn(1, t, 1, n, dtype=torch.bfloat16, **size) for _ in range(2))
        assert x.numel() > 2**31
        found = []
        for first in (0, t - tail):
            part = [v[:, first:] for v in (x, dt, B, C)]
            leaves = [v.requires_grad_() for v in part]
            y, _ = ssd(leaves[0], leaves[1], A, *leaves[2:], backend="triton")
            grads = torch.autograd.grad(y, leaves, dy[:, first:])
            found.append([grad[:, -tail // 2 :].clone() for grad in grads])
        for whole, short in zip(*found, strict=True):
            assert_close(whole, short, 1e-2)
