"""The scan beside causal attention, at as many tokens, cut into sequences of length n."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ssmlib.bench.cell import Cell
from ssmlib.bench.ladder.rungs import CHECKED, labels, normal
from ssmlib.bench.timing import working_dtype
from ssmlib.selective_scan import selective_scan


def crossover_cell(
    tokens: int, width: int, n: int, form: str, which: str, device: torch.device
) -> Cell:
    """Heads of 64 against a scan of twice the width, 16 states, with softplus, skip and gate.

    Neither has its projections. Counted: 4 n/2 multiply-adds a pair of channels, forward; 3.5 times
    as much with gradients, which make the scores again. Bytes of a scan as in the suite `scan`.
    """
    b, dtype, backward = tokens // n, working_dtype(device), which != "forward"
    head = min(64, width)
    if form == "attention":
        size = (width // head, head)
        flops, n_bytes = 2 * tokens * n * width * (3.5 if backward else 1), 4 * tokens * width * 2
    else:
        flops, n_bytes = 0, (11 if backward else 4) * 2 * tokens * 2 * width
    A = -torch.arange(1.0, 17, device=device).repeat(2 * width, 1)
    D = torch.ones(2 * width, device=device)

    def draw(t: int) -> tuple[Tensor, ...]:
        if form == "attention":
            drawn = [normal((b, size[0], t, size[1]), i, device).to(dtype) for i in range(4)]
        else:
            widths = (2 * width, 2 * width, 16, 16, 2 * width, 2 * width)
            drawn = [normal((b, t, w), i, device).to(dtype) for i, w in enumerate(widths)]
        *inputs, dy = drawn
        return (*(x.requires_grad_(backward) for x in inputs), dy)

    def forward(inputs: tuple[Tensor, ...], backend: str = "auto") -> Tensor:
        if form == "attention":
            return scaled_dot_product_attention(*inputs, is_causal=True)
        (x, dt, B, C, z), wide = inputs, inputs[0].dtype == torch.float64
        parts = (A.double(), D.double()) if wide else (A, D)
        return selective_scan(
            x, dt, parts[0], B, C, parts[1], z, dt_softplus=True, backend=backend
        )[0]

    def run(*inputs: Tensor, backend: str = "auto") -> tuple[Tensor, ...]:
        *inputs, dy = inputs
        with torch.set_grad_enabled(backward):
            y = forward(tuple(inputs), backend)
        return (y, *torch.autograd.grad(y, inputs, dy)) if backward else (y,)

    return Cell(
        labels=labels("crossover", form, which, n, dtype) | {"b": b, "width": width},
        flops=int(flops),
        n_bytes=n_bytes,
        needs=12 * n_bytes,
        n=n,
        check_at=min(n, CHECKED),
        draw=draw,
        run=run,
        truth=lambda *inputs: run(*inputs, backend="reference"),
    )
