"""ssmlib.selective_scan: the fast form against the loop, packs, states, one token, refusals."""

import itertools
from functools import partial

import pytest
import torch
from agreement import Seeded, assert_close, assert_same, error
from torch import Tensor

from ssmlib.bench import scan_cpu
from ssmlib.bench.timing import peak_memory
from ssmlib.selective_scan import (
    layout,
    operator,
    selective_scan,
    selective_scan_step,
    selective_scan_step_,
    tiles,
)

NAMES = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "dt_softplus", "state", "cu_seqlens")
LENGTHS = [1, 2, 3, 31, 32, 33, 63, 64, 65, 130, 257]
TENSORS = [name for name in NAMES if name not in ("dt_softplus", "cu_seqlens")]
OPTIONAL = ("D", "z", "dt_bias", "dt_softplus", "state")


def draw(
    b: int, t: int, d: int, n: int, g: int = 1, without: tuple = (), pack: list | None = None
) -> dict:
    """Inputs of a scan by name; dt is small, as trained models have it."""
    seeded = Seeded()
    s = b if pack is None else len(pack) - 1
    made = {
        "x": seeded.normal(b, t, d),
        "dt": seeded.normal(b, t, d) - 1,
        "A": -seeded.uniform(d, n, low=0.1, high=4.0),
        "B": seeded.normal(b, t, g, n),
        "C": seeded.normal(b, t, g, n),
        "D": seeded.normal(d),
        "z": seeded.normal(b, t, d),
        "dt_bias": seeded.normal(d) - 1,
        "dt_softplus": True,
        "state": seeded.normal(s, d, n),
        "cu_seqlens": None if pack is None else torch.tensor(pack),
    }
    if "dt_softplus" in without:
        made |= {"dt_softplus": False, "dt": made["dt"].exp() / 4, "dt_bias": made["dt_bias"].exp()}
    return made | {name: None for name in without if name != "dt_softplus"}


def cast(made: dict, dtype: torch.dtype, names: tuple = tuple(TENSORS)) -> dict:
    return made | {k: made[k].to(dtype) for k in names if made[k] is not None}


def same(made: dict, **kw) -> None:
    kw = {"backend": "torch", "reference": "reference"} | kw
    assert_same(selective_scan, tuple(made.values()), **kw)


def gradients(f, made: dict) -> dict:
    """Outputs y and last, and the gradient of every tensor, by name; cotangents fit in bfloat16."""
    leaves = {k: made[k].detach().requires_grad_() for k in TENSORS if made[k] is not None}
    y, last = f(**made | leaves)
    seeded = Seeded(1)
    loss = sum((o * seeded.normal(*o.shape).bfloat16().to(o)).sum() for o in (y, last))
    found = torch.autograd.grad(loss, list(leaves.values()))
    return {"y": y.detach(), "last": last.detach()} | dict(zip(leaves, found, strict=True))


