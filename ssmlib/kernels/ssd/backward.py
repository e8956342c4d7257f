r"""The backward pass, three launches: the gradients of states, those within chunks, those of dt.

With $\lambda$ for the gradient of a state, $s_i$ for the log decay from a chunk's start to token i,
and $e^{s_i - s_j}$ for what is left at token i of token j, $\bar y_i$ enters

$$\lambda_0 = e^{s_c} \lambda_c + \sum_i e^{s_i} \bar y_i C_i^\top, \qquad
\bar x_j = \Delta_j \Big( \sum_{i \ge j} e^{s_i - s_j} (B_j^\top C_i) \bar y_i
+ e^{s_c - s_j} \lambda_c B_j \Big)$$

and the gradients of B and C in the same way. Only the first is a recurrence. `adjoint_kernel` walks
it, a program for each head, and leaves $\lambda$ every KEEP tokens, where the forward pass has left
the state. Then `pairs_kernel` does all chunks at once, a program for each half of KEEP tokens,
which goes through the heads of a group: their gradients of B and C add up in its registers, and
C Bᵀ is made once. `steps_kernel` turns row and column sums into the gradients of the log decays.

What each launch moves, in bytes per number of x of s bytes, n states and KEEP = 128:

| launch | reads | writes |
|---|---|---|
| `adjoint_kernel` | dy: s | states: s n / KEEP |
| `pairs_kernel` | x, dy: 2 s, states and their gradients: 2 s n / KEEP | dx: s |

With z, each of them reads it too, and the second writes its gradient. Sums are taken in a fixed
order: the same inputs give the same bits.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ssmlib.kernels.ssd import layout
from ssmlib.kernels.ssd.backward_pairs import pairs_kernel
from ssmlib.kernels.ssd.backward_steps import steps_kernel
from ssmlib.kernels.ssd.backward_walk import adjoint_kernel
from ssmlib.kernels.ssd.layout import KEEP, Plan
from ssmlib.kernels.ssd.parts import decays

Q = KEEP // 2  # tokens of a chunk
HEADS = 16  # of a program of `steps_kernel`


class Tile(NamedTuple):
    """How much of a head's state a program holds, and how."""

    n: int
    p: int
    warps: int
    stages: int
    described: bool = False

    @staticmethod
    def of(plan: Plan, n: int, p: int, *launch: int) -> "Tile":
        return Tile(min(plan.n_pad, n), min(plan.p_pad, p), *launch)


def walk_tile(plan: Plan) -> Tile:
    return (
        Tile.of(plan, 128, 64, 4, 2) if (plan.dtype.itemsize == 2) else Tile.of(plan, 64, 32, 4, 1)
    )


def pairs_tile(plan: Plan) -> Tile:
    return (
        Tile.of(plan, 128, 64, 8, 2, True)
        if (plan.dtype.itemsize == 2)
        else Tile.of(plan, 64, 32, 8, 1)
    )


class Found(NamedTuple):
    """What `pairs_kernel` leaves to `steps_kernel`; a lane is a head, or a part of one.

    itself (b g t): C B of each token with itself. through (2 slots lanes): what goes through a
    chunk, from the state before to the state after. read (b lanes t): what each token reads of its
    chunk. sums (b lanes t 4): what it hands on to the state, and to later tokens; what it reads of
    the state; x times the gradient of y.
    """

    itself: Tensor
    through: Tensor
    read: Tensor
    sums: Tensor

    @staticmethod
    def room(plan: Plan, b: int, lanes: int, chunks: int) -> "Found":
        sizes = (b, plan.g, plan.t), (chunks, lanes), (b, lanes, plan.t), (b, lanes, plan.t, 4)
        return Found(*(torch.empty(size, device=plan.device) for size in sizes))


