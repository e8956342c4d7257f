"""discretize: against SciPy, an ODE solver, the orders theory gives, and at the edges."""

import math
import re
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from agreement import assert_close, error
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from scipy.signal import cont2discrete, dlsim

from ssmlib.discretize import (
    METHODS,
    bilinear,
    euler,
    exponential_euler,
    kernel,
    method,
    pairs,
    phi1,
    recurrence,
    trapezoid,
    zoh,
    zoh_diagonal,
)

RULES = {**METHODS, "trapezoid": trapezoid}
DOUBLE_INTEGRATOR = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
SPRING = torch.tensor([[0.0, 1.0], [-4.0, -0.4]], dtype=torch.float64)
PUSH = torch.tensor([[0.0], [1.0]], dtype=torch.float64)


def stable(seeded, n, m):
    """A random system with eigenvalues left of -0.2, and its input matrix."""
    A = seeded.normal(n, n)
    shift = torch.linalg.eigvals(A).real.max() + 0.2
    return A - shift * torch.eye(n, dtype=A.dtype), seeded.normal(n, m)


# Foreign: SciPy


@pytest.mark.parametrize("n", [1, 2, 5, 16])
@pytest.mark.parametrize("dt", [0.0, 1e-3, 0.1, 1.0])
@pytest.mark.parametrize(
    ("rule", "theirs"), [(zoh, "zoh"), (bilinear, "bilinear"), (euler, "euler")]
)
def test_agrees_with_scipy(rule, theirs, n, dt, seeded):
    A, B = stable(seeded, n, 3)
    other = cont2discrete((A.numpy(), B.numpy(), np.eye(n), np.zeros((n, 3))), dt, method=theirs)
    for ours, name, want in zip(rule(A, B, dt), ("A_bar", "B_bar"), other, strict=False):
        assert_close(ours, torch.from_numpy(want), 1e-12, name)


@pytest.mark.parametrize("dt", [1e-6, 0.5, 30.0])
def test_zoh_of_a_singular_system(dt):
    A_bar, B_bar = zoh(DOUBLE_INTEGRATOR, PUSH, dt)  # force on a free mass: x = t²/2, v = t
    assert_close(A_bar, torch.tensor([[1.0, dt], [0.0, 1.0]], dtype=torch.float64), 1e-14)
    assert_close(B_bar, torch.tensor([[dt**2 / 2], [dt]], dtype=torch.float64), 1e-14)
    theirs = cont2discrete((DOUBLE_INTEGRATOR.numpy(), PUSH.numpy(), np.eye(2), [[0], [0]]), dt)
    assert_close(B_bar, torch.from_numpy(theirs[1]), 1e-12)


def test_zoh_of_a_zero_matrix_is_a_sum():
    A_bar, B_bar = zoh(torch.zeros(3, 3), torch.ones(3, 2), 0.25)
    assert torch.equal(A_bar, torch.eye(3))
    assert torch.equal(B_bar, torch.full((3, 2), 0.25))


def test_zoh_of_a_stiff_matrix():
    n = 32  # eigenvalues -1 .. -32 and a far from normal matrix
    order = torch.arange(n, dtype=torch.float64)
    weight = (2 * order + 1).sqrt()
    A = -torch.tril(torch.outer(weight, weight), -1) - torch.diag(order + 1)
    B = weight[:, None]
    A_bar, B_bar = zoh(A, B, 1.0)
    block = torch.cat([torch.cat([A, B], 1), torch.zeros(1, n + 1, dtype=torch.float64)])
    want = torch.from_numpy(expm(block.numpy()))
    assert_close(A_bar, want[:n, :n], 1e-10)
    assert_close(B_bar, want[:n, n:], 1e-10)


