"""ssmlib.kernels.ssd, forward and one token: interpreted, compiled without a GPU, run on one."""

import itertools

import pytest
import torch
from agreement import assert_close
from torch import Tensor
from uninterpreted import uninterpreted

from ssmlib.kernels.ssd import forward, layout, step, step_
from ssmlib.kernels.ssd.layout import KEEP
from ssmlib.ssd import operator, ssd, ssd_recurrent, ssd_step, ssd_step_

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "state")
OPTIONAL = ("D", "z", "dt_bias", "state")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
TOKENS = ("x", "dt", "B", "C", "z")
PACKS = ([0, 1, 2, 66, 70, 140], [0, 64, 65, 129], [0, 5], [0, 127, 128, 257, 300])


def draw(
    seeded, b, t, h, p, g, n, s=None, without=(), dtype=torch.float32, dt=-2.0, wide_skip=False
) -> dict[str, Tensor | None]:
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
        name: None if name in without else v.to(DEVICE, dtype if name in TOKENS else torch.float32)
        for name, v in inputs.items()
    }


def same_as_the_definition(inputs, pack=None, softplus=True, tolerance=None, chunk_size=None):
    """y, the last state and the states kept, in float64 on what the kernel is given."""
    cu_seqlens = None if pack is None else torch.tensor(pack, device=DEVICE)
    wide = {k: None if v is None else v.double() for k, v in inputs.items()}
    y, last = ssd_recurrent(**wide, dt_softplus=softplus, cu_seqlens=cu_seqlens)
    *tensors, state = inputs.values()
    args = (*tensors, softplus, state, cu_seqlens, chunk_size)
    found = forward(*args, needs_grad=True)
    tolerance = tolerance or TOLERANCE[inputs["x"].dtype]
    assert_close(found[0], y, tolerance, "y")
    assert_close(found[1], last, tolerance, "last")
    for slot, h in kept_states(wide, pack, softplus):
        assert_close(found[2][slot].mT, h, tolerance, f"kept state {slot}")
    plain = forward(*args, needs_grad=False)
    assert torch.equal(plain[0], found[0])
    assert torch.equal(plain[1], found[1])
    assert plain[2].numel() == 0


