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
FULL = 2  # programs of `adjoint_kernel` on a multiprocessor


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

    def blocks(self, plan: Plan) -> int:
        """Tiles of one state."""
        return triton.cdiv(plan.p, self.p) * triton.cdiv(plan.n, self.n)


def walk_tile(plan: Plan) -> Tile:
    narrow = plan.dtype.itemsize == 2
    return Tile.of(plan, 128, 64, 4, 2) if narrow else Tile.of(plan, 64, 32, 4, 1)


def pairs_tile(plan: Plan) -> Tile:
    narrow = plan.dtype.itemsize == 2
    return Tile.of(plan, 128, 64, 8, 2, True) if narrow else Tile.of(plan, 64, 32, 8, 1)


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


class Grads(NamedTuple):
    """Room for what `pairs_kernel` writes: dx, dz, a share of dB and dC for each of the programs
    that a group's heads are split over, and dD of each chunk, if it is (h p).

    The gradients of x and of what z gates are sums over all states. Where these are more than a
    program holds, they are taken in turns, and the sums are kept in float32 in between.
    """

    x: Tensor
    z: Tensor | None
    B: Tensor
    C: Tensor
    D: Tensor | None
    x_sum: Tensor | None
    y_sum: Tensor | None

    @staticmethod
    def room(
        x: Tensor,
        z: Tensor | None,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        chunks: int,
        splits: int,
        turns: int,
    ) -> "Grads":
        like = {"device": x.device}
        dx = torch.empty(x.shape, dtype=x.dtype, **like)
        dz = None if z is None else torch.empty(z.shape, dtype=z.dtype, **like)
        dtype = B.dtype if splits == 1 else torch.float32
        dB, dC = (torch.empty(splits, *B.shape, dtype=dtype, **like) for _ in range(2))
        by_channel = D is not None and D.ndim == 2
        dD = torch.zeros(chunks, *D.shape, **like) if by_channel else None
        x_sum = None if turns == 1 else torch.empty(x.shape, **like)
        y_sum = None if turns == 1 or z is None else torch.empty(x.shape, **like)
        return Grads(dx, dz, dB, dC, dD, x_sum, y_sum)


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
    d_state = None if state is None else plan.states(plan.sequences)
    tile = pairs_tile(plan)
    wide, chunks = triton.cdiv(plan.p, tile.p), 2 * len(saved)
    found = Found.room(plan, len(x), plan.h * wide, chunks)
    splits = splits_of(plan, chunks)
    grads = Grads.room(x, z, B, C, D, chunks, splits, triton.cdiv(plan.n, tile.n))
    part = part_of(plan)
    slots = len(saved) if cu_seqlens is not None else part * triton.cdiv(plan.t, KEEP)
    adjoint = torch.empty(slots, *saved.shape[1:], dtype=saved.dtype, device=x.device)
    for first in range(0, plan.sequences, part):
        rows = range(first, min(first + part, plan.sequences))
        walk(plan, rows, dy, C, z, log, d_last, adjoint, d_state)
        tokens = (dy, x, B, C, D, z, step, log, saved, adjoint)
        pairs(plan, tile, rows, splits, *tokens, found, grads)
    ddt = torch.empty(dt.shape, dtype=dt.dtype, device=dt.device)
    dA, d_bias, dD = (torch.zeros(chunks, plan.h, device=x.device) for _ in range(3))
    steps_kernel[(chunks, triton.cdiv(plan.h, HEADS))](
        dt, A, dt_bias, step, log, *found, cu_seqlens, ddt, dA,
        None if dt_bias is None else d_bias,
        dD if grads.D is None else None, plan.sequences, plan.t, triton.cdiv(plan.t, KEEP), plan.h,
        plan.g, *dt.stride(), WIDE=wide, Q=Q, HEADS=HEADS, SOFTPLUS=dt_softplus, num_warps=4,
    )  # fmt: skip
    dB, dC = (v[0] if splits == 1 else v.sum(0) for v in (grads.B, grads.C))
    dD = (dD if grads.D is None else grads.D).sum(0)
    all_grads = (grads.x, ddt, dA.sum(0), dB, dC, dD, grads.z, d_bias.sum(0), d_state)
    return tuple(
        None if v is None else grad.to(v.dtype) for grad, v in zip(all_grads, like, strict=True)
    )


