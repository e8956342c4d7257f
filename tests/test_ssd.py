"""ssmlib.ssd: recurrence, masked matrix and chunks agree; packs, states, one token, refusals."""

import inspect
import itertools
from functools import partial

import pytest
import torch
from agreement import Seeded, assert_close, assert_same, error
from torch import Tensor

from ssmlib.bench.timing import peak_memory
from ssmlib.ssd import (
    chunks,
    operator,
    segsum,
    ssd,
    ssd_chunked,
    ssd_quadratic,
    ssd_step,
    ssd_step_,
)
from ssmlib.ssd.forms import by_form

NAMES = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "dt_softplus", "state", "cu_seqlens")
TENSORS = [name for name in NAMES if name not in ("dt_softplus", "cu_seqlens")]
TOKENS = ("x", "dt", "B", "C", "z")
OPTIONAL = ("D", "z", "dt_bias", "dt_softplus", "state")
LENGTHS = [1, 2, 3, 63, 64, 65, 130, 257]
PACKS = ([0, 70], [0, 1, 2, 3, 35, 68, 70], [0, 15, 16, 32, 33, 70])
FORMS = {
    "quadratic": ssd_quadratic,
    "chunked": partial(by_form, partial(ssd_chunked, chunk_size=16)),
}


def draw(
    b: int,
    t: int,
    h: int = 4,
    p: int = 3,
    g: int = 2,
    n: int = 5,
    without: tuple = (),
    pack: list | None = None,
    wide_skip: bool = False,
) -> dict:
    """Inputs by name; dt is small, as in trained models; the first head forgets nothing."""
    seeded = Seeded()
    s = b if pack is None else len(pack) - 1
    made = {
        "x": seeded.normal(b, t, h, p),
        "dt": seeded.normal(b, t, h) - 1,
        "A": -seeded.uniform(h, low=0.1, high=4.0),
        "B": seeded.normal(b, t, g, n),
        "C": seeded.normal(b, t, g, n),
        "D": seeded.normal(h, p) if wide_skip else seeded.normal(h),
        "z": seeded.normal(b, t, h, p),
        "dt_bias": seeded.normal(h) - 1,
        "dt_softplus": True,
        "state": seeded.normal(s, h, p, n),
        "cu_seqlens": None if pack is None else torch.tensor(pack),
    }
    made["A"][0] = 0
    if "dt_softplus" in without:
        made |= {"dt_softplus": False, "dt": made["dt"].exp() / 4, "dt_bias": made["dt_bias"].exp()}
    return made | {name: None for name in without if name != "dt_softplus"}


def cast(made: dict, dtype: torch.dtype, names: tuple = tuple(TENSORS)) -> dict:
    return made | {k: made[k].to(dtype) for k in names if made[k] is not None}


def by_name(*inputs, backend: str, chunk_size: int | None = None):
    if backend in FORMS:
        return FORMS[backend](*inputs)
    return ssd(*inputs, chunk_size=chunk_size, backend=backend)


def same(made: dict, backend: str = "torch", **kw) -> None:
    assert_same(by_name, tuple(made.values()), backend=backend, reference="reference", **kw)


def gradients(f, made: dict) -> dict:
    """Outputs y and last, and the gradient of every tensor, by name; cotangents fit in bfloat16."""
    leaves = {k: made[k].detach().requires_grad_() for k in TENSORS if made[k] is not None}
    y, last = f(**made | leaves)
    seeded = Seeded(1)
    loss = sum((o * seeded.normal(*o.shape).bfloat16().to(o)).sum() for o in (y, last))
    found = torch.autograd.grad(loss, list(leaves.values()))
    return {"y": y.detach(), "last": last.detach()} | dict(zip(leaves, found, strict=True))


