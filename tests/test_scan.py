"""ssmlib.scan: the fast form equals the definition, and pieces equal the whole."""

import pytest
import torch
from agreement import TOLERANCE, assert_close, assert_same
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmlib.scan import _scan, _scan_backward, scan

LENGTHS = [1, 2, 3, 63, 64, 65, 130, 257]


def scan_of_pairs(a, x, state=None, backend="auto"):
    """With pairs of real numbers for complex ones, so that gradients are compared too."""
    parts = [None if v is None else torch.view_as_complex(v) for v in (a, x, state)]
    return [torch.view_as_real(out) for out in scan(*parts, backend=backend)]


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("t", LENGTHS)
def test_the_fast_form_equals_the_definition(t, start, is_complex, seeded):
    f = scan_of_pairs if is_complex else scan
    pair = (2,) if is_complex else ()
    a, x = seeded.normal(2, t, 5, *pair) / 2, seeded.normal(2, t, 5, *pair)
    state = seeded.normal(2, 5, *pair) if start else None
    assert_same(f, (a, x, state), backend="torch", reference="reference")


def test_the_definition_by_hand():
    a, x = torch.tensor([[0.5, 2.0, -1.0]]), torch.tensor([[1.0, 1.0, 4.0]])
    for backend in ("reference", "torch"):
        h, last = scan(a, x, torch.tensor([2.0]), backend)
        assert h.tolist() == [[2.0, 5.0, -1.0]]
        assert last.tolist() == [-1.0]


@given(st.integers(1, 3), st.integers(1, 200), st.integers(1, 9), st.booleans())
@settings(max_examples=30, deadline=None)
def test_any_shape(b, t, d, start):
    generator = torch.Generator().manual_seed(t)
    a, x, state = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((b, t, d), (b, t, d), (b, d))
    )
    assert_same(scan, (a / 2, x, state if start else None), backend="torch", reference="reference")


@pytest.mark.parametrize("shape", [(), (5,), (7, 1, 1), (2, 1, 1, 5), (1, 7, 3, 1), (2, 7, 3, 5)])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_a_broadcasts_and_its_gradient_is_added_up(shape, backend, seeded):
    a, x = seeded.uniform(1, *shape)[0].requires_grad_(), seeded.normal(2, 7, 3, 5)
    full = a.detach().expand(x.shape).clone().requires_grad_()
    weights = seeded.normal(*x.shape)
    (got,) = torch.autograd.grad((scan(a, x, backend=backend)[0] * weights).sum(), a)
    (want,) = torch.autograd.grad((scan(full, x, backend="reference")[0] * weights).sum(), full)
    assert_close(got, want.sum_to_size(shape))


@pytest.mark.parametrize("is_complex", [False, True])
def test_gradients_by_differences(is_complex, seeded):
    dtype = torch.complex128 if is_complex else torch.float64
    a, x, state = (seeded.normal(*s).to(dtype) for s in ((2, 9, 2), (2, 9, 2), (2, 2)))
    if is_complex:
        a, x, state = (v * torch.exp(1j * v.real) for v in (a, x, state))
    assert torch.autograd.gradcheck(scan, [v.requires_grad_() for v in (a / 2, x, state)])


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_pieces_equal_the_whole(backend, seeded):
    a, x = seeded.uniform(2, 130, 3), seeded.normal(2, 130, 3)
    whole, last = scan(a, x, backend=backend)
    state, pieces = None, []
    for size in (slice(0, 1), slice(1, 64), slice(64, 130)):
        h, state = scan(a[:, size], x[:, size], state, backend)
        pieces.append(h)
    assert_close(torch.cat(pieces, dim=1), whole)
    assert_close(state, last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype, seeded):
    a, x, state = seeded.uniform(2, 130, 3), seeded.normal(2, 130, 3), seeded.normal(2, 3).float()
    a, x = a.to(dtype), x.to(dtype)
    h, last = scan(a, x, state)
    want, want_last = scan(a.double(), x.double(), state.double(), "reference")
    assert (h.dtype, last.dtype) == (dtype, torch.float32)
    assert_close(h, want, TOLERANCE[dtype])
    assert_close(last, want_last)  # never rounded to the dtype of h on the way
    assert_same(
        scan, (a, x, state), backend="torch", reference="reference", tolerance=2 * TOLERANCE[dtype]
    )