class TestAgainstTheDefinition:
    @pytest.mark.parametrize("t", LENGTHS)
    def test_at_every_length(self, t):
        same(draw(2, t, 5, 3))

    @pytest.mark.parametrize(
        ("b", "d", "n", "g"),
        [(1, 1, 1, 1), (3, 6, 1, 2), (2, 6, 16, 6), (2, 7, 5, 7), (1, 12, 17, 4), (1, 2, 256, 1)],
    )
    def test_at_every_shape(self, b, d, n, g):
        same(draw(b, 37, d, n, g))

    @pytest.mark.parametrize(
        "without", [c for k in (1, 4, 5) for c in itertools.combinations(OPTIONAL, k)]
    )
    def test_with_and_without_each_argument(self, without):
        same(draw(2, 35, 4, 3, 2, without))

    @pytest.mark.parametrize("slab", [1, 7, 24, 100])
    @pytest.mark.parametrize("g", [1, 3, 12])
    def test_however_it_is_cut_into_tiles(self, g, slab, monkeypatch):
        monkeypatch.setattr(layout, "SLAB", slab)
        monkeypatch.setattr(layout, "CHUNK", 4)
        same(draw(3, 10, 12, 2, g))
        same(draw(1, 10, 12, 2, g, pack=[0, 3, 10]))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_in_the_dtypes_that_models_have(self, dtype):
        made = cast(draw(2, 130, 8, 16, 2), dtype, ("x", "dt", "B", "C", "z"))
        made = cast(made, torch.float32, ("A", "D", "dt_bias", "state"))
        fast = gradients(selective_scan, made)
        truth = gradients(partial(selective_scan, backend="reference"), cast(made, torch.float64))
        for name, found in fast.items():
            wanted = dtype if name in ("x", "dt", "B", "C", "z", "y") else torch.float32
            assert found.dtype == wanted, name
            assert_close(found, truth[name], name=name)

    def test_dtypes_may_be_mixed(self):
        made = cast(draw(1, 9, 4, 3), torch.float32)
        made = cast(made, torch.bfloat16, ("x", "B")) | {"dt": made["dt"].half()}
        found = gradients(selective_scan, made)
        for name in TENSORS:
            assert found[name].dtype == made[name].dtype
        assert found["y"].dtype == torch.bfloat16
        assert found["last"].dtype == torch.float32
        assert (
            gradients(selective_scan, made | {"A": made["A"].double()})["last"].dtype
            == torch.float64
        )

    def test_B_and_C_may_come_without_groups(self):
        made = draw(2, 9, 4, 3)
        y, last = selective_scan(**made | {k: made[k][:, :, 0] for k in "BC"})
        assert_close(y, selective_scan(**made)[0])
        y, last = selective_scan(**made | {"B": made["B"][:, :, 0]})
        assert_close(last, selective_scan(**made)[1])

    def test_inputs_may_be_views(self):
        made = draw(2, 33, 6, 4, 2)
        wide = {k: torch.cat([made[k], made[k] + 1], -1)[..., : made[k].shape[-1]] for k in "xBC"}
        turned = {k: made[k].mT.contiguous().mT for k in ("dt", "z", "A", "state")}
        constant = {"B": made["B"][:1, :1].expand(2, 33, 2, 4)}
        same(made | wide)
        same(made | turned)
        same(made | constant)

    def test_derivatives_by_finite_differences(self):
        made = draw(1, 5, 4, 2, 2, pack=[0, 1, 5])
        leaves = [made[k].requires_grad_() for k in TENSORS]

        def f(*tensors: Tensor):
            return selective_scan(**made | dict(zip(TENSORS, tensors, strict=True)))

        assert torch.autograd.gradcheck(f, leaves)

    @pytest.mark.parametrize("which", [0, 1])
    def test_gradients_of_either_result_alone(self, which):
        made = draw(1, 40, 3, 2, without=("D", "z"))
        leaves = [made[k].requires_grad_() for k in ("x", "dt", "A", "B", "dt_bias", "state")]
        results = [selective_scan(**made, backend=b)[which] for b in ("torch", "reference")]
        pairs = (torch.autograd.grad(result.sum(), leaves) for result in results)
        for found, truth in zip(*pairs, strict=True):
            assert_close(found, truth)


class TestStates:
    @pytest.mark.parametrize("backend", ["torch", "reference"])
    @pytest.mark.parametrize("cuts", [[1], [32], [5, 6, 50]])
    def test_pieces_equal_the_whole(self, backend, cuts):
        made = draw(2, 70, 4, 3, 2)
        parts, state = [], made["state"]
        for i, j in itertools.pairwise([0, *cuts, 70]):
            piece = {k: made[k][:, i:j] for k in ("x", "dt", "B", "C", "z")}
            y, state = selective_scan(**made | piece | {"state": state}, backend=backend)
            parts.append(y)
        whole, last = selective_scan(**made, backend=backend)
        assert_close(torch.cat(parts, 1), whole)
        assert_close(state, last)

    def test_of_half_precision_are_float32(self):
        assert (
            selective_scan(**cast(draw(1, 3, 2, 2, without=("state",)), torch.bfloat16))[1].dtype
            == torch.float32
        )


