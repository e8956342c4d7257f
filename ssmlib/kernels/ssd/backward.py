r"""The backward pass: a walk from the end for x and states, and all chunks at once for the rest.

With $\lambda_i$ for the gradient of the state after token i, $s_i$ for the log decay from the start
of a chunk to token i, and c for its last token,

$$\lambda_0 = e^{s_c} \lambda_c + \sum_i e^{s_i} \bar y_i C_i^\top, \qquad
\bar x_j = \Delta_j \Big( \sum_{i \ge j} e^{s_i - s_j} (C_i^\top B_j) \bar y_i
+ e^{s_c - s_j} \lambda_c B_j \Big)$$

which is the forward pass from the other end. `adjoint_kernel` walks it, a program for each head,
and keeps λ every KEEP tokens, where the forward pass has kept states. The gradients of B and C are
sums over heads, so that a program takes a chunk and goes through the heads of a group:

$$\bar B_j = \sum_h e^{s_c - s_j} \Delta_j x_j^\top \lambda_c
+ \sum_{i \ge j} \bar G_{ij} C_i, \qquad
\bar C_i = \sum_h e^{s_i} \bar y_i^\top h_0 + \sum_{j \le i} \bar G_{ij} B_j, \qquad
\bar G_{ij} = \sum_h e^{s_i - s_j} \Delta_j x_j^\top \bar y_i$$

`pairs_kernel` makes the last of these, `states_kernel` the other two, and both sum up, in float32,
what the decay between any two tokens means to the loss; `steps_kernel` makes of it the gradients of
dt and A. What each launch moves, in bytes per number of x of s bytes, with n states and KEEP = 128:

| launch | reads | writes |
|---|---|---|
| `adjoint_kernel` | dy: s | dx: s, states: s n / KEEP |
| `pairs_kernel` | x, dy: 2 s | |
| `states_kernel` | x, dy: 2 s, states: 2 s n / KEEP | |

With z, the forward pass is run again for what z gates, and `gate_kernel` makes the gradients of
both. Sums are taken in a fixed order: the same inputs give the same bits.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ssmlib.kernels.sizes import cdiv, power_of_2, up_to
from ssmlib.kernels.ssd import layout
from ssmlib.kernels.ssd.backward_pairs import pairs_kernel
from ssmlib.kernels.ssd.backward_states import states_kernel
from ssmlib.kernels.ssd.backward_steps import gate_kernel, steps_kernel
from ssmlib.kernels.ssd.backward_walk import adjoint_kernel, carry_back_kernel
from ssmlib.kernels.ssd.forward import forward
from ssmlib.kernels.ssd.layout import KEEP, Plan
from ssmlib.kernels.ssd.parts import decays

HEADS = 8  # of a program of `steps_kernel`


class Tile(NamedTuple):
    """States and channels that a program of `states_kernel` or `pairs_kernel` holds, and how."""

    n: int
    p: int
    warps: int
    stages: int
    registers: int | None = None  # of a thread at most, so that more programs fit beside each other

    @staticmethod
    def of(plan: Plan, n: int, p: int, *launch: int | None) -> "Tile":
        return Tile(min(plan.n_pad, n), min(plan.p_pad, p), *launch)

    def lanes(self, plan: Plan) -> int:
        """Tiles of a head."""
        return cdiv(plan.p, self.p) * cdiv(plan.n, self.n)


def states_tile(plan: Plan) -> Tile:
    if plan.dtype.itemsize > 2:
        return Tile.of(plan, 32, 32, 8, 2)
    if not roomy(plan.device):
        return Tile.of(plan, 64, 64, 8, 2)
    return Tile.of(plan, 128, 64, 8, 2 if plan.n_pad > 64 else 3)


def pairs_tile(plan: Plan) -> Tile:
    if plan.dtype.itemsize > 2:
        return Tile.of(plan, plan.n_pad, 32, 4, 2)
    return Tile.of(plan, plan.n_pad, 64, 4, 3, 168)


@functools.cache
def roomy(device: torch.device) -> bool:
    """Whether a program has the shared memory of an A100, or more."""
    if device.type != "cuda":
        return True
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin >= 160 * 1024


class Tokens(NamedTuple):
    """The inputs, their last axes side by side, dy the gradient before the gate; decays by KEEP.

    tiles: whether the hardware fetches tiles of all of these by their coordinates.
    """

    dy: Tensor
    x: Tensor
    B: Tensor
    C: Tensor
    step: Tensor
    log: Tensor
    tiles: bool


class Found(NamedTuple):
    """What the kernels leave to `steps_kernel`, a lane being one of their tiles of a head.

    itself (b g t): C B of each token with itself. rest, as steps are kept: what is left of a token
    after its chunk, times its step, for `states_kernel`. pairs (4 b lanes t): see `pairs_kernel`.
    states (2 b lanes t): what a token leaves to the state, but for its step, and what it reads.
    through (slots lanes): what goes through a chunk, from the state before to the state after. skip
    (2 slots h p): the gradient of D of each half of a chunk, if D is (h p).
    """

    itself: Tensor
    rest: Tensor
    pairs: Tensor
    states: Tensor
    through: Tensor
    skip: Tensor | None

    @staticmethod
    def room(plan: Plan, step: Tensor, slots: int, D: Tensor | None) -> "Found":
        pairs, states = (plan.h * f(plan).lanes(plan) for f in (pairs_tile, states_tile))
        b, t, g = len(step), plan.t, plan.g
        sizes = (b, g, t), step.shape, (4, b, pairs, t), (2, b, states, t), (slots, states)
        rooms = (torch.empty(size, device=plan.device) for size in sizes)
        by_channel = D is not None and D.ndim == 2
        skip = torch.zeros(2 * slots, *D.shape, device=plan.device) if by_channel else None
        return Found(*rooms, skip)


def backward(
    dy: Tensor,
    d_last: Tensor | None,
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

    `saved` is what `forward` has kept; d_last None is as if it were zero. Each gradient is in its
    input's dtype.
    """
    like = (x, dt, A, B, C, D, z, dt_bias, state)
    tile = layout.tile(x, B, C, chunk_size, backward=True)
    plan = Plan.of(x, B, C, cu_seqlens, segment_of(x, cu_seqlens, tile))
    x, B, C, z = (layout.rows(v) for v in (x, B, C, z))
    dy, dz = dy.contiguous(), None
    if z is not None:
        packed = (dt_bias, dt_softplus, state, cu_seqlens, chunk_size, False)
        dy, dz = gate(dy, forward(x, dt, A, B, C, D, None, *packed)[0], z)
    step, log, log_of_walk = decays(dt, A, dt_bias, dt_softplus, cu_seqlens, KEEP, tile.chunk)
    tiles = described(plan, dy, x, B, C)
    tokens, logs = Tokens(dy, x, B, C, step, log, tiles), (step, log_of_walk)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    d_state = None if state is None else plan.states(plan.sequences)
    found = Found.room(plan, tokens.step, len(saved), D)
    splits = shares(plan, len(saved) * plan.g * cdiv(plan.n, states_tile(plan).n), 1)
    dB, dC = (
        torch.empty(
            splits, *v.shape, dtype=v.dtype if splits == 1 else torch.float32, device=x.device
        )
        for v in (B, C)
    )
    start = after_segments(plan, tile, tokens, logs, d_last)
    adjoint = torch.empty_like(saved)
    walk(plan, tile, tokens, logs, D, start, dx, d_state, adjoint)
    scores = pairs(plan, tokens, found, len(saved))
    states(plan, splits, tokens, saved, adjoint, scores, found, dB, dC)
    ddt, dA, d_bias, dD = steps(plan, dt, A, dt_bias, dt_softplus, tokens.step, found, len(saved))
    dB, dC = (v[0] if splits == 1 else v.sum(0) for v in (dB, dC))
    dD = dD if found.skip is None else found.skip.sum(0)
    grads = (dx, ddt, dA, dB, dC, dD, dz, d_bias, d_state)
    return tuple(
        None if v is None else grad.to(v.dtype) for grad, v in zip(grads, like, strict=True)
    )