def test_mixed_dtypes_promote(seeded):
    a, x = seeded.uniform(1, 9, 2).float(), seeded.normal(1, 9, 2).bfloat16().requires_grad_()
    h, last = scan(a, x)
    assert (h.dtype, last.dtype) == (torch.float32, torch.float32)
    assert torch.autograd.grad(h.sum(), x)[0].dtype == torch.bfloat16
    h, last = scan(a * 1j, x, seeded.normal(1, 2))
    assert (h.dtype, last.dtype) == (torch.complex64, torch.complex128)


def test_strides_do_not_matter(seeded):
    a, x = seeded.uniform(3, 2, 65).permute(1, 2, 0), seeded.normal(2, 65, 6)[:, :, ::2]
    assert_same(scan, (a, x, None), backend="torch", reference="reference")
    assert_close(scan(a, x)[0], scan(a.contiguous(), x.contiguous(), backend="reference")[0])


def test_a_nan_stays_in_its_channel_and_after(seeded):
    a, x = seeded.uniform(2, 40, 3), seeded.normal(2, 40, 3)
    x[1, 17, 2] = float("nan")
    bad = scan(a, x)[0].isnan()
    assert bad[1, 17:, 2].all()
    assert bad.sum() == 40 - 17


def test_is_a_custom_operator(seeded):
    a, x, state = seeded.uniform(2, 9, 3), seeded.normal(2, 9, 3), seeded.normal(2, 3)
    torch.library.opcheck(_scan, [v.requires_grad_() for v in (a, x, state)] + ["torch"])
    a, x, state = (v.detach() for v in (a, x, state))
    for start in (None, state):
        args = (x, state, a, x, start, torch.float64, "torch")
        torch.library.opcheck(_scan_backward, args)
    compiled = torch.compile(scan, fullgraph=True, backend="aot_eager")
    assert_close(compiled(a, x, state)[0], scan(a, x, state)[0])


def test_refusals(seeded):
    x, state = seeded.normal(2, 3, 5), seeded.normal(2, 5)
    a = torch.ones(5).double()
    with pytest.raises(ValueError, match=r"a: expected a shape that broadcasts to \(2, 3, 5\)"):
        scan(torch.ones(4), x)
    with pytest.raises(ValueError, match=r"a: expected a shape that broadcasts .*got shape \(3, 2"):
        scan(torch.ones(3, 2, 3, 5), x)
    with pytest.raises(ValueError, match=r"state: expected \(b, d\) with d=5 \(from x\), got"):
        scan(a, x, state[:, :4])
    with pytest.raises(ValueError, match=r"x: expected \(b, t, d\) with t >= 1"):
        scan(a, x[:, :0])
    with pytest.raises(ValueError, match=r"x: expected \(b, t, \.\.\.\) with up to three more"):
        scan(a, x[0, 0])
    with pytest.raises(ValueError, match="x: expected a real or complex floating point tensor"):
        scan(a, x.long())
    with pytest.raises(ValueError, match="a: expected a real or complex floating point tensor"):
        scan(a.bool(), x)
    with pytest.raises(ValueError, match=r"state: expected dtype float32 or wider, got .*16"):
        scan(a, x, state.bfloat16())
    with pytest.raises(ValueError, match=r"state: expected real numbers \(from a and x\)"):
        scan(a, x, state + 0j)
    with pytest.raises(ValueError, match="backend: expected one of auto, reference, torch, triton"):
        scan(a, x, backend="cuda")


def test_triton_needs_a_gpu(monkeypatch, seeded):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="backend: 'triton' needs CUDA tensors, got device cpu"):
        scan(torch.ones(5), seeded.normal(2, 3, 5), backend="triton")