class TestPacks:
    PACKS = ([0, 70], [0, 1, 2, 3, 35, 68, 70], [0, 31, 32, 64, 65, 70])

    @pytest.mark.parametrize("pack", PACKS)
    @pytest.mark.parametrize("without", [(), ("state",), OPTIONAL])
    def test_agree_with_the_definition(self, pack, without):
        same(draw(1, 70, 6, 3, 2, without, pack))

    @pytest.mark.parametrize("backend", ["torch", "reference"])
    @pytest.mark.parametrize("pack", PACKS)
    @pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
    def test_are_their_sequences(self, backend, pack, dtype):
        made = draw(1, 70, 4, 3, 2, pack=pack)
        y, last = selective_scan(
            **made | {"cu_seqlens": torch.tensor(pack, dtype=dtype)}, backend=backend
        )
        for k, (i, j) in enumerate(itertools.pairwise(pack)):
            piece = {name: made[name][:, i:j] for name in ("x", "dt", "B", "C", "z")}
            piece |= {"state": made["state"][k : k + 1], "cu_seqlens": None}
            alone, end = selective_scan(**made | piece, backend=backend)
            assert_close(y[:, i:j], alone)
            assert_close(last[k], end[0])


class TestInvariants:
    def test_no_token_sees_the_future(self):
        made = draw(1, 70, 4, 3)
        later = {k: made[k].clone() for k in ("x", "dt", "B", "C", "z")}
        for v in later.values():
            v[:, 40:] += 1
        assert torch.equal(*(selective_scan(**m)[0][:, :40] for m in (made, made | later)))

    @pytest.mark.parametrize("backend", ["torch", "reference"])
    def test_a_nan_spoils_its_own_sequence_only(self, backend):
        for made, own in (
            (draw(3, 40, 4, 3, 2), 1),
            (draw(1, 40, 4, 3, 2, pack=[0, 9, 30, 40]), 1),
        ):
            rows = (own, 12) if made["cu_seqlens"] is None else (0, 12)
            made["x"][rows] = float("nan")
            found = gradients(partial(selective_scan, backend=backend), made)
            hit = found["y"].isnan()
            seen = hit[own] if made["cu_seqlens"] is None else hit[0, 9:30]
            assert seen.any()
            assert hit.sum() == seen.sum()
            assert found["last"][own].isnan().all()
            assert found["last"][[0, 2]].isfinite().all()
            assert found["state"][[0, 2]].isfinite().all()

    def test_same_bits_every_time(self):
        made = cast(draw(2, 100, 24, 16, 3), torch.float32)
        first, second = (gradients(selective_scan, made) for _ in range(2))
        for name, value in first.items():
            assert torch.equal(value, second[name]), name

    def test_tiny_steps_keep_their_digits(self):
        made = cast(draw(1, 1, 5, 1, without=("D", "z", "dt_bias", "state")), torch.float32)
        made["dt"] = torch.tensor([[[-80.0, -40.0, -17.0, -9.0, 2.0]]])
        made |= {"x": torch.ones(1, 1, 5), "B": torch.ones(1, 1, 1, 1)}
        wanted = torch.log1p(made["dt"].double().exp()).flatten()
        for backend in ("torch", "reference"):
            found = selective_scan(**made, backend=backend)[1].flatten()
            assert ((found - wanted) / wanted).abs().max() < 1e-6

    def test_a_step_that_forgets_everything(self):
        made = draw(1, 40, 3, 2)
        made["A"] *= 1e4
        same(made)
        assert selective_scan(**cast(made, torch.float32))[0].isfinite().all()

    def test_it_holds_no_state_per_token(self):
        b, t, d, n = 2, 512, 64, 16
        made = cast(draw(b, t, d, n), torch.float32)
        y, last, saved = tiles.forward(**made, needs_grad=True)
        every = 4 * b * t * d * n
        assert saved.numel() * 4 < every / 16
        assert peak_memory(lambda: tiles.forward(**made, needs_grad=True), device="cpu") < every / 2
        back = partial(tiles.backward, y, last, **made, saved=saved)
        assert peak_memory(back, device="cpu") < every / 2

    def test_autocast_leaves_it_alone(self):
        made = cast(draw(1, 40, 4, 3), torch.float32)
        for backend in ("torch", "reference"):
            plain = gradients(partial(selective_scan, backend=backend), made)
            with torch.autocast("cpu", torch.bfloat16):
                found = gradients(partial(selective_scan, backend=backend), made)
            for name, value in plain.items():
                assert torch.equal(value, found[name]), name