def kept_states(wide: dict[str, Tensor | None], pack: list | None, softplus: bool):
    """The slot of each state that is to be kept, and the state (h p n)."""
    b, t = wide["x"].shape[:2]
    ends = [(0, t)] * b if pack is None else list(itertools.pairwise(pack))
    for i, (first, end) in enumerate(ends):
        row = i if pack is None else 0
        state = torch.zeros_like(wide["x"][:1, 0, :, :, None] * wide["B"][:1, 0, :1, None])
        state = state if wide["state"] is None else wide["state"][i : i + 1]
        for k, start in enumerate(range(first, end, KEEP)):
            yield (i * -(-t // KEEP) if pack is None else first // KEEP + i) + k, state[0]
            piece = slice(start, min(start + KEEP, end))
            part = {k: wide[k][row : row + 1, piece] for k in TOKENS if wide[k] is not None}
            _, state = ssd_recurrent(**wide | part | {"state": state}, dt_softplus=softplus)


@pytest.mark.parametrize("t", [1, 2, 3, 63, 64, 65, 130, 257])
def test_lengths(t, seeded):
    same_as_the_definition(draw(seeded, 2, t, 2, 3, 1, 2))


def described(inputs: dict[str, Tensor | None]) -> bool:
    """Whether tiles of these inputs are fetched by description."""
    plan = layout.Plan.of(*(inputs[k] for k in "xBC"), None)
    return all(plan.describable(inputs[k]) for k in ("x", "B", "C", "z"))


@pytest.mark.parametrize("t", [1, 65, 130])
@pytest.mark.parametrize(
    ("h", "p", "g", "n", "wide_skip"), [(2, 8, 1, 4, False), (2, 40, 2, 20, True)]
)
def test_tiles_by_description(t, h, p, g, n, wide_skip, seeded):
    inputs = draw(seeded, 1, t, h, p, g, n, wide_skip=wide_skip)
    both = torch.cat([inputs["x"], inputs["z"]], dim=2)
    inputs["x"], inputs["z"] = both.split(h, dim=2)
    assert described(inputs)
    same_as_the_definition(inputs)


def test_what_cannot_be_described(seeded):
    inputs = draw(seeded, 2, 20, 2, 8, 1, 4)
    for other in (
        {"C": inputs["C"][:1, :1].expand(2, 20, 1, 4)},
        {"x": torch.cat([inputs["x"]] * 2, dim=3)[..., 2:10]},
        {"z": inputs["z"].transpose(1, 2).contiguous().transpose(1, 2)},
        {"B": inputs["B"].half()},
    ):
        assert not described(inputs | other)
    same_as_the_definition(inputs | other)


def test_a_shape_is_described_as_the_first_of_its_kind_was(seeded, monkeypatch):
    monkeypatch.setattr(layout, "MANY", 2)
    plan = layout.Plan.of(*(seeded.normal(1, 8, 2, 16) for _ in range(3)), None)
    for wide in (16, 32, 16, 16):
        v = seeded.normal(1, 8, 2, wide)
        made = plan.describe(v, 1, 4, 1, 16)
        assert made == layout.TensorDescriptor.from_tensor(v, [1, 4, 1, 16])
        assert made.base is v
    assert plan.describe(None, 1) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs(dtype, seeded):
    same_as_the_definition(draw(seeded, 1, 140, 2, 5, 1, 3, dtype=dtype))


def test_inputs_of_several_dtypes(seeded):
    inputs = draw(seeded, 1, 9, 2, 3, 1, 2)
    inputs |= {"dt": inputs["dt"].bfloat16(), "C": inputs["C"].half(), "D": inputs["D"].half()}
    same_as_the_definition(inputs)
    inputs |= {"x": inputs["x"].bfloat16()}
    same_as_the_definition(inputs, tolerance=1e-2)


@pytest.mark.parametrize(
    ("h", "p", "g", "n"),
    [(1, 1, 1, 1), (6, 2, 3, 4), (4, 7, 4, 3), (5, 70, 1, 17), (1, 20, 1, 130), (1, 256, 1, 256)],
)
def test_sizes_and_groups(h, p, g, n, seeded):
    same_as_the_definition(draw(seeded, 1, 37, h, p, g, n))


@pytest.mark.parametrize("without", [*[(name,) for name in OPTIONAL], OPTIONAL])
@pytest.mark.parametrize("softplus", [False, True])
def test_what_may_be_left_out(without, softplus, seeded):
    inputs = draw(seeded, 2, 20, 2, 3, 1, 2, without=without, wide_skip=True)
    if not softplus:
        inputs["dt"] = inputs["dt"].exp()
    same_as_the_definition(inputs, softplus=softplus)


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("without", [(), ("state",)])
def test_packed_sequences(pack, without, seeded):
    inputs = draw(seeded, 1, pack[-1], 2, 3, 1, 2, s=len(pack) - 1, without=without)
    same_as_the_definition(inputs, pack)


@pytest.mark.parametrize("chunk_size", [16, 32, 128, 256])
def test_chunks_of_every_size(chunk_size, seeded):
    same_as_the_definition(draw(seeded, 1, 150, 2, 3, 1, 2), chunk_size=chunk_size)


@pytest.mark.parametrize("pack", [None, [0, 1090, 1100], [0, 3, 900, 1100], [0, 300, 1100]])
@pytest.mark.parametrize("without", [(), ("state", "D", "z")])
def test_segments_side_by_side(pack, without, seeded, monkeypatch):
    monkeypatch.setattr(layout, "processors", lambda device: 4)
    s = 1 if pack is None else len(pack) - 1
    inputs = draw(seeded, 1, 1100, 1, 3, 1, 2, s=s, without=without, dt=-5.0)
    cu_seqlens = None if pack is None else torch.tensor(pack)
    tile = layout.tile(*(inputs[k] for k in "xBC"), None)
    assert layout.cut(inputs["x"], cu_seqlens, tile)[0] < 1100 - KEEP
    same_as_the_definition(inputs, pack)


@pytest.mark.parametrize("without", [(), ("state", "D", "z")])
def test_segments_one_after_the_other(without, seeded, monkeypatch):
    inputs = draw(seeded, 2, 290, 2, 4, 1, 4, without=without, dt=-5.0)
    *tensors, state = inputs.values()
    whole = forward(*tensors, True, state, None, None, True)
    monkeypatch.setattr(layout, "cut", lambda x, cu_seqlens, tile: (KEEP, True))
    same_as_the_definition(inputs)
    found = forward(*tensors, True, state, None, None, True)
    assert all(torch.equal(a, b) for a, b in zip(whole, found, strict=True))


@pytest.mark.parametrize(
    ("s", "h", "t", "segments", "relays"),
    [
        (8, 64, 4096, 1, False),
        (4, 80, 8192, 4, True),
        (8, 24, 2048, 1, False),
        (1, 64, 2**16, 8, False),
        (1, 128, 1024, 1, False),
    ],
)
def test_what_is_cut(s, h, t, segments, relays, monkeypatch):
    monkeypatch.setattr(layout, "processors", lambda device: 132)
    x = torch.empty(s, 1, h, 64).expand(s, t, h, 64)
    assert layout.cut(x, None, layout.Tile(32, 64, 4, 3)) == (t // segments, relays)


def test_strided_inputs(seeded):
    inputs = draw(seeded, 2, 66, 4, 6, 2, 5)
    wide = torch.cat([inputs["z"], inputs["x"]], dim=3)
    inputs["z"], inputs["x"] = wide.chunk(2, dim=3)
    inputs["dt"] = inputs["dt"].mT.contiguous().mT
    inputs["B"] = inputs["B"][..., [4, 3, 2, 1, 0]].flip(-1)
    inputs["C"] = inputs["C"][:1, :1].expand(2, 66, 2, 5)
    inputs["state"] = inputs["state"].mT.contiguous().mT
    for name in ("A", "dt_bias", "D"):
        inputs[name] = inputs[name][:1].expand(4)
    same_as_the_definition(inputs)


@pytest.mark.parametrize("mean", [-12.0, 5.0])
def test_tiny_and_large_steps(mean, seeded):
    """dt of 6e-6, where log(1 + e) loses four digits, and dt A of -10 and less."""
    same_as_the_definition(draw(seeded, 1, 70, 3, 2, 1, 2, dt=mean))


def test_nothing_is_forgotten_without_decay(seeded):
    inputs = draw(seeded, 1, 130, 2, 3, 1, 2)
    inputs["A"] = torch.zeros_like(inputs["A"])
    same_as_the_definition(inputs)


@pytest.mark.parametrize("name", ["x", "dt", "B"])
def test_nan_stays_in_its_sequence(name, seeded):
    for pack, (row, token) in ((None, (1, 3)), ([0, 5, 6, 80], (0, 5))):
        inputs = draw(seeded, 3 if pack is None else 1, 80, 2, 3, 1, 2, s=3)
        inputs[name][row, token] = float("nan")
        cu_seqlens = None if pack is None else torch.tensor(pack, device=DEVICE)
        y, last = ssd(**inputs, dt_softplus=True, cu_seqlens=cu_seqlens, backend="triton")
        own = y[1] if pack is None else y[0, 5:6]
        assert own.isnan().any()
        assert y.isnan().sum() == own.isnan().sum()
        assert last[1].isnan().any()
        assert last[[0, 2]].isfinite().all()


def test_same_bits_twice(seeded):
    *tensors, state = draw(seeded, 2, 70, 4, 5, 2, 3).values()
    runs = [forward(*tensors, True, state, None, None, True) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


class TestOneToken:
    @staticmethod
    def check(seeded, b, h, p, g, n, without=(), dtype=torch.float32, wide_skip=False):
        inputs = draw(seeded, b, 1, h, p, g, n, without=without, dtype=dtype, wide_skip=wide_skip)
        token = {k: v if v is None or k not in TOKENS else v[:, 0] for k, v in inputs.items()}
        wide = {k: None if v is None else v.double() for k, v in token.items()}
        y, state = ssd_step(**wide, dt_softplus=True, backend="reference")
        *tensors, held = token.values()
        before = held.clone()
        found, new = step(*tensors, True, held)
        assert torch.equal(before, held)
        tolerance = max(2e-6, TOLERANCE[dtype] / 3)
        assert_close(found, y, tolerance)
        assert_close(new, state, 2e-6)
        for view in (held, held.mT.contiguous().mT):  # not side by side: still written in place
            view = view.clone(memory_format=torch.preserve_format)
            assert_close(step_(*tensors, True, view), y, tolerance)
            assert_close(view, state, 2e-6)

    @pytest.mark.parametrize(
        ("b", "h", "p", "g", "n"),
        [(2, 2, 3, 1, 2), (1, 6, 5, 3, 4), (1, 2, 130, 1, 33), (1, 1, 1, 1, 256)],
    )
    def test_of_every_shape(self, b, h, p, g, n, seeded):
        self.check(seeded, b, h, p, g, n)

    @pytest.mark.parametrize("without", [("D", "z", "dt_bias"), ("z",)])
    def test_without_arguments(self, without, seeded):
        self.check(seeded, 2, 4, 5, 2, 3, without=without, wide_skip=True)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_in_half_precision(self, dtype, seeded):
        self.check(seeded, 2, 4, 5, 2, 3, dtype=dtype)

    def test_through_the_public_functions(self, seeded):
        inputs = draw(seeded, 2, 1, 4, 5, 2, 3)
        token = {k: v[:, 0] if k in TOKENS else v for k, v in inputs.items()}
        for backend in ("triton", "reference", "torch"):
            y, state = ssd_step(**token, dt_softplus=True, backend=backend)
            held = token["state"].clone()
            again = ssd_step_(**token | {"state": held}, dt_softplus=True, backend=backend)
            whole, last = ssd(**inputs, dt_softplus=True)
            assert_close(y, whole[:, 0])
            assert_close(state, last)
            assert_close(again, y, 1e-6)
            assert_close(held, state, 1e-6)


class TestOperator:
    def test_passes_opcheck(self, seeded):
        for pack in (None, [0, 3, 40]):
            inputs = draw(seeded, 1, 40, 2, 3, 1, 2, s=1 if pack is None else 2)
            *tensors, state = inputs.values()
            cu_seqlens = None if pack is None else torch.tensor(pack, device=DEVICE)
            args = (*tensors, True, state, cu_seqlens, None, "triton", True)
            torch.library.opcheck(operator._forward, args)
        token = [
            v if v is None or v.ndim < 3 or k == "state" else v[:, 0] for k, v in inputs.items()
        ]
        token = (*token[:8], True, state[:1])
        torch.library.opcheck(operator.step_by, ("triton", *token))
        torch.library.opcheck(operator.step_by_, ("triton", *token))

    def test_compiles_to_one_graph(self, seeded):
        inputs = draw(seeded, 1, 40, 2, 3, 1, 2)
        compiled = torch.compile(ssd, fullgraph=True, backend="aot_eager")
        plain = ssd(**inputs, dt_softplus=True, backend="triton")
        found = compiled(**inputs, dt_softplus=True, backend="triton")
        assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))

    def test_refuses_what_it_cannot_do(self, seeded):
        inputs = draw(seeded, 1, 3, 1, 2, 1, 257)
        message = r"backend: 'triton' takes p and n <= 256, got p=2 \(from x\) and n=257 \(from B\)"
        with pytest.raises(ValueError, match=message):
            ssd(**inputs, backend="triton")
        ssd(**inputs)
        inputs = draw(seeded, 1, 3, 1, 2, 1, 2)
        with pytest.raises(ValueError, match="'triton' computes in float32, got float64 inputs"):
            ssd(**inputs | {"dt": inputs["dt"].double()}, backend="triton")
        token = {k: v[:, 0] if k in TOKENS else v for k, v in inputs.items()}
        with pytest.raises(ValueError, match="'triton' computes in float32, got float64 inputs"):
            ssd_step_(**token | {"state": inputs["state"].double()}, backend="triton")


COMPILE = """
import torch
from ssmlib.bench.assembly import compiled
from ssmlib.kernels.ssd import forward, layout, step

layout.processors = lambda device: 132
layout.fetches = lambda device: CAPABILITY >= 90


def call(p, n, dtype, chunk_size, pack=None):
    x, z = (torch.empty(1, 2048, 4, p, dtype=dtype) for _ in range(2))
    dt = torch.empty(1, 2048, 4, dtype=dtype)
    B, C = (torch.empty(1, 2048, 2, n, dtype=dtype) for _ in range(2))
    A, state = torch.empty(4), torch.empty(1, 4, p, n)
    forward(x, dt, A, B, C, A, z, A, True, state, pack, chunk_size, True)
    step(x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], A, z[:, 0], A, True, state)


pack = torch.tensor([0, 1000, 2048])
for given in (
    (64, 128, torch.bfloat16, None),
    (20, 9, torch.float32, 16),
    (64, 64, torch.float16, None, pack),
):
    for kernel in compiled(lambda: call(*given), CAPABILITY):
        print(kernel.shared)
"""


@pytest.mark.parametrize("capability", [80, 90])
def test_compiles_without_a_gpu(capability):
    told = uninterpreted(COMPILE.replace("CAPABILITY", str(capability)))
    shared = [int(line) for line in told.split()]
    assert len(shared) >= 12
    assert max(shared) <= (163 if capability == 80 else 227) * 1024  # bytes of a program


@pytest.mark.gpu
class TestOnAGPU:
    @pytest.mark.parametrize("dtype", TOLERANCE)
    @pytest.mark.parametrize("t", [1, 2, 3, 63, 64, 65, 130, 257, 1000])
    def test_lengths(self, t, dtype, seeded):
        same_as_the_definition(draw(seeded, 2, t, 4, 64, 2, 128, dtype=dtype))

    @pytest.mark.parametrize("dtype", TOLERANCE)
    @pytest.mark.parametrize("chunk_size", [None, 16, 32, 64, 128])
    @pytest.mark.parametrize("p", [16, 32, 64, 128])
    @pytest.mark.parametrize("n", [16, 64, 128, 256])
    def test_every_tile(self, p, n, chunk_size, dtype, seeded):
        inputs = draw(seeded, 1, 150, 2, p, 1, n, dtype=dtype)
        same_as_the_definition(inputs, chunk_size=chunk_size)

    @pytest.mark.parametrize(
        ("h", "p", "g", "n"),
        [
            (12, 1, 1, 1),
            (6, 2, 3, 8),
            (4, 7, 4, 13),
            (5, 70, 1, 17),
            (3, 96, 3, 130),
            (7, 256, 1, 256),
        ],
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_sizes_and_groups(self, h, p, g, n, dtype, seeded):
        same_as_the_definition(draw(seeded, 2, 170, h, p, g, n, dtype=dtype))

    @pytest.mark.parametrize("without", [*[(name,) for name in OPTIONAL], OPTIONAL])
    @pytest.mark.parametrize("wide_skip", [False, True])
    def test_what_may_be_left_out(self, without, wide_skip, seeded):
        inputs = draw(
            seeded, 2, 140, 2, 64, 1, 128, without=without, dtype=torch.bfloat16,
            wide_skip=wide_skip,
        )  # fmt: skip
        same_as_the_definition(inputs)

    @pytest.mark.parametrize("dtype", TOLERANCE)
    @pytest.mark.parametrize("pack", [*PACKS, [0, 1, 100, 300, 1200, 2048], [0, 2000, 2001]])
    def test_packed_sequences(self, pack, dtype, seeded):
        inputs = draw(seeded, 1, pack[-1], 2, 64, 1, 64, s=len(pack) - 1, dtype=dtype)
        same_as_the_definition(inputs, pack)

    def test_segments_side_by_side(self, seeded):
        inputs = draw(seeded, 1, 4099, 2, 64, 1, 64, dtype=torch.bfloat16, dt=-5.0)
        tile = layout.tile(*(inputs[k] for k in "xBC"), None)
        assert layout.cut(inputs["x"], None, tile)[0] < 4099 - KEEP
        same_as_the_definition(inputs)

    def test_segments_one_after_the_other(self, seeded, monkeypatch):
        """More programs than run at once, most of which wait for another."""
        inputs = draw(seeded, 2, 1500, 300, 64, 1, 32, dtype=torch.bfloat16, dt=-5.0)
        *tensors, state = inputs.values()
        whole = forward(*tensors, True, state, None, None, True)
        for segment in (KEEP, 5 * KEEP):
            monkeypatch.setattr(layout, "cut", lambda *_, segment=segment: (segment, True))
            found = forward(*tensors, True, state, None, None, True)
            assert all(torch.equal(a, b) for a, b in zip(whole, found, strict=True))

    @pytest.mark.parametrize("mean", [-12.0, -8.0, 5.0])
    def test_tiny_and_large_steps(self, mean, seeded):
        same_as_the_definition(draw(seeded, 2, 200, 2, 64, 1, 32, dt=mean))

    def test_pieces_equal_the_whole(self, seeded):
        inputs = draw(seeded, 2, 300, 4, 32, 1, 64)
        y, last = ssd(**inputs, dt_softplus=True)
        state, pieces = inputs.pop("state"), []
        for first, end in ((0, 1), (1, 77), (77, 299), (299, 300)):
            part = inputs | {k: inputs[k][:, first:end] for k in TOKENS}
            piece, state = ssd(**part, state=state, dt_softplus=True)
            pieces.append(piece)
        assert_close(torch.cat(pieces, dim=1), y)
        assert_close(state, last)

    def test_same_bits_twice(self, seeded):
        *tensors, state = draw(seeded, 2, 1000, 8, 64, 1, 128, dtype=torch.bfloat16).values()
        first, *others = [forward(*tensors, True, state, None, None, True) for _ in range(5)]
        for other in others:
            assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))

    def test_a_head_of_zeros_beside_one_of_nan(self, seeded):
        inputs = draw(seeded, 1, 150, 2, 64, 1, 64, dtype=torch.bfloat16)
        inputs["x"][:, 3, 0] = float("nan")
        y, last = ssd(**inputs, dt_softplus=True)
        assert y[:, 128:, 0].isnan().all()
        assert y[:, :, 1].isfinite().all()
        assert last[:, 1].isfinite().all()

    def test_one_token(self, seeded):
        for p, n in itertools.product((16, 64, 100), (16, 128, 200, 256)):
            TestOneToken.check(seeded, 3, 4, p, 2, n, dtype=torch.bfloat16)

    def test_a_token_in_a_cuda_graph(self, seeded):
        inputs = draw(seeded, 2, 1, 4, 64, 1, 128, dtype=torch.bfloat16)
        token = {k: v[:, 0] if k in TOKENS else v for k, v in inputs.items()}
        ssd_step_(**token | {"state": token["state"].clone()}, dt_softplus=True)
        held = token["state"].clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = ssd_step_(**token | {"state": held}, dt_softplus=True)
        held.copy_(token["state"])
        graph.replay()
        wanted, state = ssd_step(**token, dt_softplus=True)
        assert torch.equal(y, wanted)
        assert torch.equal(held, state)

    def test_compiles_with_inductor(self, seeded):
        inputs = draw(seeded, 1, 150, 2, 64, 1, 64, dtype=torch.bfloat16)
        found = torch.compile(ssd, fullgraph=True)(**inputs, dt_softplus=True)
        plain = ssd(**inputs, dt_softplus=True)
        assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))

    def test_offsets_beyond_32_bits(self):
        t, h, p, n, end = 2**19 + 8, 64, 64, 16, 256
        generator = torch.Generator("cuda").manual_seed(0)
        size = {"generator": generator, "device": "cuda", "dtype": torch.bfloat16}
        x, dt = torch.randn(1, t, h, p, **size), torch.randn(1, t, h, **size)
        B, C = (torch.randn(1, t, 1, n, **size) for _ in range(2))
        A = torch.full((h,), -1.0, device="cuda")
        y, last = ssd(x, dt, A, B, C, dt_softplus=True)
        assert y.numel() > 2**31
        tail = [v[:, -end:].double() for v in (x, dt, B, C)]  # by then nothing earlier is left
        ref, state = ssd_recurrent(*tail[:2], A.double(), *tail[2:], dt_softplus=True)
        assert_close(y[:, -end // 2 :], ref[:, -end // 2 :], 1e-2)
        assert_close(last, state, 1e-2)