def test_recurrence_is_scipy_one_index_later(seeded):
    """SciPy's y_t looks at h before token t, ours after it: the same states, one apart."""
    A, B = stable(seeded, 4, 2)
    C, x = seeded.normal(3, 4), seeded.normal(1, 12, 2)
    A_bar, B_bar = zoh(A, B, 0.3)
    y, state = recurrence(A_bar, B_bar, C, None, x)
    system = (A_bar.numpy(), B_bar.numpy(), C.numpy(), np.zeros((3, 2)), 0.3)
    _, theirs, _ = dlsim(system, x[0].numpy())
    assert_close(y[0, :-1], torch.from_numpy(theirs[1:]), 1e-12)
    assert_close(y[:, -1], state @ C.mT, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("angle", [1e-9, 0.04, 0.3, 0.5, 1.0, 20.0])
def test_the_exponential_of_a_rotation(angle, dtype):
    """0.04 in float64 and 0.5 in float32 are where torch.linalg.matrix_exp has been wrong."""
    turn = torch.tensor([[0.0, -angle], [angle, 0.0]], dtype=dtype)
    A_bar, _ = zoh(turn, torch.ones(2, 1, dtype=dtype), 1.0)
    exact = turn.double()[1, 0]
    want = torch.stack([exact.cos(), -exact.sin(), exact.sin(), exact.cos()]).view(2, 2)
    assert_close(A_bar, want, 64 * torch.finfo(dtype).eps)


def test_steps_of_very_different_size_keep_their_digits():
    dt = torch.tensor([1e-9, 1e-3, 1.0, 300.0], dtype=torch.float64)
    A = torch.diag(torch.tensor([-1.0, -0.01], dtype=torch.float64))
    A_bar, B_bar = zoh(A, torch.ones(2, 1, dtype=torch.float64), dt)
    a_bar, b_bar = zoh_diagonal(A.diagonal(), torch.ones(2, dtype=torch.float64), dt[:, None])
    assert torch.allclose(A_bar.diagonal(dim1=1, dim2=2), a_bar, rtol=1e-11, atol=0)
    assert torch.allclose(B_bar[..., 0], b_bar, rtol=1e-12, atol=0)


def test_a_fast_mode_does_not_freeze_a_slow_one():
    """|dt A| past 2^128, where 2^s in another dtype was infinite, and past 1 / eps."""
    for dtype, fast in ((torch.float32, -1e38), (torch.float64, -1e40), (torch.float64, -1.7e308)):
        rates = torch.tensor([fast, -1e5, -30.0, -1.0, 0.0], dtype=dtype)
        ones = torch.ones(5, dtype=dtype)
        want = zoh_diagonal(rates, ones, 1.0)
        A_bar, B_bar = zoh(torch.diag(rates), ones[:, None], 1.0)
        assert torch.equal(A_bar, exponential_euler(torch.diag(rates), ones[:, None], 1.0)[0])
        close = {"rtol": 256 * torch.finfo(dtype).eps, "atol": torch.finfo(dtype).tiny}
        torch.testing.assert_close(A_bar, torch.diag(want[0]), **close)
        torch.testing.assert_close(B_bar[:, 0], want[1], **close)
        assert zoh(rates[:1, None], ones[:1, None], 1.0)[0] == 0


@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float32, 1e4), (torch.float32, 3e38), (torch.float64, 1e8), (torch.float64, 1e-300)],
)
def test_the_size_of_b_does_not_matter(dtype, size):
    A, B = torch.tensor([[-1.0]], dtype=dtype), torch.tensor([[size, -size]], dtype=dtype)
    A_bar, B_bar = zoh(A, B, 1.0)
    eps = torch.finfo(dtype).eps
    assert A_bar.item() == pytest.approx(math.exp(-1), rel=4 * eps)
    assert (B_bar / B).tolist() == [[pytest.approx(-math.expm1(-1), rel=4 * eps)] * 2]


def test_stiffness_costs_digits_as_the_docstring_says(seeded):
    rates = -torch.logspace(0, 4, 8, dtype=torch.float64)
    turn = torch.linalg.qr(seeded.normal(8, 8))[0]
    A, want = (turn @ torch.diag(z) @ turn.mT for z in (rates, rates.exp()))
    eps = torch.finfo(torch.float32).eps
    assert error(zoh(A.float(), torch.ones(8, 1), 1.0)[0].double(), want) < 1e4 * eps


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_default_dtype_changes_nothing(rule):
    A, B = -torch.eye(2), torch.ones(2, 1)
    want = rule(A, B, 0.3)
    torch.set_default_dtype(torch.float64)
    try:
        for out, same in zip(rule(A, B, 0.3), want, strict=True):
            assert out.dtype == torch.float32
            assert torch.equal(out, same)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("dt", [np.float32(0.5), np.float64(0.5), np.int64(2), 2])
