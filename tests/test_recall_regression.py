"""In-context linear regression: the line is there, and least squares finds it."""

import pytest
import torch

from ssmlib.recall import TASKS, least_squares, regression


@pytest.mark.parametrize(("points", "d"), [(1, 1), (5, 3), (12, 4)])
def test_y_is_linear_in_x_and_shown_one_step_late(points, d):
    inputs, y = regression(6, points, d, seed=2)
    assert inputs.shape == (6, points, d + 1)
    assert y.shape == (6, points, 1)
    x = inputs[..., :d]
    assert (inputs[:, 0, d] == 0).all()
    assert torch.equal(inputs[:, 1:, d], y[:, :-1, 0])
    w = torch.linalg.lstsq(x.double(), y.double(), driver="gelsd").solution
    assert (x.double() @ w - y).abs().max() < 1e-5


def test_least_squares_is_as_good_as_the_docstring_says():
    inputs, y = regression(6000, 7, 4, seed=0)
    error = (least_squares(inputs) - y).square().mean((0, 2))
    wanted = torch.tensor([4.0, 3, 2, 1, 0, 0, 0])
    assert (error - wanted).abs().max() < 0.3
    assert error[4:].max() < 1e-6


def test_chance_is_the_error_of_saying_nothing():
    _, y = regression(20000, 3, 5, seed=0, noise=2.0)
    assert TASKS["regression"].chance(points=3, d=5, noise=2.0) == 3.0
    assert abs(y.square().mean().sqrt() - 3.0) < 0.05
    _, clean = regression(20000, 3, 5, seed=0)
    assert abs((y - clean).std() - 2.0) < 0.03


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"points": 0}, "points: expected a whole number >= 1, got 0"),
        ({"d": 0}, "d: expected a whole number >= 1, got 0"),
        ({"noise": -1.0}, "noise: expected a finite number >= 0, got -1.0"),
        ({"seed": -1}, "seed: expected a whole number >= 0"),
    ],
)
def test_bad_settings_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        regression(**{"batch": 1, "points": 3, "d": 2, "seed": 0} | changed)