def splits_of(plan: Plan, chunks: int) -> int:
    """Programs that share the heads of a group in a chunk: more than one where chunks are few."""
    per_group = plan.h // plan.g
    wanted = min(per_group, triton.cdiv(2 * layout.processors(plan.device), chunks * plan.g))
    return triton.cdiv(per_group, triton.cdiv(per_group, wanted))


def part_of(plan: Plan) -> int:
    """Sequences that are done at once: as many as fill the GPU, for what is kept of each."""
    if plan.cu_seqlens is not None:
        return plan.sequences
    programs = plan.h * walk_tile(plan).blocks(plan)
    return min(plan.sequences, triton.cdiv(FULL * layout.processors(plan.device), programs))


def walk(
    plan: Plan,
    rows: range,
    dy: Tensor,
    C: Tensor,
    z: Tensor | None,
    log: Tensor,
    d_last: Tensor,
    adjoint: Tensor,
    d_state: Tensor | None,
) -> None:
    """Fill adjoint, as the forward pass has kept states, and the gradient of the first state.

    Of these rows of the batch; all sequences, if they are packed.
    """
    tile = walk_tile(plan)
    adjoint_kernel[(plan.h * tile.blocks(plan), len(rows))](
        dy, C, z, log, d_last, plan.cu_seqlens, adjoint, d_state, rows[0], plan.t, plan.h,
        plan.h // plan.g, *C.stride()[:3], *((0, 0, 0) if z is None else z.stride()[:3]),
        P=plan.p, N=plan.n, N_PAD=tile.n, WIDTH=tile.p, Q=Q, KEEP=KEEP, STAGES=tile.stages,
        OPERAND=plan.operand, PRECISION=plan.precision, num_warps=tile.warps,
    )  # fmt: skip


def pairs(
    plan: Plan,
    tile: Tile,
    rows: range,
    splits: int,
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
    grads: Grads,
) -> None:
    """Fill found and grads, for these rows of the batch; all sequences, if they are packed."""
    t, h, per_group, slots = plan.t, plan.h, plan.h // plan.g, triton.cdiv(plan.t, KEEP)
    first, kept = rows[0] * slots, len(rows) * slots
    if plan.cu_seqlens is not None:
        first, kept = 0, len(saved)
    scores = torch.empty(2 * kept, plan.g * splits, Q, Q, device=plan.device)
    strides = (*x.stride()[:3], *((0, 0, 0) if z is None else z.stride()[:3]))
    dx, dz, dB, dC, dD, x_sum, y_sum = grads
    C = C.to(B.dtype)
    tiles = tile.described and whole_tiles(plan, tile, dy, x, z)
    if tiles:
        dy, x, z, dx, dz = (token_tiles(plan, tile, v) for v in (dy, x, z, dx, dz))
        saved, adjoint = (state_tiles(tile, v) for v in (saved, adjoint))
    for n in range(0, plan.n, tile.n):
        pairs_kernel[(2 * kept, plan.g * splits)](
            dy, x, B, C, D, z, step, log, saved, adjoint, plan.cu_seqlens, scores, dx, dz, dB, dC,
            dD, *found, x_sum, y_sum, first, plan.sequences, t, slots, h, plan.g, per_group,
            splits, triton.cdiv(per_group, splits), len(step) * t, *strides, *B.stride()[:3],
            *C.stride()[:3], *layout.skip_strides(D), n, P=plan.p, N=plan.n, N_PAD=tile.n,
            WIDTH=tile.p, Q=Q, TILES=tiles, BY_CHANNEL=dD is not None, FIRST=n == 0,
            LAST=n + tile.n >= plan.n, STAGES=tile.stages, OPERAND=plan.operand,
            PRECISION=plan.precision, num_warps=tile.warps,
        )  # fmt: skip


def whole_tiles(plan: Plan, tile: Tile, *tokens: Tensor | None) -> bool:
    """Whether all tiles of these, and of states, are whole, and can be described to hardware."""
    if plan.cu_seqlens is not None or plan.t % KEEP or plan.p % tile.p or plan.n % tile.n:
        return False
    return all(
        v.stride(2) == plan.p
        and (v.stride(0) == plan.t * v.stride(1) or len(v) == 1)
        and v.stride(1) % 8 == 0
        and v.data_ptr() % 16 == 0
        and v.dtype == plan.dtype
        for v in tokens
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