def test_steps_as_numpy_numbers(rule, dt):
    A, B = -torch.eye(2, requires_grad=True), torch.ones(2, 1)
    for out, same in zip(rule(A, B, dt), rule(A, B, float(dt)), strict=True):
        assert torch.equal(out, same)
    assert torch.equal(zoh_diagonal(A, A, dt)[1], zoh_diagonal(A, A, float(dt))[1])


# Exactness and orders


def test_zoh_on_an_irregular_grid_is_the_ode(seeded):
    """eq-ode, eq-zoh: with x held, a step of any length is the solution."""
    x = seeded.normal(1, 9, 1)
    dt = seeded.uniform(9, low=0.05, high=2.0)
    A_bar, B_bar = zoh(SPRING, PUSH, dt)
    assert A_bar.shape == (9, 2, 2)
    assert B_bar.shape == (9, 2, 1)
    h, _ = recurrence(A_bar, B_bar, torch.eye(2, dtype=torch.float64), None, x)
    state = np.zeros(2)
    for i in range(9):
        push = PUSH.numpy()[:, 0] * x[0, i, 0].item()
        solved = solve_ivp(
            lambda _, z, push=push: SPRING.numpy() @ z + push,
            (0, dt[i].item()), state, method="DOP853", rtol=1e-12, atol=1e-12,
        )  # fmt: skip
        state = solved.y[:, -1]
        assert_close(h[0, i], torch.from_numpy(state), 1e-10)


def test_the_step_is_the_integral():
    """eq-step: an input that moves during the step, by quadrature, is where the solver lands."""
    dt, start = 0.7, torch.tensor([0.3, -0.2], dtype=torch.float64)
    nodes, weights = np.polynomial.legendre.leggauss(20)
    h = zoh(SPRING, PUSH, dt)[0] @ start
    for node, weight in zip(nodes, weights, strict=True):
        s = dt * (node + 1) / 2
        h = h + dt / 2 * weight * zoh(SPRING, PUSH, dt - s)[0] @ PUSH[:, 0] * math.cos(s)
    solved = solve_ivp(
        lambda t, z: SPRING.numpy() @ z + PUSH.numpy()[:, 0] * math.cos(t),
        (0, dt), start.numpy(), method="DOP853", rtol=1e-12, atol=1e-12,
    )  # fmt: skip
    assert_close(h, torch.from_numpy(solved.y[:, -1]), 1e-10)


def test_two_half_steps_are_one_step(seeded):
    """eq-resample: true of the zero-order hold, and of no other rule."""
    A, B = stable(seeded, 4, 2)
    for name, rule in METHODS.items():
        (A_half, B_half), (A_bar, B_bar) = rule(A, B, 0.2), rule(A, B, 0.4)
        off = max(error(A_half @ A_half, A_bar), error(A_half @ B_half + B_half, B_bar))
        assert (off < 1e-12) == (name == "zoh")


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_steps_given_together_are_steps_given_one_by_one(rule, seeded):
    A, B = stable(seeded, 3, 2)
    dt = seeded.uniform(5, low=0.0, high=0.5)
    together = rule(A, B, dt)
    for i, step in enumerate(dt):
        for both, one in zip(together, rule(A, B, step), strict=True):
            assert_close(both[i], one, 1e-13)


def solve_with(rule, count, x):
    """The spring at time 2, driven by x(t), in `count` steps; each token is x at its step's end."""
    dt = 2.0 / count
    time = torch.arange(1, count + 1, dtype=torch.float64) * dt
    tokens = x(time)[None, :, None]
    if rule is trapezoid:
        tokens = pairs(tokens, x(torch.zeros(1, 1, dtype=torch.float64)))
    return recurrence(*rule(SPRING, PUSH, dt), torch.eye(2, dtype=torch.float64), None, tokens)[1]


