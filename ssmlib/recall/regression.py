"""Learning from the prompt: points of a linear function that nobody saw before."""

import torch
from torch import Tensor

from ssmlib.recall.drawing import Batch, Device, source
from ssmlib.shapes import check, check_number


def regression(
    batch: int,
    points: int,
    d: int,
    seed: int,
    noise: float = 0.0,
    device: Device = "cpu",
) -> Batch:
    """Points x of a function y = w · x + noise, w new in every row: say y before it is shown.

    Returns inputs (b t d+1) and targets (b t 1), float32, t = points: row i of the inputs is x_i
    and the y of the point before, 0 for the first; its target is y_i. x and w are drawn from the
    normal distribution, and so is the noise, of the given standard deviation. Who says 0 always
    has a root mean squared error of sqrt(d + noise²), and so has the best who does not look back.
    Garg et al. 2022, where x and y alternate as tokens of their own.
    Raises ValueError for sizes below 1 and a noise below 0.
    """
    check_number(low=1, whole=True, batch=batch, points=points, d=d)
    check_number(low=0, noise=noise)
    generator = source(seed, device)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    x, w = normal(batch, points, d), normal(batch, d, 1)
    y = x @ w + noise * normal(batch, points, 1)
    before = torch.cat([torch.zeros_like(y[:, :1]), y[:, :-1]], dim=1)
    return torch.cat([x, before], dim=2), y


def least_squares(inputs: Tensor) -> Tensor:
    """What the shortest w that fits the points before says of each point of `regression`, (b t 1).

    With no noise no guess has a smaller mean squared error: d - i after i < d points, then 0.
    """
    check(inputs=(inputs, "b t d"))
    x, y = inputs[..., :-1].double(), inputs[:, 1:, -1:].double()
    guesses = [torch.zeros_like(x[:, 0, :1])]
    for i in range(1, x.shape[1]):
        w = torch.linalg.pinv(x[:, :i]) @ y[:, :i]
        guesses.append((x[:, i, None] @ w)[:, 0])
    return torch.stack(guesses, dim=1).to(inputs.dtype)