class TestOperators:
    @pytest.mark.parametrize("without", [(), OPTIONAL])
    @pytest.mark.parametrize("pack", [None, [0, 3, 40]])
    def test_pass_opcheck(self, without, pack):
        made = cast(draw(1, 40, 6, 4, 3, without, pack), torch.float32)
        for name in TENSORS:
            if made[name] is not None:
                made[name].requires_grad_()
        torch.library.opcheck(operator._forward, (*made.values(), "torch", True))
        y, last, saved = (v.detach() for v in operator._forward(*made.values(), "torch", True))
        plain = [v.detach() if isinstance(v, Tensor) else v for v in made.values()]
        torch.library.opcheck(operator._backward, (y, last, *plain, saved, "torch"))

    def test_compile_to_one_graph(self):
        made = draw(1, 40, 4, 3, 2, pack=[0, 3, 40])
        compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")
        plain, found = gradients(selective_scan, made), gradients(compiled, made)
        for name, value in plain.items():
            assert torch.equal(value, found[name]), name

    def test_differentiate_once(self):
        made = draw(1, 5, 2, 2)
        x = made["x"].requires_grad_()
        (grad,) = torch.autograd.grad(selective_scan(**made)[0].sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match=r"backward through ssmlib\.selective_scan_backward"):
            grad.sum().backward()