@pytest.mark.parametrize(
    ("name", "held", "smooth"),
    [
        ("euler", 1, 1),
        ("exponential_euler", 1, 1),
        ("bilinear", 2, 1),
        ("zoh", math.inf, 1),
        ("trapezoid", 2, 2),
    ],
)
def test_order_of_accuracy(name, held, smooth):
    """Global order: of a held input, and of a moving one that each token samples at its end."""
    counts = [64, 128, 256, 512]
    for x, want in [(torch.ones_like, held), (torch.cos, smooth)]:
        truth = solve_ivp(
            lambda t, z, x=x: SPRING.numpy() @ z + PUSH.numpy()[:, 0] * x(torch.tensor(t)).item(),
            (0, 2), np.zeros(2), method="DOP853", rtol=1e-13, atol=1e-13,
        ).y[:, -1]  # fmt: skip
        errors = [error(solve_with(RULES[name], c, x)[0], torch.from_numpy(truth)) for c in counts]
        if want == math.inf:
            assert max(errors) < 1e-11
        else:
            order = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
            assert order == pytest.approx(want, abs=0.1)


def test_what_doubling_b_bar_costs():
    """eq-exponential-euler against eq-zoh at a = -1: the numbers the chapter quotes."""
    dt = torch.tensor([0.001, 0.1, 1.0, 5.0], dtype=torch.float64)
    exact = zoh_diagonal(torch.tensor(-1.0, dtype=torch.float64), torch.tensor(1.0).double(), dt)[1]
    want = torch.tensor([0.0005, 0.0508, 0.582, 4.034], dtype=torch.float64)
    assert_close(dt / exact - 1, want, 1e-3)


def test_trapezoid_with_all_weight_at_the_end_is_exponential_euler(seeded):
    A, B = stable(seeded, 3, 2)
    A_bar, B_bar = trapezoid(A, B, 0.3, weight=1.0)
    assert torch.equal(B_bar[:, :2], torch.zeros_like(B))
    assert torch.equal(
        torch.cat([A_bar, B_bar[:, 2:]], 1), torch.cat(exponential_euler(A, B, 0.3), 1)
    )


def test_trapezoid_at_a_fixed_step_is_exponential_euler_with_another_feedthrough(seeded):
    A, B = stable(seeded, 3, 2)
    C, x, dt, weight = seeded.normal(2, 3), seeded.normal(1, 9, 2), 0.3, 0.7
    y, _ = recurrence(*trapezoid(A, B, dt, weight), C, None, pairs(x))
    same, _ = recurrence(*exponential_euler(A, B, dt), C, -(1 - weight) * dt * C @ B, x)
    assert_close(y, same, 1e-13)


def test_trapezoid_takes_a_weight_per_step(seeded):
    A, B = stable(seeded, 3, 1)
    dt, weight = seeded.uniform(4), seeded.uniform(4)
    A_bar, B_bar = trapezoid(A, B, dt, weight)
    for i in range(4):
        one = trapezoid(A, B, dt[i], weight[i].item())
        assert_close(A_bar[i], one[0], 1e-13)
        assert_close(B_bar[i], one[1], 1e-13)
    assert trapezoid(A, B, 0.1, weight)[1].shape == (4, 3, 2)


# The diagonal case and phi1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
def test_diagonal_is_the_dense_system_of_a_diagonal_matrix(dtype, seeded):
    a = -seeded.uniform(6, high=3.0)
    a = torch.complex(a, seeded.normal(6)) if dtype.is_complex else a
    a, b = a.to(dtype), seeded.normal(6).to(dtype)
    a_bar, b_bar = zoh_diagonal(a, b, 0.7)
    A_bar, B_bar = zoh(torch.diag(a), b[:, None], 0.7)
    assert a_bar.dtype == A_bar.dtype == dtype
    tolerance = 1e-5 if torch.finfo(dtype).bits == 32 else 1e-12
    assert_close(torch.diag(a_bar), A_bar, tolerance)
    assert_close(b_bar, B_bar[:, 0], tolerance)