def segment_of(x: Tensor, cu_seqlens: Tensor | None, tile: layout.Tile) -> int:
    """Tokens of a segment of the walk: all, or where there are few programs, fewer."""
    s, t, h, p = x.shape
    s = s if cu_seqlens is None else len(cu_seqlens) - 1
    rounds = s * h * cdiv(p, tile.width) / (layout.FULL * layout.processors(x.device))
    if rounds >= layout.ENOUGH or t < 8 * KEEP:
        return up_to(t, KEEP)
    segments = min(cdiv(t, 4 * KEEP), max(2, round(1 / rounds)))
    return up_to(cdiv(t, segments), KEEP)


def shares(plan: Plan, programs: int, wanted: float) -> int:
    """Programs that share the heads of a group, where there are fewer than wanted for each SM."""
    per_group = plan.h // plan.g
    splits = min(per_group, max(1, round(wanted * layout.processors(plan.device) / programs)))
    return cdiv(per_group, cdiv(per_group, splits))


def gate(dy: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of y and z, from that of y silu(z); y may be written over."""
    gated = torch.empty_like(y)
    dz = y if y.dtype == z.dtype else torch.empty(y.shape, dtype=z.dtype, device=z.device)
    _, t, h, p = y.shape
    gate_kernel[(cdiv(y.numel(), 1024),)](
        dy, y, z, gated, dz, y.numel(), t, *z.stride()[:3], H=h, P=p, SIZE=1024, num_warps=4
    )
    return gated, dz


def after_segments(
    plan: Plan,
    tile: layout.Tile,
    tokens: Tokens,
    logs: tuple[Tensor, Tensor],
    d_last: Tensor | None,
) -> Tensor | None:
    """The gradient of the state after each segment, from that of the last one of a sequence."""
    if plan.segments == 1:
        return None if d_last is None else d_last.contiguous()
    d_last = 0.0 if d_last is None else d_last
    start, before = plan.states(plan.slots), plan.states(plan.slots)
    if plan.cu_seqlens is None:
        start[plan.segments - 1 :: plan.segments] = d_last
    else:
        first, end = plan.cu_seqlens[:-1], plan.cu_seqlens[1:]
        last = first // plan.segment + (end - first - 1) // plan.segment
        start[last + torch.arange(plan.sequences, device=plan.device)] = d_last
    walk(plan, tile, tokens, logs, None, None, None, before, None)
    size = plan.p * plan.n
    carry_back_kernel[(cdiv(size, 1024), plan.sequences * plan.h)](
        logs[1], start, before, plan.cu_seqlens, plan.t, logs[1].shape[2], plan.segment, plan.h,
        size, Q=tile.chunk, CHUNKS=power_of_2(plan.segment // tile.chunk), WIDTH=1024,
        num_warps=4,
    )  # fmt: skip
    return start


def walk(
    plan: Plan,
    tile: layout.Tile,
    tokens: Tokens,
    logs: tuple[Tensor, Tensor],
    D: Tensor | None,
    start: Tensor | None,
    dx: Tensor | None,
    before: Tensor | None,
    adjoint: Tensor | None,
) -> None:
    """Fill dx, adjoint and the gradient of the first state.

    Without dx, fill `before` with what the gradient before a segment is if that after it is zero.
    """
    dy, B, C = tokens.dy, tokens.B, tokens.C
    strides = (*B.stride()[:3], *C.stride()[:3], *layout.skip_strides(D))
    if tokens.tiles:
        dy, dx = (plan.describe(v, 1, tile.chunk, 1, tile.width) for v in (dy, dx))
        B, C = (plan.describe(v, 1, tile.chunk, 1, plan.n_pad) for v in (B, C))
        adjoint = None if adjoint is None else by_head(plan, adjoint, plan.n_pad, tile.width)
    adjoint_kernel[(plan.h * cdiv(plan.p, tile.width), plan.slots)](
        dy, B, C, *logs, D, start, plan.cu_seqlens, dx, before, adjoint, plan.sequences, plan.t,
        logs[1].shape[2], plan.segments, plan.segment, plan.h, plan.h // plan.g, *strides,
        P=plan.p, N=plan.n, N_PAD=plan.n_pad, WIDTH=tile.width, Q=tile.chunk, KEEP=KEEP,
        STAGES=tile.stages, TILES=tokens.tiles, BY_CHANNEL=D is not None and D.ndim == 2,
        OPERAND=plan.operand, PRECISION=plan.precision, num_warps=tile.warps,
    )  # fmt: skip


def pairs(plan: Plan, tokens: Tokens, found: Found, slots: int) -> Tensor:
    """Fill found. Return the gradients of C Bᵀ in each chunk.

    These are (slots g splits KEEP KEEP), to be added up over the splits.
    """
    tile, (dy, x, B, C, step, log, _) = pairs_tile(plan), tokens
    splits = shares(plan, 3 * slots * plan.g, 3)
    scores = torch.empty(slots, plan.g, splits, KEEP, KEEP, device=plan.device)
    strides = (*x.stride()[:3], *B.stride()[:3], *C.stride()[:3])
    if tokens.tiles:
        dy, x = (plan.describe(v, 1, KEEP // 2, 1, tile.p) for v in (dy, x))
    per_group, chunks = plan.h // plan.g, cdiv(plan.t, KEEP)
    pairs_kernel[(3 * slots, plan.g * splits)](
        dy, x, B, C, step, log, plan.cu_seqlens, scores, found.itself, found.rest, found.pairs,
        found.skip, plan.sequences, plan.t, step.shape[2], chunks, plan.h, plan.g,
        per_group, splits, cdiv(per_group, splits), found.pairs[0].numel(), *strides,
        P=plan.p, N=plan.n, N_PAD=tile.n, WIDTH=tile.p, Q=KEEP // 2, STAGES=tile.stages,
        TILES=tokens.tiles, OPERAND=plan.operand, PRECISION=plan.precision, num_warps=tile.warps,
        maxnreg=tile.registers,
    )  # fmt: skip
    return scores


def states(
    plan: Plan,
    splits: int,
    tokens: Tokens,
    saved: Tensor,
    adjoint: Tensor,
    scores: Tensor,
    found: Found,
    dB: Tensor,
    dC: Tensor,
) -> None:
    """Fill found, dB and dC (splits b t g n)."""
    tile, (dy, x, B, C, _, log, _) = states_tile(plan), tokens
    strides = (*x.stride()[:3], *B.stride()[:3], *C.stride()[:3])
    slots, per_group, chunks = len(scores), plan.h // plan.g, cdiv(plan.t, KEEP)
    if tokens.tiles:
        dy, x = (plan.describe(v, 1, KEEP, 1, tile.p) for v in (dy, x))
        saved, adjoint = (by_head(plan, v, tile.n, tile.p) for v in (saved, adjoint))
    deep = cdiv(plan.n, tile.n)
    rows_of_all = dB[0].numel() // (plan.g * plan.n)
    states_kernel[(slots, plan.g * deep * splits)](
        dy, x, B, C, found.rest, log, saved, adjoint, plan.cu_seqlens, scores, found.through,
        found.states, dB, dC, plan.sequences, plan.t, log.shape[2], chunks, plan.h, plan.g,
        per_group, splits, cdiv(per_group, splits), scores.shape[2], found.states[0].numel(),
        rows_of_all, *strides, P=plan.p, N=plan.n, N_PAD=tile.n, WIDTH=tile.p, KEEP=KEEP,
        STAGES=tile.stages, TILES=tokens.tiles, OPERAND=plan.operand, PRECISION=plan.precision,
        num_warps=tile.warps, maxnreg=tile.registers,
    )  # fmt: skip


def steps(
    plan: Plan,
    dt: Tensor,
    A: Tensor,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    step: Tensor,
    found: Found,
    slots: int,
) -> tuple[Tensor, ...]:
    """The gradients of dt, A, dt_bias and of D (h,)."""
    ddt = torch.empty(dt.shape, dtype=dt.dtype, device=dt.device)
    sums = torch.zeros(3, slots, plan.h, device=dt.device)
    pairs, states = (f(plan).lanes(plan) for f in (pairs_tile, states_tile))
    steps_kernel[(slots, cdiv(plan.h, HEADS))](
        dt, A.contiguous(), None if dt_bias is None else dt_bias.contiguous(), step, found.itself,
        found.pairs, found.states, found.through, plan.cu_seqlens, ddt, *sums, plan.sequences,
        plan.t, step.shape[2], cdiv(plan.t, KEEP), plan.h, plan.g, found.pairs[0].numel(),
        found.states[0].numel(), *dt.stride(), PAIRS=pairs, STATES=states, KEEP=KEEP, HEADS=HEADS,
        SOFTPLUS=dt_softplus, num_warps=8,
    )  # fmt: skip
    return ddt, *(v.sum(0) for v in sums)


def described(plan: Plan, *tensors: Tensor | None) -> bool:
    """Whether the hardware fetches tiles of all of these by their coordinates."""
    able = plan.cu_seqlens is None and plan.fetches and plan.p * plan.dtype.itemsize % 16 == 0
    return able and all(plan.describable(v) for v in tensors)


def by_head(plan: Plan, states: Tensor, n: int, p: int) -> object:
    """States (slots h n p) in tiles of one head."""
    return plan.describe(states.flatten(0, 1), 1, n, p)