class TestOneToken:
    @staticmethod
    def token(made: dict, i: int) -> dict:
        taken = {k: made[k][:, i] for k in ("x", "dt", "B", "C", "z") if made[k] is not None}
        return {k: v for k, v in (made | taken).items() if k != "cu_seqlens"}

    @pytest.mark.parametrize("backend", ["torch", "reference"])
    @pytest.mark.parametrize("without", [(), ("D", "z", "dt_bias", "dt_softplus")])
    def test_is_the_scan_of_one_token_to_the_last_bit(self, backend, without):
        made = cast(draw(3, 1, 6, 4, 2, without), torch.float32)
        y, last = selective_scan(**made, backend=backend)
        step_y, step_last = selective_scan_step(**self.token(made, 0), backend=backend)
        assert torch.equal(step_y, y[:, 0])
        assert torch.equal(step_last, last)

    def test_after_token_is_the_whole(self):
        made = draw(2, 40, 4, 3, 2)
        y, last = selective_scan(**made)
        state, held, steps = made["state"], made["state"].clone(), []
        for i in range(40):
            token = self.token(made, i)
            step, state = selective_scan_step(**token | {"state": state})
            assert_close(selective_scan_step_(**token | {"state": held}), step)
            assert_close(held, state)
            steps.append(step)
        assert_close(torch.stack(steps, 1), y)
        assert_close(state, last)

    def test_takes_B_and_C_without_groups(self):
        token = self.token(draw(2, 1, 4, 3), 0)
        y, _ = selective_scan_step(**token)
        assert torch.equal(selective_scan_step(**token | {k: token[k][:, 0] for k in "BC"})[0], y)

    def test_has_gradients(self):
        made = draw(2, 1, 4, 3)
        leaves = {k: made[k].requires_grad_() for k in TENSORS}
        f = [selective_scan(**made)[0], selective_scan_step(**self.token(made, 0))[0]]
        grads = [torch.autograd.grad(y.sum(), list(leaves.values())) for y in f]
        assert all(torch.equal(p, q) for p, q in zip(*grads, strict=True))

    def test_in_place_refuses_gradients(self):
        token = self.token(draw(2, 1, 4, 3), 0)
        token["x"].requires_grad_()
        with pytest.raises(ValueError, match="state: expected no gradients"):
            selective_scan_step_(**token)
        with torch.no_grad():
            selective_scan_step_(**token)

    def test_in_place_refuses_to_narrow(self):
        token = self.token(draw(2, 1, 4, 3), 0)
        with pytest.raises(ValueError, match=r"state: expected dtype torch.float64 \(the widest"):
            selective_scan_step_(**token | {"state": token["state"].float()})

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"x": torch.zeros(2, 1, 4)}, r"x: expected \(b, d\), got shape \(2, 1, 4\)"),
            ({"B": torch.zeros(2, 2)}, r"B: expected \(b, n\) with n=3 \(from A\), got shape"),
            ({"state": None}, r"state: expected a tensor \(b, d, n\), got NoneType"),
            ({"state": torch.zeros(2, 4, 3).half()}, "state: expected dtype float32 or float64"),
            ({"A": torch.ones(4, 3)}, "A: expected values < 0, got 1"),
            ({"z": torch.zeros(2, 4).long()}, "z: expected a floating point tensor"),
        ],
    )
    def test_refuses(self, change, message):
        token = self.token(draw(2, 1, 4, 3), 0)
        for f in (selective_scan_step, selective_scan_step_):
            with pytest.raises(ValueError, match=message):
                f(**token | change)


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"A": torch.zeros(6, 4)}, "A: expected values < 0, got 0"),
            ({"A": torch.full((6, 4), float("nan"))}, "A: expected values < 0, got nan"),
            (
                {"A": -torch.ones(6, 4, dtype=torch.complex64)},
                "A: expected a floating point tensor",
            ),
            (
                {"A": -torch.ones(5, 4)},
                r"A: expected \(d, n\) with d=6 \(from x\), got",
            ),
            (
                {"dt": torch.zeros(2, 9, 5)},
                r"dt: expected \(b, t, d\) with d=6 \(from x\)",
            ),
            ({"x": torch.zeros(2, 9)}, r"x: expected \(b, t, d\), got shape \(2, 9\)"),
            ({"x": torch.zeros(2, 0, 6)}, r"x: expected \(b, t, d\) with t >= 1"),
            (
                {"x": torch.zeros(2, 9, 6).long()},
                "x: expected a floating point tensor, got dtype",
            ),
            (
                {"C": torch.zeros(2, 9, 3, 4)},
                r"C: expected \(b, t, g, n\) with g=2 \(from B\)",
            ),
            ({k: torch.zeros(2, 9, 4, 4) for k in "BC"}, "B: expected g groups that divide d=6"),
            ({"B": torch.zeros(2, 9, 5)}, r"B: expected \(b, t, n\) with n=4 \(from A\)"),
            ({"D": torch.zeros(5)}, r"D: expected \(d,\) with d=6 \(from x\), got shape \(5,\)"),
            ({"dt_bias": torch.zeros(6).int()}, "dt_bias: expected a floating point tensor"),
            ({"state": torch.zeros(1, 6, 4)}, r"state: expected \(b, d, n\) with b=2 \(from x\)"),
            (
                {"state": torch.zeros(2, 6, 4).bfloat16()},
                "state: expected dtype float32 or float64",
            ),
            ({"z": 3}, r"z: expected a tensor \(b, t, d\), got int"),
            (
                {"backend": "cuda"},
                "backend: expected one of auto, reference, torch, triton, got",
            ),
            ({"cu_seqlens": torch.tensor([0, 9])}, "x: expected b=1 with cu_seqlens, got b=2"),
        ],
    )
    def test_name_what_came(self, change, message):
        with pytest.raises(ValueError, match=message):
            selective_scan(**draw(2, 9, 6, 4, 2) | change)

    @pytest.mark.parametrize(
        ("cu_seqlens", "message"),
        [
            ([1, 9], "cu_seqlens: expected 0 first, got 1"),
            ([0, 4, 4, 9], "expected boundaries that increase, got 4 and 4 at 1 and 2"),
            ([0, 5, 4, 9], "expected boundaries that increase, got 5 and 4 at 1 and 2"),
            ([0, 8], r"cu_seqlens: expected t=9 \(from x\) last, got 8"),
            ([0], r"cu_seqlens: expected \(s\+1,\) with s >= 1, got shape \(1,\)"),
            ([0.0, 9.0], "cu_seqlens: expected dtype int32 or int64, got dtype torch.float32"),
            ([[0, 9]], r"cu_seqlens: expected \(s\+1,\) with s >= 1, got shape \(1, 2\)"),
        ],
    )
    def test_of_packs(self, cu_seqlens, message):
        made = draw(1, 9, 6, 4, without=("state",))
        with pytest.raises(ValueError, match=message):
            selective_scan(**made | {"cu_seqlens": torch.tensor(cu_seqlens)})

    def test_of_a_state_that_has_not_a_row_for_each_sequence(self):
        made = draw(1, 9, 6, 4)
        with pytest.raises(ValueError, match=r"state: expected s=2 sequences \(from cu_seqlens\)"):
            selective_scan(**made | {"cu_seqlens": torch.tensor([0, 4, 9])})

    @pytest.mark.parametrize(
        ("made", "message"),
        [
            (draw(1, 3, 2, 2), "'triton' computes in float32, got float64 inputs"),
            (
                cast(draw(1, 3, 2, 257), torch.float32),
                r"'triton' takes n <= 256, got n=257 \(from A\)",
            ),
        ],
        ids=["float64", "states"],
    )
    def test_of_what_the_kernels_cannot_do(self, made, message):
        with pytest.raises(ValueError, match=message):
            selective_scan(**made, backend="triton")
        y, last = selective_scan(**made)  # auto finds a form that can
        truth, end = selective_scan(**made, backend="reference")
        assert_close(y, truth)
        assert_close(last, end)

    def test_of_triton_without_a_gpu(self, monkeypatch):
        monkeypatch.setenv("TRITON_INTERPRET", "0")
        with pytest.raises(ValueError, match="backend: 'triton' needs"):
            selective_scan(**cast(draw(1, 3, 2, 2), torch.float32), backend="triton")


