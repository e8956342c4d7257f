r"""A diagonal system in chunks of q tokens: linear in the length, and matrix products throughout.

Within a chunk the output is the convolution with the first q taps, a (q q) Toeplitz matrix, plus
what the state h at the chunk's start puts out. That state is what all earlier chunks have left:

$$y_i = \sum_{j \le i} K_{i-j}\, x_j + 2\,\mathrm{Re}(C \bar a^{i+1} h), \qquad
h' = \bar a^q h + \sum_{j < q} \bar a^{q-1-j}\, \bar b\, x_j$$

Per channel and token these are q + 4n real multiply-adds (n conjugate pairs). The FFT convolution
needs fewer, about 5 log2(2t), but not as matrix products, and passes over zero-padded spectra
several times. The recurrence from chunk to chunk has t/q steps, and is linear and complex.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmlib.s4.powers import conj, split_powers, times

CHUNK = {"cpu": 64, "cuda": 128}  # q for small n
LARGEST_CHUNK = 256


def chunked(
    x: Tensor,
    log_a: Tensor,
    b_bar: Tensor,
    C: Tensor,
    D: Tensor | None,
    h: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y (b t d) and the last state (b d n) of h_t = a_bar h_{t-1} + b_bar x_t.

    x (b t d) float32 or float64, log_a, b_bar (d n) complex128, C (d n) and h (b d n) complex.
    Memory: the 2n/q numbers of state that go with each number of x, at most 1 up to n = 128.
    """
    (b, t, d), n = x.shape, C.shape[1]
    q = _chunk(t, n, x.device)
    c = -(-t // q)
    powers, within, store, read = _tables(log_a, b_bar.to(C.dtype), C, D, q)
    rows = F.pad(x.permute(2, 0, 1), (0, c * q - t)).reshape(d, b * c, q)
    shares = (rows @ store).view(d, b, c, n, 2)
    start = x.new_zeros(d, b, n, 2) if h is None else torch.view_as_real(h.transpose(0, 1))
    states, _ = _decay_scan(shares, torch.view_as_real(powers[..., q]), start, False)
    y = torch.baddbmm(states.reshape(d, b * c, 2 * n) @ read, rows, within)

    r = t - (c - 1) * q  # tokens of the last chunk
    rest = rows.view(d, b, c, q)[:, :, -1, :r] @ store[:, q - r :]  # (d b 2n)
    last = powers[:, None, :, r] * torch.view_as_complex(states[:, :, -1].contiguous())
    last = last + torch.view_as_complex(rest.unflatten(2, (n, 2)))
    return y.view(d, b, c * q)[..., :t].permute(1, 2, 0), last.transpose(0, 1)


def _tables(
    log_a: Tensor, b_bar: Tensor, C: Tensor, D: Tensor | None, q: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The powers up to q (d n q+1), and the matrices of a chunk, which act on rows.

    within (d q q): tokens on outputs, K_{i-j} at [j, i]. store (d q 2n): tokens on the next state.
    read (d 2n q): the state on outputs.
    """
    steps = torch.arange(q + 1, device=C.device)
    powers = torch.complex(*split_powers(torch.view_as_real(log_a), steps, C.real.dtype))
    store = b_bar[..., None] * powers[..., :q].flip(2)  # (d n q)
    read = 2 * C[..., None] * powers  # (d n q+1)
    taps = (read[..., :q] * b_bar[..., None]).real.sum(1)  # (d q)
    if D is not None:
        taps = torch.cat([taps[:, :1] + D[:, None], taps[:, 1:]], dim=1)
    within = F.pad(taps, (q - 1, 0)).unfold(1, q, 1).flip(1)
    store = torch.view_as_real(store).transpose(1, 2).flatten(2)
    read = conj(torch.view_as_real(read[..., 1:])).transpose(2, 3).flatten(1, 2)
    return powers, within, store, read


def _chunk(t: int, n: int, device: torch.device) -> int:
    """q: near 2n, where the states weigh as much as x, within bounds; never more than t."""
    near = 2 ** (2 * n - 1).bit_length()
    return min(t, max(CHUNK.get(device.type, 128), min(near, LARGEST_CHUNK)))


@torch.library.custom_op("ssmlib::decay_scan", mutates_args=())
def _decay_scan(x: Tensor, z: Tensor, start: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """The h before each step of h <- z h + x_k, and the last one; from the end if reverse.

    x (d b c n 2), z (d n 2), start (d b n 2): pairs of real numbers.
    """
    states = torch.empty_like(x)
    x, before = torch.view_as_complex(x.contiguous()), torch.view_as_complex(states)
    z, h = (torch.view_as_complex(pair.contiguous()) for pair in (z[:, None], start))
    steps = range(x.shape[2])
    for k in reversed(steps) if reverse else steps:
        before[:, :, k] = h
        h = torch.addcmul(x[:, :, k], z, h)
    return states, torch.view_as_real(h).clone()


@_decay_scan.register_fake
def _(x: Tensor, z: Tensor, start: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(start)


def _keep(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[1], output[0])
    ctx.reverse = inputs[3]


def _backward(ctx, grad: Tensor, grad_last: Tensor) -> tuple:
    """The transpose of a scan is the scan from the other end, with the conjugate decay."""
    z, states = ctx.saved_tensors
    grad_x, grad_start = _decay_scan(
        grad.contiguous(), conj(z), grad_last.contiguous(), not ctx.reverse
    )
    grad_z = times(conj(states), grad_x).sum((1, 2)) if ctx.needs_input_grad[1] else None
    return grad_x, grad_z, grad_start, None


_decay_scan.register_autograd(_backward, setup_context=_keep)
