"""hippo: coefficients against quadrature, the fast form against the dense one, and at the edges."""

import math

import numpy as np
import pytest
import torch
from agreement import assert_close, error

from ssmlib.bench import hippo as suite
from ssmlib.bench import record
from ssmlib.hippo import (
    MEASURES,
    Memory,
    dplr,
    fourier,
    input_ages,
    lagt,
    legendre,
    legs,
    legt,
    project,
    project_reference,
    reconstruct,
)
from ssmlib.hippo.online import POINTS, _gauss
from ssmlib.viz.hippo_draw import PRESETS, STEPS, hippo_draw

STEP = {"legs": None, "legt": 0.013, "fourier": 0.013, "lagt": 0.05, "warped": 0.02}


def size(measure: str, n: int) -> int:
    return n + 1 - n % 2 if measure == "fourier" else n


def gauss(length: float = 1.0, nodes: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """NumPy's points and weights on [0, length], which owe nothing to the module."""
    points, weights = (torch.from_numpy(z) for z in np.polynomial.legendre.leggauss(nodes))
    return length * (points + 1) / 2, length * weights / 2


def weighted(measure: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ages, and quadrature weights that contain the measure's own."""
    if MEASURES[measure].oldest == 1:
        return gauss()
    ages, weights = gauss(60.0)
    return ages, weights * torch.exp(-ages)


def smooth(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(40 * x) + torch.cos(7 * x**2) + 0.3 * x


def band_limited(t: int, wavelengths: int, seed: int, rms: float = 1.0) -> torch.Tensor:
    """Noise (1 t) whose shortest wave fits `wavelengths` times into it."""
    generator = torch.Generator().manual_seed(seed)
    waves = torch.zeros(t // 2 + 1, dtype=torch.complex128)
    drawn = torch.randn(wavelengths, generator=generator, dtype=torch.complex128)
    waves[1 : wavelengths + 1] = drawn
    u = torch.fft.irfft(waves, n=t)
    return rms * (u / u.pow(2).mean().sqrt())[None]


# The matrices


def test_eigenvalues_of_legs_are_exactly_minus_one_to_minus_n():
    A, B = legs(64)
    assert torch.equal(A, A.tril())  # so its eigenvalues are the diagonal
    assert A.diagonal().tolist() == [-i for i in range(1, 65)]
    assert_close(A[5, 2:3], torch.tensor([-math.sqrt(11 * 5)], dtype=torch.float64), 1e-15)
    assert_close(B[:, 0] ** 2, torch.arange(1.0, 129, 2, dtype=torch.float64), 1e-15)


def test_with_the_papers_plus_sign_the_memory_explodes():
    A, _ = legs(8)
    assert torch.linalg.matrix_norm(torch.linalg.matrix_exp(A), ord=2) < 1.5
    assert torch.linalg.matrix_norm(torch.linalg.matrix_exp(-A), ord=2) > 1e6


@pytest.mark.parametrize("measure", MEASURES)
def test_a_basis_is_orthonormal_under_its_measure(measure):
    ages, weights = weighted(measure)
    basis = MEASURES[measure].basis(ages, 7)
    assert_close((basis * weights) @ basis.mT, torch.eye(7, dtype=torch.float64), 1e-10)


@pytest.mark.parametrize(
    ("measure", "u"),
    [
        ("legs", smooth),
        ("lagt", torch.sin),
        ("warped", torch.sin),
        ("legt", lambda x: 1 + x - 3 * x**3 + x**6),  # these two read a value that leaves the
        ("fourier", lambda x: 1 + torch.sin(2 * math.pi * x) - torch.cos(6 * math.pi * x)),
    ],
)
def test_the_differential_equation_holds(measure, u):
    """eq-hippo, eq-warped: c(t) by quadrature, its change by automatic differentiation.

    LegT and Fourier approximate the value that leaves (eq-window); here u is in their span.
    """
    ages, weights = weighted(measure)
    basis = MEASURES[measure].basis(ages, 7) * weights
    A, B = MEASURES[measure].matrices(7)
    now = torch.tensor(1.3, dtype=torch.float64)

    def coefficients(t):
        return basis @ u(t * (1 - ages) if measure == "legs" else t - ages)

    change = torch.autograd.functional.jacobian(coefficients, now)
    time = now if measure == "legs" else 1.0
    assert_close(time * change, A @ coefficients(now) + B[:, 0] * u(now), 1e-9)


def test_the_steps_of_the_derivation():
    """eq-derivative and eq-ladder, with NumPy's derivatives of the polynomials."""
    (ages, weights), (A, B) = gauss(), legs(7)
    x, basis = 1 - ages, MEASURES["legs"].basis(ages, 7)
    polynomials = [np.polynomial.Legendre.basis(i, domain=[0, 1]).deriv() for i in range(7)]
    slopes = B * torch.stack([torch.from_numpy(p(x.numpy())) for p in polynomials])
    assert_close(x * slopes, (-A - torch.eye(7)) @ basis, 1e-12)
    now = torch.tensor(1.3, dtype=torch.float64)
    c, change = torch.autograd.functional.jvp(
        lambda t: (basis * weights) @ smooth(t * x), now, torch.ones_like(now)
    )
    squeezed = (x * slopes * weights) @ smooth(now * x)
    assert_close(now * change, -c + B[:, 0] * smooth(now) - squeezed, 1e-11)


def test_legendre_agrees_with_numpy():
    x = torch.linspace(-1, 1, 101, dtype=torch.float64)
    want = np.polynomial.legendre.legvander(x.numpy(), 299)
    assert_close(legendre(x, 300), torch.from_numpy(want.T), 1e-12)
    assert legendre(x.view(1, 101), 1).shape == (1, 1, 101)


def test_gauss_points_agree_with_numpy():
    points, table = _gauss(256)
    ours, theirs = table[0], torch.from_numpy(np.polynomial.legendre.leggauss(256)[1]) / 2
    assert_close(points, gauss(nodes=256)[0], 1e-13)
    assert_close(ours, theirs, 1e-11)  # the first polynomial is 1


# Diagonal plus low rank


def test_hippo_cannot_be_diagonalised_directly():
    conditions = [np.linalg.cond(np.linalg.eig(legs(n)[0].numpy())[1]) for n in (8, 16, 32)]
    assert conditions[0] > 1e4
    assert conditions[1] > 1e10
    assert conditions[2] > 1e16


@pytest.mark.parametrize("n", [2, 4, 64, 256])
def test_dplr_reassembles_legs(n):
    Lambda, P, B, V = dplr(n)
    A, input_matrix = legs(n)
    whole = V @ (torch.diag(Lambda) - P[:, None] * P.conj()) @ V.mH
    assert_close(whole, A.to(whole.dtype), 1e-10)
    assert (whole - A).abs().max() < 1e-10
    assert_close(V @ B, input_matrix[:, 0].to(V.dtype), 1e-10)
    assert_close(V.mH @ V, torch.eye(n, dtype=V.dtype), 1e-12)
    assert torch.equal(Lambda[: n // 2], Lambda[n // 2 :].conj())
    assert torch.equal(V[:, : n // 2], V[:, n // 2 :].conj())
    assert torch.equal(P[: n // 2], P[n // 2 :].conj())
    assert torch.equal(Lambda.real, torch.full((n,), -0.5, dtype=torch.float64))
    assert (Lambda.imag[: n // 2].diff(prepend=torch.zeros(1)) > 0).all()
    assert (P.real > 0).all()


# Projection


@pytest.mark.parametrize("every", [None, 1, 7, 40])
@pytest.mark.parametrize("n", [1, 2, 9, 64])
@pytest.mark.parametrize("measure", MEASURES)
def test_project_agrees_with_the_definition(measure, n, every, seeded):
    u, n, dt = seeded.normal(2, 130), size(measure, n), STEP[measure]
    rows, state = project_reference(u, n, measure, dt=dt)
    want = rows[:, -1:] if every is None else rows[:, every - 1 :: every]
    got, memory = project(u, n, measure, dt=dt, every=every)
    assert_close(got, want, 1e-11)
    assert_close(memory.coefficients, state.coefficients, 1e-11)
    assert memory.steps == state.steps == 130


@pytest.mark.parametrize("n", [1, 16, 256])
def test_coefficients_are_the_offline_projection(n):
    t = 40_000
    (rows, _), (points, weights) = project(smooth(1 - input_ages(t))[None], n), gauss()
    want = MEASURES["legs"].basis(1 - points, n) @ (weights * smooth(points))
    assert (rows[0, 0] - want).abs().max() < 1e-6


def test_a_slower_signal_has_the_same_coefficients(seeded):
    u = seeded.normal(2, 500)
    rows, _ = project(u, 64, every=50)
    slow, _ = project(u.repeat_interleave(7, dim=1), 64, every=350)
    assert_close(slow, rows, 1e-12)
    fine, finer = (project(smooth(1 - input_ages(t))[None], 64)[0] for t in (20_000, 60_000))
    assert (fine - finer).abs().max() < 1e-6


@pytest.mark.parametrize("cuts", [[1] * 9, [130], [1, 63, 2, 64], [65, 1, 64]])
@pytest.mark.parametrize("measure", MEASURES)
def test_pieces_equal_the_whole(measure, cuts, seeded):
    u, n, dt = seeded.normal(3, sum(cuts)), size(measure, 16), STEP[measure]
    whole, end = project(u, n, measure, dt=dt, every=3)
    pieces, state = [], None
    for piece in u.split(cuts, dim=1):
        rows, state = project(piece, n, measure, dt=dt, every=3, state=state)
        pieces.append(rows)
    assert_close(torch.cat(pieces, dim=1), whole, 1e-12)
    assert_close(state.coefficients, end.coefficients, 1e-12)
    assert state.steps == end.steps


def test_pieces_equal_the_whole_past_one_table(seeded):
    u = seeded.normal(1, 2 * POINTS + 100)
    whole, _ = project(u, 32)
    _, state = project(u[:, :1234], 32)
    rows, _ = project(u[:, 1234:], 32, state=state)
    assert_close(rows, whole, 1e-10)


@pytest.mark.parametrize("measure", MEASURES)
def test_members_of_a_batch_do_not_meet(measure, seeded):
    u, n = seeded.normal(3, 100), size(measure, 16)
    rows, _ = project(u, n, measure, dt=STEP[measure], every=10)
    alone, _ = project(u[1:2], n, measure, dt=STEP[measure], every=10)
    assert_close(rows[1:2], alone, 1e-13)


@pytest.mark.parametrize("measure", MEASURES)
def test_gradients_agree_with_the_definition(measure, seeded):
    n, dt = size(measure, 8), STEP[measure]
    u, c, grads = seeded.normal(2, 70), seeded.normal(2, n), []
    for f, kw in ((project, {"every": 1}), (project_reference, {})):
        u, c = u.detach().requires_grad_(), c.detach().requires_grad_()
        rows, state = f(u, n, measure, dt=dt, state=Memory(c, 5), **kw)
        past = reconstruct(rows, torch.tensor([0.1, 0.7], dtype=torch.float64), measure)
        grads.append(torch.autograd.grad(past.pow(2).sum() + state.coefficients.sum(), (u, c)))
    for ours, theirs in zip(*grads, strict=True):
        assert_close(ours, theirs, 1e-11)


def test_a_gradient_keeps_no_table(seeded):
    kept = []

    def note(x):
        kept.append(x.untyped_storage().nbytes())
        return x

    u = seeded.normal(1, 30_000).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        rows, _ = project(u, 64)
        past = reconstruct(rows, input_ages(30_000))
    assert sum(kept) < 20 * 8 * u.numel()  # a table of all polynomials would be 64 of them
    (grad,) = torch.autograd.grad(past.sum(), u)
    assert grad.isfinite().all()


# What the measures remember


def test_legs_spreads_its_error_over_the_past_and_the_time_invariant_use_does_not():
    t, errors = 10_000, {"legs": [], "warped": []}
    for seed in range(3):
        u = band_limited(t, 20, seed)
        for measure, dt in (("legs", None), ("warped", 1e-3)):
            rows, _ = project(u, 64, measure, dt=dt)
            past = reconstruct(rows[:, 0], input_ages(t, dt), measure)
            errors[measure].append((u - past).view(10, -1).pow(2).mean(1))
    scaled, warped = (torch.stack(e).mean(0).sqrt() for e in errors.values())
    assert scaled.max() < 0.1
    assert scaled.max() < 4 * scaled.min()
    assert scaled[0] <= scaled[-1]  # the oldest tenth is not the worst
    assert warped[0] > 0.5
    assert warped[-1] < 0.03
    assert warped[0] > 50 * warped[-1]


@pytest.mark.parametrize("measure", ["legt", "fourier"])
def test_a_window_remembers_its_window_and_nothing_else(measure):
    u, cut = band_limited(4000, 20, 0), slice(100, 900)
    rows, _ = project(u, 65, measure, dt=1 / 1000)
    past = reconstruct(rows[:, 0], input_ages(1000, 1 / 1000), measure)
    assert error(past[:, cut], u[:, -1000:][:, cut]) < 0.1
    other = torch.cat([u[:, :2000].flip(1), u[:, 2000:]], dim=1)
    assert error(project(other, 65, measure, dt=1 / 1000)[0], rows) < 0.05


def test_a_million_steps_in_256_numbers():
    u = band_limited(1_000_000, 100, 0, rms=0.5)
    rows, state = project(u, 256)
    past = reconstruct(rows[:, 0], input_ages(1_000_000))
    assert (u - past).pow(2).mean() < 0.03
    assert state.steps == 1_000_000


@pytest.mark.parametrize("measure", MEASURES)
def test_256_coefficients_stay_accurate(measure, seeded):
    n, dt = size(measure, 256), STEP[measure]
    u = seeded.normal(1, 80)
    want, _ = project_reference(u, n, measure, dt=dt)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-6)):
        pieces, state = [], None
        for piece in u.to(dtype).split(20, dim=1):  # every piece rounds the state
            rows, state = project(piece, n, measure, dt=dt, every=1, state=state)
            pieces.append(rows)
        got = torch.cat(pieces, dim=1)
        assert got.dtype == state.coefficients.dtype == dtype
        assert_close(got, want, tolerance)


def test_an_error_in_the_state_never_grows():
    u = torch.ones(1, 1000)
    state = Memory(torch.zeros(1, 256), 1_000_000)
    noisy = Memory(1e-3 * torch.randn(1, 256, generator=torch.Generator().manual_seed(0)), 10**6)
    for _ in range(20):  # an error in the state never grows
        state, noisy = (project(u, 256, state=s)[1] for s in (state, noisy))
    assert (noisy.coefficients - state.coefficients).norm() < 1e-3 * 16


def test_half_precision_input_makes_a_float32_memory(seeded):
    u = seeded.normal(1, 20).bfloat16()
    rows, state = project(u, 4)
    assert rows.dtype == state.coefficients.dtype == torch.float32
    assert_close(rows, project(u.double(), 4)[0], 1e-6)
    assert project(u.double(), 4, state=state)[0].dtype == torch.float64
    assert project(u, 4, state=project(u.double(), 4)[1])[0].dtype == torch.float64


# Bad input

LINE = torch.zeros(2, 5)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda: legs(0), r"n: expected a whole number >= 1, got 0"),
        (lambda: legt(2.0), r"n: expected a whole number >= 1, got 2.0"),
        (lambda: lagt(-1), r"n: expected a whole number >= 1, got -1"),
        (lambda: fourier(8), r"n: expected an odd number, a constant and whole pairs, got 8"),
        (lambda: fourier(0), r"n: expected a whole number >= 1"),
        (lambda: dplr(7), r"n: expected an even number, for conjugate pairs, got 7"),
        (lambda: dplr(0), r"n: expected a whole number >= 2, got 0"),
        (lambda: project(LINE, 0), r"n: expected a whole number >= 1, got 0"),
        (lambda: project(LINE[:, :0], 4), r"u: expected \(b, t\) with t >= 1, got shape \(2, 0\)"),
        (lambda: project(LINE[0], 4), r"u: expected \(b, t\), got shape \(5,\)"),
        (lambda: project(LINE.long(), 4), r"u: expected a floating point tensor"),
        (lambda: project(LINE, 4, "legz"), r"measure: expected one of legs, legt, .*, got 'legz'"),
        (lambda: project(LINE, 4, dt=0.1), r"dt: expected None, .* measure 'legs', got 0.1"),
        (lambda: project(LINE, 4, "legt"), r"dt: expected a number >= 0 .* 'legt', got None"),
        (lambda: project(LINE, 4, "legt", dt=-1.0), r"dt: expected a finite number >= 0"),
        (lambda: project(LINE, 4, every=0), r"every: expected a whole number >= 1, got 0"),
        (
            lambda: project(LINE, 4, state=Memory(torch.zeros(2, 8), 3)),
            r"state: expected \(b, 4\).*, got shape \(2, 8\)",
        ),
        (
            lambda: project(LINE, 4, state=Memory(torch.zeros(1, 4), 3)),
            r"state: expected \(b, 4\) with b=2 \(from u\), got shape \(1, 4\)",
        ),
        (
            lambda: project(LINE, 4, state=Memory(torch.zeros(2, 4), -1)),
            r"state.steps: expected a whole number >= 0, got -1",
        ),
        (
            lambda: reconstruct(torch.zeros(4), torch.tensor([0.5, 1.5])),
            r"ages: expected 0 to 1 for measure 'legs', got 0.5 to 1.5",
        ),
        (
            lambda: reconstruct(torch.zeros(4), torch.tensor([-1.0]), "lagt"),
            r"ages: expected 0 to inf for measure 'lagt', got -1 to -1",
        ),
        (lambda: reconstruct(torch.zeros(4), LINE[0], "legz"), r"measure: expected one of"),
        (lambda: reconstruct(torch.zeros(4), LINE), r"ages: expected \(t,\), got shape \(2, 5\)"),
        (lambda: input_ages(0), r"t: expected a whole number >= 1, got 0"),
    ],
)
def test_bad_input_is_refused(f, message):
    with pytest.raises(ValueError, match=message):
        f()


# The experiment and the figure


def test_noise_has_no_wave_above_its_limit():
    noise = suite.draw(64, 10, torch.Generator().manual_seed(0))
    power = torch.fft.rfft(noise.at(input_ages(256)).double()).abs().square().mean(0)
    assert power[0] < 1e-6 * power[1:11].mean()
    assert power[11:].max() < 1e-6 * power[1:11].mean()
    assert power[1:11].max() < 2 * power[1:11].min()
    assert noise.at(input_ages(256)).square().mean() == pytest.approx(suite.RMS**2, rel=0.1)


def test_gates_that_remember_start_with_memories_up_to_the_length():
    lstm = suite.Reader(512, 4, remember=100).lstm
    gates = (lstm.bias_ih_l0 + lstm.bias_hh_l0).detach().unflatten(0, (4, 512))
    spans = 1 / (1 - gates[1].sigmoid())  # steps after which a cell has lost a factor e
    assert 1.9 < spans.min() < 5
    assert 90 < spans.max() < 101
    assert torch.equal(gates[0], -gates[1])


def test_the_suite_runs_small_and_its_rows_can_be_recorded(tmp_path):
    told = []
    rows = suite.run(True, "cpu", told.append)
    assert len(told) == len(rows)
    assert {row["experiment"] for row in rows} == {"legs", "sweep", "lstm"}
    assert {row["steps"] for row in rows} == {suite.TINY.steps, suite.TINY.train_steps}
    legs_rows = [row for row in rows if row["experiment"] == "legs"]
    assert all(row["mse"] < 1e-3 < 0.1 < row["zero_mse"] for row in legs_rows)
    again = suite.run(True, "cpu")
    assert [row["mse"] for row in again] == [row["mse"] for row in rows]
    record("hippo", rows, "test", tmp_path, "cpu")
    assert len(suite.summary(rows).splitlines()) == len(rows) + 1


@pytest.mark.parametrize("measure", MEASURES)
def test_the_figure_shows_what_the_library_computes(measure):
    figure = hippo_draw(measure, n=9, preset="noise", window=40)
    assert set(dict(figure.data["measures"])) == set(MEASURES)
    assert set(dict(figure.data["presets"])) == set(figure.data["signals"]) == set(PRESETS)
    for values in figure.data["signals"].values():
        assert len(values) == STEPS
        assert max(map(abs, values)) <= 1.6
    assert len(figure.png) < 60_000
    assert "9 coefficients" in figure.alt


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"measure": "legz"}, "measure: expected one of legs, legt"),
        ({"preset": "song"}, "preset: expected one of waves, chirp"),
        ({"n": 65}, "n: expected a whole number >= 1 <= 64, got 65"),
        ({"measure": "fourier", "n": 8}, "n: expected an odd number"),
        ({"window": 10}, "window: expected a whole number >= 20 <= 240, got 10"),
    ],
)
def test_the_figure_refuses(wrong, message):
    with pytest.raises(ValueError, match=message):
        hippo_draw(**wrong)