class TestOnTriton:
    """The kernels under the same operators; `test_kernels_selective_scan` tests the kernels."""

    DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

    def make(self, *sizes: int, **kw) -> dict:
        made = cast(draw(*sizes, **kw), torch.float32)
        return {k: v.to(self.DEVICE) if isinstance(v, Tensor) else v for k, v in made.items()}

    @pytest.mark.parametrize("without", [(), OPTIONAL])
    @pytest.mark.parametrize("pack", [None, [0, 1, 20]])
    def test_results_and_gradients_agree(self, pack, without):
        same(
            self.make(1, 20, 6, 3, 2, without=without, pack=pack), backend="triton", tolerance=3e-5
        )

    def test_operators_pass_opcheck(self):
        made = self.make(1, 9, 4, 2, 2, pack=[0, 3, 9])
        for name in TENSORS:
            made[name].requires_grad_()
        which = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(operator._forward, (*made.values(), "triton", True), test_utils=which)
        with torch.no_grad():
            y, last, saved = operator._forward(*made.values(), "triton", True)
        plain = [v.detach() if isinstance(v, Tensor) else v for v in made.values()]
        args = (y, last, *plain, saved, "triton")
        torch.library.opcheck(operator._backward, args, test_utils=which)

    def test_one_token_is_the_scan(self):
        made = self.make(2, 1, 6, 3, 2)
        token = TestOneToken.token(made, 0)
        y, last = selective_scan(**made, backend="triton")
        step, state = selective_scan_step(**token, backend="triton")
        assert_close(step, y[:, 0], 1e-6)
        assert_close(state, last, 1e-6)
        held = token["state"].clone()
        assert_close(selective_scan_step_(**token | {"state": held}, backend="triton"), step, 1e-6)
        assert_close(held, last, 1e-6)
        args = ("triton", *(v for k, v in token.items()))
        torch.library.opcheck(operator.step_by, args, test_utils=("test_schema", "test_faketensor"))
        torch.library.opcheck(
            operator.step_by_, args, test_utils=("test_schema", "test_faketensor")
        )


def test_fast_form_is_as_exact_as_the_loop():
    made = cast(draw(1, 257, 8, 16), torch.float32)
    truth = selective_scan(**cast(made, torch.float64), backend="reference")[0]
    fast, slow = (selective_scan(**made, backend=b)[0] for b in ("torch", "reference"))
    assert error(fast, truth) < 2 * error(slow, truth)


def test_bench_on_the_cpu_runs_and_finds_no_error():
    found = list(scan_cpu.rows(quick=True))
    names = [(row["experiment"], row["provider"].split()[0]) for row in found]
    for experiment in ("cpu scan", "one thread"):
        assert names.count((experiment, "ssmlib")) == names.count((experiment, "python")) == 2
    for row in found:
        assert row["status"] == "ok", row
        assert row["provider"].startswith("transformers") or row["error"] < 1e-5