def backward(
    dy: Tensor,
    d_last: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    chunk_size: int | None,
    saved: Tensor,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of x, dt, A, B, C, D, z, dt_bias and state, None where the input was.

    `saved` is what `forward` has kept; chunk_size is what the forward pass heeds. Each gradient is
    in its input's dtype.
    """
    plan = Plan.of(x, B, C, cu_seqlens)
    like = (x, dt, A, B, C, D, z, dt_bias, state)
    dy, d_last = dy.contiguous(), d_last.contiguous()
    x, B, C, z = (layout.rows(v) for v in (x, B, C, z))
    step, log = decays(dt, A, dt_bias, dt_softplus, cu_seqlens, Q)
    adjoint = torch.empty(saved.shape, dtype=saved.dtype, device=x.device)
    d_state = None if state is None else plan.states(plan.sequences)
    walk(plan, dy, C, z, log, d_last, adjoint, d_state)
    tile = pairs_tile(plan)
    wide, chunks = triton.cdiv(plan.p, tile.p), 2 * len(saved)
    found = Found.room(plan, len(x), plan.h * wide, chunks)
    tokens = (dy, x, B, C, D, z, step, log, saved, adjoint)
    dx, dz, dB, dC, by_channel = pairs(plan, tile, *tokens, found)
    ddt = torch.empty(dt.shape, dtype=dt.dtype, device=dt.device)
    dA, d_bias, dD = (torch.zeros(chunks, plan.h, device=x.device) for _ in range(3))
    dD = dD if by_channel is None else by_channel
    slots = triton.cdiv(plan.t, KEEP)
    steps_kernel[(chunks, triton.cdiv(plan.h, HEADS))](
        dt, A, dt_bias, step, log, *found, cu_seqlens, ddt, dA,
        None if dt_bias is None else d_bias,
        dD if by_channel is None else None, plan.sequences, plan.t, slots, plan.h, plan.g,
        *dt.stride(), WIDE=wide, Q=Q, HEADS=HEADS, SOFTPLUS=dt_softplus, num_warps=4,
    )  # fmt: skip
    grads = (dx, ddt, dA.sum(0), dB, dC, dD.sum(0), dz, d_bias.sum(0), d_state)
    return tuple(
        None if v is None else grad.to(v.dtype) for grad, v in zip(grads, like, strict=True)
    )


def walk(
    plan: Plan,
    dy: Tensor,
    C: Tensor,
    z: Tensor | None,
    log: Tensor,
    d_last: Tensor,
    adjoint: Tensor,
    d_state: Tensor | None,
) -> None:
    """Fill adjoint, laid out as what the forward pass has kept, and the gradient of the state."""
    tile = walk_tile(plan)
    blocks = triton.cdiv(plan.p, tile.p) * triton.cdiv(plan.n, tile.n)
    adjoint_kernel[(plan.h * blocks, plan.sequences)](
        dy, C, z, log, d_last, plan.cu_seqlens, adjoint, d_state, 0, plan.t, plan.h,
        plan.h // plan.g, *C.stride()[:3], *((0, 0, 0) if z is None else z.stride()[:3]),
        P=plan.p, N=plan.n, N_PAD=tile.n, WIDTH=tile.p, Q=Q, KEEP=KEEP, STAGES=tile.stages,
        OPERAND=plan.operand, PRECISION=plan.precision, num_warps=tile.warps,
    )  # fmt: skip


def pairs(
    plan: Plan,
    tile: Tile,
    dy: Tensor,
    x: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    step: Tensor,
    log: Tensor,
    saved: Tensor,
    adjoint: Tensor,
    found: Found,
) -> tuple[Tensor | None, ...]:
    """Fill found; return the gradients of x, z, B, C, and each chunk's of D, if that is (h p).

    More states than a program holds are taken in turns, and the gradients of x and what z gates,
    which are sums over them, kept in float32 in between.
    """
    (b, t, h, p), device = x.shape, x.device
    chunks, per_group = len(found.through), plan.h // plan.g
    splits = min(per_group, triton.cdiv(2 * layout.processors(device), chunks * plan.g))
    share = triton.cdiv(per_group, splits)
    splits = triton.cdiv(per_group, share)
    dx = torch.empty(x.shape, dtype=x.dtype, device=device)
    dz = None if z is None else torch.empty(z.shape, dtype=z.dtype, device=device)
    dB, dC = (
        torch.empty(
            splits, *M.shape, dtype=M.dtype if splits == 1 else torch.float32, device=device
        )
        for M in (B, C)
    )
    by_channel = D is not None and D.ndim == 2
    dD = torch.zeros(chunks, h, p, device=device) if by_channel else None
    scores = torch.empty(chunks, plan.g * splits, Q, Q, device=device)
    turns = range(0, plan.n, tile.n)
    dx_sum = torch.empty(x.shape, device=device) if len(turns) > 1 else None
    y_sum = torch.empty(x.shape, device=device) if len(turns) > 1 and z is not None else None
    C = C.to(B.dtype)
    strides = (*x.stride()[:3], *((0, 0, 0) if z is None else z.stride()[:3]))
    tiles = tile.described and whole_tiles(plan, tile, x, z)
    dx_, dz_ = dx, dz
    if tiles:
        dy, x, z, dx_, dz_ = (token_tiles(plan, tile, v) for v in (dy, x, z, dx, dz))
        saved, adjoint = (state_tiles(tile, v) for v in (saved, adjoint))
    for n in turns:
        pairs_kernel[(chunks, plan.g * splits)](
            dy, x, B, C, D, z, step, log, saved, adjoint, plan.cu_seqlens, scores, dx_, dz_, dB,
            dC, dD, *found, dx_sum, y_sum, 0, plan.sequences, t, triton.cdiv(t, KEEP), h, plan.g,
            per_group, splits, share, b * t, *strides, *B.stride()[:3], *C.stride()[:3],
            *layout.skip_strides(D), n, P=p, N=plan.n, N_PAD=tile.n, WIDTH=tile.p, Q=Q,
            TILES=tiles, BY_CHANNEL=by_channel, FIRST=n == 0, LAST=n == turns[-1],
            STAGES=tile.stages, OPERAND=plan.operand, PRECISION=plan.precision,
            num_warps=tile.warps,
        )  # fmt: skip
    dB, dC = (v[0] if splits == 1 else v.sum(0) for v in (dB, dC))
    return dx, dz, dB, dC, dD


def whole_tiles(plan: Plan, tile: Tile, x: Tensor, z: Tensor | None) -> bool:
    """Whether every tile of x and of the states is whole, and can be described to the hardware."""
    if plan.cu_seqlens is not None or plan.t % KEEP or plan.p % tile.p or plan.n % tile.n:
        return False
    return all(
        v.stride(2) == plan.p
        and v.stride(0) == plan.t * v.stride(1)
        and v.stride(1) % 8 == 0
        and v.data_ptr() % 16 == 0
        and v.dtype == plan.dtype
        for v in (x, z)
        if v is not None
    )


def token_tiles(plan: Plan, tile: Tile, v: Tensor | None) -> TensorDescriptor | None:
    """v (b t h p) in tiles of Q tokens of one head."""
    if v is None:
        return None
    size, pitch = [len(v) * plan.t, plan.h * plan.p], v.stride(1)
    return TensorDescriptor(v, size, [pitch, 1], [Q, tile.p])


def state_tiles(tile: Tile, v: Tensor) -> TensorDescriptor:
    """States (slots h n p) in tiles of one head."""
    p = v.shape[3]
    return TensorDescriptor(v, [v.numel() // p, p], [p, 1], [tile.n, tile.p])