def reference_phi1(z):
    """phi1(z) and its derivative for real z: Taylor series in 60 decimal digits."""
    with localcontext(prec=60):
        z, term, value, slope = Decimal(z), Decimal(1), Decimal(0), Decimal(0)
        for k in range(150):  # term = z^k / (k + 1)!
            value += term
            slope += term * (k + 1) / (k + 2)
            term *= z / (k + 2)
        return float(value), float(slope)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_phi1_and_its_gradient_keep_their_digits(dtype):
    size = np.concatenate([np.logspace(-12, 1.3, 60), [0.499999, 0.5, 0.500001]])
    z = torch.tensor([*size, *-size, 0.0], dtype=dtype, requires_grad=True)
    out = phi1(z)
    out.sum().backward()
    want = np.array([reference_phi1(float(v)) for v in z.detach().double()])
    eps = torch.finfo(dtype).eps
    assert np.abs(out.detach().double().numpy() / want[:, 0] - 1).max() < 4 * eps
    assert np.abs(z.grad.double().numpy() / want[:, 1] - 1).max() < 32 * eps
    assert out[-1] == 1
    assert z.grad[-1] == 0.5


@pytest.mark.parametrize("size", [1e-7, 1e-3, 0.45, 0.55, 5.0])
def test_phi1_of_complex_numbers(size):
    angle = torch.linspace(0.1, 6.2, 13, dtype=torch.float64)
    z = torch.polar(torch.full_like(angle, size), angle)
    want = torch.from_numpy(np.array([expm(np.array([[v, 1], [0, 0]]))[0, 1] for v in z.numpy()]))
    assert_close(phi1(z), want, 1e-13)
    assert_close(phi1(z.to(torch.complex64)), want, 1e-6)


def test_phi1_far_out():
    z = torch.tensor([-1e30, -1e4, 80.0], requires_grad=True)
    out = phi1(z)
    out.sum().backward()
    assert out[0].item() == pytest.approx(1e-30, rel=1e-6)
    assert z.grad.isfinite().all()
    assert phi1(torch.tensor(1e4)) == math.inf


def test_a_tiny_step_still_lets_the_token_in():
    a_bar, b_bar = zoh_diagonal(torch.tensor(-1.0), torch.tensor(2.0), 1e-9)
    assert b_bar.item() == pytest.approx(2e-9, rel=1e-6)
    assert a_bar == 1


@pytest.mark.parametrize("a", [0.0, -1e-30, -1e-8, -1.0, -1e4, 3.0])
@pytest.mark.parametrize("dt", [0.0, 1e-8, 0.1, 10.0])
def test_gradients_are_finite_everywhere(a, dt):
    inputs = [torch.tensor(v, requires_grad=True) for v in (a, 1.5, dt)]
    sum(zoh_diagonal(*inputs)).backward()
    assert all(x.grad.isfinite() for x in inputs)


def test_gradient_at_a_zero():
    a = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    b_bar = zoh_diagonal(a, torch.ones(1, dtype=torch.float64), 0.5)[1]
    b_bar.backward()
    assert a.grad.item() == pytest.approx(0.5**2 / 2)  # d/da of dt phi1(a dt)


def test_diagonal_broadcasts_a_step_per_token(seeded):
    a, b = -seeded.uniform(3, 4), seeded.normal(2, 5, 1, 4)  # (d n) and (b t 1 n)
    dt = seeded.uniform(2, 5, 3, 1)  # (b t d 1)
    a_bar, b_bar = zoh_diagonal(a, b, dt)
    assert a_bar.shape == b_bar.shape == (2, 5, 3, 4)
    one = zoh_diagonal(a[1, 2], b[1, 4, 0, 2], dt[1, 4, 1, 0])
    assert_close(torch.stack([a_bar[1, 4, 1, 2], b_bar[1, 4, 1, 2]]), torch.stack(one), 1e-14)


# Derivatives, tracing


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_dense_gradients(rule, seeded):
    A, B = stable(seeded, 3, 2)
    dt = seeded.uniform(2, low=0.1, high=0.4)
    assert torch.autograd.gradcheck(rule, [x.requires_grad_() for x in (A, B, dt)])