class TestSegsum:
    def test_entries_are_sums_of_segments(self, seeded):
        log_a = -seeded.uniform(2, 7)
        found = segsum(log_a)
        for i, j in itertools.product(range(7), range(7)):
            wanted = log_a[:, j + 1 : i + 1].sum(1) if j <= i else torch.full((2,), -torch.inf)
            assert torch.allclose(found[:, i, j], wanted.double(), rtol=1e-14, atol=0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_short_segments_keep_their_digits_after_a_long_past(self, dtype):
        log_a = torch.full((200,), -1e-3, dtype=dtype)
        log_a[:100] = -30
        sums = log_a.cumsum(0)
        truth = segsum(log_a.double())
        recent = (slice(150, None), slice(150, None))
        lower = torch.ones(50, 50).tril(-1).bool()
        stable = error(segsum(log_a)[recent][lower], truth[recent][lower])
        difference = error((sums[:, None] - sums)[recent][lower], truth[recent][lower])
        eps = torch.finfo(dtype).eps
        assert stable < 50 * eps
        assert difference > 100 * stable or difference > 0.9

    def test_is_differentiable(self, seeded):
        log_a = -seeded.uniform(3, 4)
        assert torch.autograd.gradcheck(lambda a: segsum(a).exp(), log_a.requires_grad_())

    def test_refuses_what_has_no_time(self):
        with pytest.raises(ValueError, match=r"log_a: expected \(\.\.\., t\) with t >= 1"):
            segsum(torch.zeros(2, 0))


class TestForms:
    @pytest.mark.parametrize("t", LENGTHS)
    @pytest.mark.parametrize("backend", ["torch", *FORMS])
    def test_agree_at_every_length(self, backend, t):
        same(draw(2, t, h=2, p=3, g=1, n=2), backend)

    @pytest.mark.parametrize(
        ("b", "h", "p", "g", "n"),
        [(1, 1, 1, 1, 1), (3, 6, 2, 3, 4), (2, 4, 7, 4, 3), (1, 5, 3, 1, 17), (1, 2, 20, 2, 40)],
    )
    @pytest.mark.parametrize("backend", ["torch", *FORMS])
    def test_agree_at_every_shape(self, backend, b, h, p, g, n):
        same(draw(b, 37, h, p, g, n), backend)

    @pytest.mark.parametrize(
        "without", [c for k in (1, 4, 5) for c in itertools.combinations(OPTIONAL, k)]
    )
    @pytest.mark.parametrize("wide_skip", [False, True])
    def test_agree_with_and_without_each_argument(self, without, wide_skip):
        same(draw(2, 35, without=without, wide_skip=wide_skip), chunk_size=16)

    @pytest.mark.parametrize("without", [("state",), OPTIONAL])
    @pytest.mark.parametrize("backend", FORMS)
    def test_readable_ones_agree_without_arguments(self, backend, without):
        same(draw(1, 35, without=without), backend)

    @pytest.mark.parametrize("pack", PACKS)
    @pytest.mark.parametrize("without", [(), ("state",), OPTIONAL])
    def test_agree_on_packs(self, pack, without):
        same(draw(1, 70, without=without, pack=pack), chunk_size=16)

    @pytest.mark.parametrize("backend", FORMS)
    def test_readable_ones_agree_on_packs(self, backend):
        same(draw(1, 70, pack=PACKS[1]), backend)

    @pytest.mark.parametrize("chunk_size", [16, 32, 128, 256])
    def test_agree_in_chunks_of_every_size(self, chunk_size):
        same(draw(1, 270, h=2, g=1), chunk_size=chunk_size)

    def test_agree_however_the_batch_is_cut(self, monkeypatch):
        monkeypatch.setattr(chunks, "SLAB", 2000)  # two members at once
        same(draw(5, 40), chunk_size=16)

    def test_the_listing_fits_on_a_screen_and_names_four_steps(self):
        source = inspect.getsource(ssd_chunked).replace(ssd_chunked.__doc__, "")
        lines = [line.strip() for line in source.splitlines() if line.strip(' "')]
        steps = [line.split()[1] for line in lines if line.startswith("# ")]
        assert len(lines) - len(steps) <= 30
        assert steps == ["1.", "2.", "3.", "4."]

    def test_derivatives_by_finite_differences(self):
        made = draw(1, 19, 2, 2, 1, 2, pack=[0, 1, 19])
        made["A"][0] = -1  # a difference would step above 0
        leaves = [made[k].requires_grad_() for k in TENSORS]

        def f(*tensors: Tensor):
            return ssd(**made | dict(zip(TENSORS, tensors, strict=True)), chunk_size=16)

        assert torch.autograd.gradcheck(f, leaves)

    @pytest.mark.parametrize("which", [0, 1])
    def test_gradients_of_either_result_alone(self, which):
        made = draw(1, 40, without=("D", "z"))
        leaves = [made[k].requires_grad_() for k in ("x", "dt", "A", "B", "dt_bias", "state")]
        results = [ssd(**made, backend=b)[which] for b in ("torch", "reference")]
        pairs = (torch.autograd.grad(result.sum(), leaves) for result in results)
        for found, truth in zip(*pairs, strict=True):
            assert_close(found, truth)


class TestDtypes:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_of_models(self, dtype):
        """SSD end to end in half precision, forward and backward, against float64."""
        made = cast(draw(2, 257, 4, 16, 2, 16), dtype, TOKENS)
        made = cast(made, torch.float32, ("A", "D", "dt_bias", "state"))
        fast = gradients(ssd, made)
        truth = gradients(partial(ssd, backend="reference"), cast(made, torch.float64))
        for name, found in fast.items():
            wanted = dtype if name in (*TOKENS, "y") else torch.float32
            assert found.dtype == wanted, name
            assert_close(found, truth[name], name=name)

    def test_may_be_mixed(self):
        made = cast(draw(1, 9), torch.float32)
        made = cast(made, torch.bfloat16, ("x", "B")) | {"dt": made["dt"].half()}
        found = gradients(ssd, made)
        for name in TENSORS:
            assert found[name].dtype == made[name].dtype
        assert found["y"].dtype == torch.bfloat16
        assert found["last"].dtype == torch.float32
        wide = gradients(ssd, made | {"A": made["A"].double()})
        assert wide["last"].dtype == torch.float64

    def test_inputs_may_be_views(self):
        made = draw(2, 33, 4, 6)
        wide = {k: torch.cat([made[k], made[k] + 1], -1)[..., : made[k].shape[-1]] for k in "xBC"}
        turned = {k: made[k].mT.contiguous().mT for k in ("dt", "z", "state")}
        same(made | wide)
        same(made | turned)
        same(made | {"B": made["B"][:1, :1].expand(2, 33, 2, 5)})

    def test_fast_form_is_as_exact_as_the_loop(self):
        """Also after a long past, where differences of float32 sums would lose digits."""
        made = cast(draw(1, 257, 4, 8, 1, 16), torch.float32)
        made["A"] *= torch.tensor([1.0, 1, 30, 300])
        truth = gradients(partial(ssd, backend="reference"), cast(made, torch.float64))
        fast, slow = (gradients(partial(ssd, backend=b), made) for b in ("torch", "reference"))
        for name, wanted in truth.items():
            assert error(fast[name], wanted) < 2e-7 + 3 * error(slow[name], wanted), name

    def test_autocast_leaves_it_alone(self):
        made = cast(draw(1, 40), torch.float32)
        for backend in ("torch", "reference"):
            plain = gradients(partial(ssd, backend=backend), made)
            with torch.autocast("cpu", torch.bfloat16):
                found = gradients(partial(ssd, backend=backend), made)
            for name, value in plain.items():
                assert torch.equal(value, found[name]), name


class TestStates:
    @pytest.mark.parametrize("backend", ["torch", "reference"])
    @pytest.mark.parametrize("cuts", [[1], [32], [5, 6, 50]])
    def test_pieces_equal_the_whole(self, backend, cuts):
        made = draw(2, 70)
        parts, state = [], made["state"]
        for i, j in itertools.pairwise([0, *cuts, 70]):
            piece = {k: made[k][:, i:j] for k in TOKENS}
            y, state = ssd(**made | piece | {"state": state}, chunk_size=16, backend=backend)
            parts.append(y)
        whole, last = ssd(**made, backend=backend)
        assert_close(torch.cat(parts, 1), whole)
        assert_close(state, last)

    @pytest.mark.parametrize("backend", ["torch", "reference"])
    @pytest.mark.parametrize("pack", PACKS)
    @pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
    def test_packs_are_their_sequences(self, backend, pack, dtype):
        made = draw(1, 70, pack=pack)
        y, last = ssd(**made | {"cu_seqlens": torch.tensor(pack, dtype=dtype)}, backend=backend)
        for k, (i, j) in enumerate(itertools.pairwise(pack)):
            piece = {name: made[name][:, i:j] for name in TOKENS}
            piece |= {"state": made["state"][k : k + 1], "cu_seqlens": None}
            alone, end = ssd(**made | piece, backend=backend)
            assert_close(y[:, i:j], alone)
            assert_close(last[k], end[0])


class TestInvariants:
    def test_no_token_sees_the_future(self):
        made = draw(1, 70)
        later = {k: made[k].clone() for k in TOKENS}
        for v in later.values():
            v[:, 40:] += 1
        assert_close(ssd(**made | later)[0][:, :40], ssd(**made)[0][:, :40], 1e-14)

    @pytest.mark.parametrize("backend", ["torch", "reference"])
    @pytest.mark.parametrize("name", ["x", "dt"])
    def test_a_nan_spoils_its_own_sequence_only(self, backend, name):
        for made, own in ((draw(3, 40), 1), (draw(1, 40, pack=[0, 9, 30, 40]), 1)):
            rows = (own, 12) if made["cu_seqlens"] is None else (0, 12)
            made[name][rows] = float("nan")
            found = gradients(partial(ssd, backend=backend), made)
            for key in ("y", "x", "dt", "B", "C", "z"):
                hit = found[key].isnan()
                seen = hit[own] if made["cu_seqlens"] is None else hit[0, 9:30]
                assert hit.sum() == seen.sum(), key
            assert found["y"].isnan().any()
            assert found["last"][own].isnan().any()
            assert found["last"][[0, 2]].isfinite().all()
            assert found["state"][[0, 2]].isfinite().all()

    def test_same_bits_every_time(self):
        made = cast(draw(2, 100, 6, 8, 3, 16), torch.float32)
        first, second = (gradients(ssd, made) for _ in range(2))
        for name, value in first.items():
            assert torch.equal(value, second[name]), name

    def test_tiny_steps_keep_their_digits(self):
        made = cast(draw(1, 1, 5, 1, 1, 1, ("D", "z", "dt_bias", "state")), torch.float32)
        made["dt"] = torch.tensor([[[-80.0, -40.0, -17.0, -9.0, 2.0]]])
        made |= {"x": torch.ones(1, 1, 5, 1), "B": torch.ones(1, 1, 1, 1)}
        wanted = torch.log1p(made["dt"].double().exp()).flatten()
        for backend in ("torch", "reference"):
            found = ssd(**made, backend=backend)[1].flatten()
            assert ((found - wanted) / wanted).abs().max() < 1e-6

    def test_a_step_that_forgets_everything(self):
        made = draw(1, 40)
        made["A"] *= 1e4
        same(made)
        found = gradients(ssd, cast(made, torch.float32))
        assert all(value.isfinite().all() for value in found.values())

    def test_memory_is_that_of_one_chunk_and_the_states_between(self):
        b, t, h, p, n = 1, 1024, 8, 16, 16
        made = cast(draw(b, t, h, p, 1, n), torch.float32)
        y, last, saved = chunks.forward(**made, chunk_size=None, needs_grad=True)
        assert saved.numel() == (t // 64 + 1) * b * h * p * n
        square, state = 4 * b * h * t * t, 4 * b * t * h * p * n
        every = 4 * b * h * t * 64  # the matrices of all chunks
        forward = partial(chunks.forward, **made, chunk_size=None, needs_grad=True)
        back = partial(chunks.backward, y, last, **made, chunk_size=None, saved=saved)
        for f in (forward, back):
            assert peak_memory(f, device="cpu") < min(square, state, 2.5 * every)


class TestOperators:
    @pytest.mark.parametrize("without", [(), OPTIONAL])
    @pytest.mark.parametrize("pack", [None, [0, 3, 40]])
    def test_pass_opcheck(self, without, pack):
        made = cast(draw(1, 40, without=without, pack=pack), torch.float32)
        for name in TENSORS:
            if made[name] is not None:
                made[name].requires_grad_()
        args = (*made.values(), 16, "torch", True)
        torch.library.opcheck(operator._forward, args)
        y, last, saved = (v.detach() for v in operator._forward(*args))
        plain = [v.detach() if isinstance(v, Tensor) else v for v in made.values()]
        torch.library.opcheck(operator._backward, (y, last, *plain, 16, saved, "torch"))

    def test_compile_to_one_graph(self):
        made = draw(1, 40, pack=[0, 3, 40])
        compiled = torch.compile(ssd, fullgraph=True, backend="aot_eager")
        plain, found = gradients(ssd, made), gradients(compiled, made)
        for name, value in plain.items():
            assert torch.equal(value, found[name]), name

    def test_differentiate_once(self):
        made = draw(1, 5)
        x = made["x"].requires_grad_()
        (grad,) = torch.autograd.grad(ssd(**made)[0].sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match=r"backward through ssmlib\.ssd_backward"):
            grad.sum().backward()


class TestOneToken:
    @staticmethod
    def token(made: dict, i: int) -> dict:
        taken = {k: made[k][:, i] for k in TOKENS if made[k] is not None}
        return {k: v for k, v in (made | taken).items() if k != "cu_seqlens"}

    @pytest.mark.parametrize("without", [(), ("D", "z", "dt_bias", "dt_softplus")])
    @pytest.mark.parametrize("wide_skip", [False, True])
    def test_after_token_is_the_whole(self, without, wide_skip):
        made = draw(2, 20, without=without, wide_skip=wide_skip)
        y, last = ssd(**made)
        state, held, steps = made["state"], made["state"].clone(), []
        for i in range(20):
            token = self.token(made, i)
            step, state = ssd_step(**token | {"state": state})
            assert_close(ssd_step_(**token | {"state": held}), step, 1e-14)
            assert_close(held, state, 1e-14)
            steps.append(step)
        assert_close(torch.stack(steps, 1), y)
        assert_close(state, last)

    def test_in_half_precision(self):
        made = cast(draw(2, 1, 4, 8), torch.bfloat16, TOKENS)
        made = cast(made, torch.float32, ("A", "D", "dt_bias", "state"))
        y, last = ssd(**made)
        step, state = ssd_step(**self.token(made, 0))
        assert (step.dtype, state.dtype) == (torch.bfloat16, torch.float32)
        assert_close(step, y[:, 0])
        assert_close(state, last, 1e-6)

    def test_has_gradients(self):
        made = draw(2, 1)
        leaves = {k: made[k].requires_grad_() for k in TENSORS}
        results = [ssd(**made), ssd_step(**self.token(made, 0))]
        losses = [y.sum() + last.square().sum() for y, last in results]
        grads = [torch.autograd.grad(loss, list(leaves.values())) for loss in losses]
        for name, found, wanted in zip(TENSORS, *grads, strict=True):
            assert_close(found, wanted, name=name)

    def test_in_place_refuses_gradients(self):
        token = self.token(draw(2, 1), 0)
        token["x"].requires_grad_()
        with pytest.raises(ValueError, match="state: expected no gradients"):
            ssd_step_(**token)
        with torch.no_grad():
            ssd_step_(**token)

    def test_in_place_refuses_to_narrow(self):
        token = self.token(draw(2, 1), 0)
        with pytest.raises(ValueError, match=r"state: expected dtype torch.float64 \(the widest"):
            ssd_step_(**token | {"state": token["state"].float()})

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"x": torch.zeros(2, 1, 4, 3)}, r"x: expected \(b, h, p\), got shape \(2, 1, 4, 3\)"),
            ({"B": torch.zeros(2, 5)}, r"B: expected \(b, g, n\), got shape \(2, 5\)"),
            ({"state": None}, r"state: expected a tensor \(b, h, p, n\), got NoneType"),
            ({"state": torch.zeros(2, 4, 3, 5).half()}, "state: expected dtype float32 or float64"),
            ({"A": torch.ones(4)}, "A: expected values <= 0, got 1"),
            ({"z": torch.zeros(2, 4, 3).long()}, "z: expected a floating point tensor"),
        ],
    )
    def test_refuses(self, change, message):
        token = self.token(draw(2, 1), 0)
        for f in (ssd_step, ssd_step_):
            with pytest.raises(ValueError, match=message):
                f(**token | change)


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"A": torch.full((4,), 0.5)}, "A: expected values <= 0, got 0.5"),
            ({"A": torch.full((4,), float("nan"))}, "A: expected values <= 0, got nan"),
            ({"A": -torch.ones(4, 5)}, r"A: expected \(h,\), got shape \(4, 5\)"),
            ({"A": -torch.ones(3)}, r"A: expected \(h,\) with h=4 \(from x\), got shape \(3,\)"),
            ({"dt": torch.zeros(2, 9, 5)}, r"dt: expected \(b, t, h\) with h=4 \(from x\)"),
            ({"x": torch.zeros(2, 9, 4)}, r"x: expected \(b, t, h, p\), got shape \(2, 9, 4\)"),
            ({"x": torch.zeros(2, 0, 4, 3)}, r"x: expected \(b, t, h, p\) with t >= 1"),
            ({"x": torch.zeros(2, 9, 4, 3).long()}, "x: expected a floating point tensor, got"),
            ({"C": torch.zeros(2, 9, 3, 5)}, r"C: expected \(b, t, g, n\) with g=2 \(from B\)"),
            ({"C": torch.zeros(2, 9, 2, 4)}, r"C: expected \(b, t, g, n\) with n=5 \(from B\)"),
            ({k: torch.zeros(2, 9, 3, 5) for k in "BC"}, "B: expected g groups that divide h=4"),
            ({"D": torch.zeros(5)}, r"D: expected \(h,\) with h=4 \(from x\), got shape \(5,\)"),
            ({"D": torch.zeros(4, 2)}, r"D: expected \(h, p\) with p=3 \(from x\), got shape"),
            ({"dt_bias": torch.zeros(4).int()}, "dt_bias: expected a floating point tensor"),
            ({"state": torch.zeros(1, 4, 3, 5)}, r"state: expected \(b, h, p, n\) with b=2"),
            ({"state": torch.zeros(2, 4, 5, 3)}, r"state: expected \(b, h, p, n\) with p=3"),
            ({"state": torch.zeros(2, 4, 3, 5).half()}, "state: expected dtype float32 or float64"),
            ({"z": 3}, r"z: expected a tensor \(b, t, h, p\), got int"),
            ({"backend": "cuda"}, "backend: expected one of auto, .*, torch, triton, got 'cuda'"),
            ({"chunk_size": 48}, "chunk_size: expected None or one of 16, 32, 64, 128, 256, got 4"),
            ({"chunk_size": 512}, "chunk_size: expected None or one of .*, got 512"),
            ({"chunk_size": True}, "chunk_size: expected None or one of .*, got True"),
            ({"cu_seqlens": torch.tensor([0, 9])}, "x: expected b=1 with cu_seqlens, got b=2"),
        ],
    )
    def test_name_what_came(self, change, message):
        with pytest.raises(ValueError, match=message):
            ssd(**draw(2, 9) | change)

    @pytest.mark.parametrize(
        ("cu_seqlens", "message"),
        [
            ([1, 9], "cu_seqlens: expected 0 first, got 1"),
            ([0, 4, 4, 9], "expected boundaries that increase, got 4 and 4 at 1 and 2"),
            ([0, 8], r"cu_seqlens: expected t=9 \(from x\) last, got 8"),
            ([0], r"cu_seqlens: expected \(s\+1,\) with s >= 1, got shape \(1,\)"),
            ([0.0, 9.0], "cu_seqlens: expected dtype int32 or int64, got dtype torch.float32"),
        ],
    )
    def test_of_packs(self, cu_seqlens, message):
        made = draw(1, 9, without=("state",))
        with pytest.raises(ValueError, match=message):
            ssd(**made | {"cu_seqlens": torch.tensor(cu_seqlens)})

    def test_of_a_state_that_has_not_a_row_for_each_sequence(self):
        with pytest.raises(ValueError, match=r"state: expected s=2 sequences \(from cu_seqlens\)"):
            ssd(**draw(1, 9) | {"cu_seqlens": torch.tensor([0, 4, 9])})

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"log_a": torch.zeros(1, 9, 2)}, r"log_a: expected \(b, t, h\) with h=4 \(from x\)"),
            ({"state": torch.zeros(1, 4, 5, 3)}, r"state: expected \(b, h, p, n\) with p=3"),
            ({k: torch.zeros(1, 9, 3, 5) for k in "BC"}, "B: expected g groups that divide h=4"),
            ({"chunk_size": 0}, "chunk_size: expected a whole number >= 1, got 0"),
        ],
    )
    def test_of_the_listing(self, change, message):
        made = draw(1, 9)
        args = {k: made[k] for k in ("x", "B", "C", "state")} | {"log_a": -made["dt"].exp()}
        with pytest.raises(ValueError, match=message):
            ssd_chunked(**args | change)