def test_trapezoid_weight_gradient(seeded):
    A, B = stable(seeded, 2, 1)
    weight = torch.tensor([0.3, 0.6], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: trapezoid(A, B, 0.3, w), [weight])


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_diagonal_gradients(dtype):
    a = torch.tensor([0.0, -1e-3, -0.6, -2.0], dtype=dtype, requires_grad=True)
    b = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=dtype, requires_grad=True)
    dt = torch.tensor([0.3, 0.7, 1.1, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(zoh_diagonal, [a, b, dt])
    assert torch.autograd.gradgradcheck(zoh_diagonal, [a, b, dt])


def test_recurrence_and_kernel_gradients(seeded):
    A_bar, B_bar = (0.3 * seeded.normal(2, 3, 3)).requires_grad_(), seeded.normal(2, 3, 1)
    C, D, x, state = (
        seeded.normal(2, 3),
        seeded.normal(2, 1),
        seeded.normal(2, 2, 1),
        seeded.normal(2, 3),
    )
    inputs = [z.requires_grad_() for z in (A_bar, B_bar, C, D, x, state)]
    assert torch.autograd.gradcheck(recurrence, inputs)
    fixed = [z.detach()[0].requires_grad_() for z in (A_bar, B_bar)]
    assert torch.autograd.gradcheck(lambda a, b, c: kernel(a, b, c, 3), [*fixed, C])


def test_zoh_diagonal_traces_whole(seeded):
    a, b, dt = -seeded.uniform(3), seeded.normal(4, 3), seeded.uniform(4, 1)
    traced = torch.compile(zoh_diagonal, backend="aot_eager", fullgraph=True)
    for out, want in zip(traced(a, b, dt), zoh_diagonal(a, b, dt), strict=True):
        assert_close(out, want, 1e-14)


@pytest.mark.parametrize("dt", [0.3, 2])
def test_zoh_diagonal_traces_with_a_number_for_a_step(dt, seeded):
    traced = torch.compile(zoh_diagonal, backend="eager", fullgraph=True, dynamic=True)
    a, b = -seeded.uniform(5), seeded.normal(5)
    for out, want in zip(traced(a, b, dt), zoh_diagonal(a, b, dt), strict=True):
        assert_close(out, want, 1e-14)


# The discrete views


@pytest.mark.parametrize("length", [1, 2, 3, 63])
def test_recurrence_is_the_convolution_with_its_kernel(length, seeded):
    """eq-recurrence and eq-kernel are one function."""
    A_bar, B_bar = zoh(*stable(seeded, 5, 2), 0.4)
    C, D, x = seeded.normal(3, 5), seeded.normal(3, 2), seeded.normal(2, length, 2)
    y, _ = recurrence(A_bar, B_bar, C, D, x)
    K = kernel(A_bar, B_bar, C, length)
    assert K.shape == (length, 3, 2)
    want = [
        sum(x[:, t - i] @ K[i].mT for i in range(t + 1)) + x[:, t] @ D.mT for t in range(length)
    ]
    assert_close(y, torch.stack(want, 1), 1e-12)


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("cut", [1, 4, 6])
def test_pieces_equal_the_whole(cut, per_step, seeded):
    dt = seeded.uniform(7) if per_step else 0.2
    A_bar, B_bar = zoh(*stable(seeded, 4, 2), dt)
    C, D, x, start = (
        seeded.normal(3, 4),
        seeded.normal(3, 2),
        seeded.normal(2, 7, 2),
        seeded.normal(2, 4),
    )
    whole, end = recurrence(A_bar, B_bar, C, D, x, start)

    def part(i, j, state):
        A, B = (A_bar[i:j], B_bar[i:j]) if per_step else (A_bar, B_bar)
        return recurrence(A, B, C, D, x[:, i:j], state)

    first, state = part(0, cut, start)
    second, last = part(cut, 7, state)
    assert_close(torch.cat([first, second], 1), whole, 1e-14)
    assert_close(last, end, 1e-14)


def test_pairs_in_pieces(seeded):
    x = seeded.normal(2, 5, 3)
    assert torch.equal(pairs(x)[:, 2:], pairs(x[:, 2:], x[:, 1]))
    assert torch.equal(pairs(x)[:, 0, :3], torch.zeros(2, 3, dtype=x.dtype))


def test_recurrence_dtypes(seeded):
    A_bar, B_bar = zoh(*stable(seeded, 3, 1), 0.1)
    A_bar, B_bar, C, x = (
        z.bfloat16() for z in (A_bar, B_bar, seeded.normal(1, 3), seeded.normal(1, 4, 1))
    )
    y, state = recurrence(A_bar, B_bar, C, None, x)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert recurrence(A_bar, B_bar, C, None, x, state)[0].dtype == torch.bfloat16
    y, state = recurrence(A_bar.to(torch.complex64), B_bar, C, None, x.float())
    assert (y.dtype, state.dtype) == (torch.complex64, torch.complex64)


def test_a_complex_state_of_a_real_system_stays_complex(seeded):
    A_bar, B_bar = zoh(*stable(seeded, 3, 1), 0.1)
    C, x = seeded.normal(2, 3), seeded.normal(1, 4, 1)
    start = torch.complex(seeded.normal(1, 3), seeded.normal(1, 3))
    y, state = recurrence(A_bar, B_bar, C, None, x, start)
    wide = (z.to(torch.complex128) for z in (A_bar, B_bar, C, x))
    A, B, c, tokens = wide
    for out, want in zip((y, state), recurrence(A, B, c, None, tokens, start), strict=True):
        assert_close(out, want, 1e-14)
    assert state.imag.abs().min() > 0


def test_kernel_dtypes(seeded):
    A_bar, B_bar = zoh(*stable(seeded, 3, 1), 0.1)
    C = seeded.normal(1, 3)
    assert kernel(A_bar, B_bar.float(), C.to(torch.complex64), 4).dtype == torch.complex128
    half = [z.bfloat16() for z in (A_bar, B_bar, C)]
    K = kernel(*half, 64)
    assert K.dtype == torch.bfloat16
    want = kernel(*(z.double() for z in half), 64)
    assert_close(K.double(), want, torch.finfo(torch.bfloat16).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.complex128])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_dense_dtypes(rule, dtype, seeded):
    A, B = stable(seeded, 4, 2)
    want = rule(A, B, 0.3)
    for out, ref in zip(rule(A.to(dtype), B.float(), torch.tensor(0.3)), want, strict=True):
        assert out.dtype == dtype
        assert_close(out, ref.to(torch.complex128), 1e-5)


# Refusals


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_bad_systems_are_named(rule):
    A, B = torch.eye(2), torch.ones(2, 1)
    for dt in (-0.1, math.nan, math.inf, "1"):
        with pytest.raises(ValueError, match="dt: expected a finite number >= 0, got"):
            rule(A, B, dt)
    with pytest.raises(ValueError, match=r"dt: expected finite values >= 0, got -0\.5"):
        rule(A, B, torch.tensor([0.1, -0.5]))
    with pytest.raises(ValueError, match=r"dt: expected finite values >= 0, got nan"):
        rule(A, B, torch.tensor(math.nan))
    with pytest.raises(
        ValueError, match=r"dt: expected real values, got dtype torch.float32, shape \(0,\)"
    ):
        rule(A, B, torch.ones(0))
    with pytest.raises(
        ValueError, match=r"A: expected a square matrix \(n, n\), got shape \(2, 3\)"
    ):
        rule(torch.ones(2, 3), B, 0.1)
    with pytest.raises(
        ValueError, match=r"B: expected \(n, m\) with n=2 \(from A\), got shape \(3, 1\)"
    ):
        rule(A, torch.ones(3, 1), 0.1)
    with pytest.raises(ValueError, match=r"B: expected \(n, m\), got shape \(2,\)"):
        rule(A, torch.ones(2), 0.1)
    with pytest.raises(
        ValueError, match=r"A: expected real or complex floating point, got dtype torch.int64"
    ):
        rule(A.long(), B, 0.1)
    with pytest.raises(ValueError, match=r"A: expected at least float32, got dtype torch.bfloat16"):
        rule(A.bfloat16(), B.bfloat16(), 0.1)
    with pytest.raises(ValueError, match="dt: expected a finite number >= 0, got 1000"):
        rule(A, B, 10**400)
    with pytest.raises(ValueError, match="B: expected a tensor, got list"):
        rule(A, [[1.0], [1.0]], 0.1)


@pytest.mark.parametrize("A", [[[2.0]], [[0.0, 4.0], [1.0, 0.0]], [[3.0, 1.0], [2.0, 4.0]]])
def test_bilinear_refuses_its_pole(A):
    A = torch.tensor(A, dtype=torch.float64)
    dt = 2 / torch.linalg.eigvals(A).real.max()
    with pytest.raises(
        ValueError, match=r"A: expected I - dt/2 A to be invertible, got one that is singular to"
    ):
        bilinear(A, torch.ones(len(A), 1), dt)


def test_bilinear_takes_a_stiff_stable_system():
    rates = torch.tensor([-1e8, -1.0])
    A_bar, B_bar = bilinear(torch.diag(rates), torch.ones(2, 1), 1.0)
    assert_close(A_bar, torch.diag((1 + rates / 2) / (1 - rates / 2)), 1e-6)
    assert_close(B_bar[:, 0], 1 / (1 - rates / 2), 1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bilinear_names_what_is_not_finite(bad):
    A = torch.tensor([[-1.0, 0.0], [bad, -1.0]])
    with pytest.raises(ValueError, match=f"A: expected finite values of dt A, got {bad:g}"):
        bilinear(A, torch.ones(2, 1), torch.tensor([0.1, 0.2]))


def test_bad_weights_are_named():
    A, B = torch.eye(2), torch.ones(2, 1)
    with pytest.raises(ValueError, match=r"weight: expected a finite number >= 0 <= 1, got 1\.5"):
        trapezoid(A, B, 0.1, 1.5)
    with pytest.raises(ValueError, match=r"weight: expected finite values in \[0, 1\], got 2"):
        trapezoid(A, B, 0.1, torch.tensor([0.5, 2.0]))
    with pytest.raises(
        ValueError, match=r"dt, weight: expected shapes that broadcast, got \(3,\), \(2,\)"
    ):
        trapezoid(A, B, torch.ones(3), torch.full((2,), 0.5))


def test_bad_diagonals_are_named():
    a = torch.ones(3)
    with pytest.raises(
        ValueError, match=r"a, b, dt: expected shapes that broadcast, got \(3,\), \(2,\), \(\)"
    ):
        zoh_diagonal(a, torch.ones(2), 0.1)
    with pytest.raises(ValueError, match="dt: expected finite values >= 0, got -1"):
        zoh_diagonal(a, a, -a)
    with pytest.raises(ValueError, match=r"dt: expected real values, got dtype torch.complex64"):
        zoh_diagonal(a, a, a.to(torch.complex64))
    with pytest.raises(ValueError, match="b: expected real or complex floating point"):
        zoh_diagonal(a, torch.ones(3, dtype=torch.int64), 0.1)
    with pytest.raises(ValueError, match=r"b: expected device cpu \(from a\), got device meta"):
        zoh_diagonal(a, torch.ones(3, device="meta"), 0.1)
    with pytest.raises(ValueError, match="z: expected a tensor, got float"):
        phi1(0.3)


def test_bad_recurrences_are_named():
    A_bar, B_bar, C, x = torch.eye(2), torch.ones(2, 1), torch.ones(1, 2), torch.ones(1, 5, 1)
    with pytest.raises(
        ValueError, match=r"A_bar: expected \(t, n, n\) with t=5 \(from x\), got shape \(4, 2, 2\)"
    ):
        recurrence(A_bar.expand(4, 2, 2), B_bar, C, None, x)
    with pytest.raises(
        ValueError, match=r"state: expected \(b, n\) with n=2 \(from A_bar\), got shape \(1, 3\)"
    ):
        recurrence(A_bar, B_bar, C, None, x, torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"x: expected \(b, t, m\) with t >= 1"):
        recurrence(A_bar, B_bar, C, None, x[:, :0])
    with pytest.raises(ValueError, match="length: expected a whole number >= 1, got 0"):
        kernel(A_bar, B_bar, C, 0)


def test_methods_are_looked_up_by_name():
    assert method("zoh") is zoh
    for name in ("tustin", ["zoh"], None):
        told = re.escape(f"one of euler, exponential_euler, bilinear, zoh, got {name!r}")
        with pytest.raises(ValueError, match=f"method: expected {told}"):
            method(name)
