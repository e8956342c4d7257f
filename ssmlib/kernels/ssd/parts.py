"""What the kernels of state space duality share: where a sequence lies, and its decays."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmlib.kernels.selective_scan.parts import LOG2E, sequence, softplus
from ssmlib.kernels.sizes import cdiv
from ssmlib.kernels.ssd.layout import KEEP

TOKENS = 128  # of one program of `decay_kernel`
HEADS = 32


@triton.jit
def locate(cu_ptr, k, sequences, t, segments, SIZE):
    """Of slot k: its sequence's number, first row and length, and where in it the slot begins.

    In a batch each sequence has `segments` slots of SIZE tokens. In a pack those of sequence i
    begin at slot first // SIZE + i, as in `slot`; a slot that begins at the length or after it is
    empty.
    """
    if cu_ptr is None:
        i = k // segments
        first, length = i.to(tl.int64) * t, t
        begin = (k % segments) * SIZE
    else:
        i, above = k * 0, k * 0 + sequences  # the last sequence whose slots begin at k or before
        while above - i > 1:
            middle = (i + above) // 2
            before = tl.load(cu_ptr + middle).to(tl.int32) // SIZE + middle <= k
            i, above = tl.where(before, middle, i), tl.where(before, above, middle)
        first, length = sequence(cu_ptr, i, t)
        begin = (k - (first // SIZE).to(tl.int32) - i) * SIZE
    return i, first, length, begin


@triton.jit
def row_of(cu_ptr, first, H):
    """Where in (b h t) the first head of a sequence begins; a head further are t numbers."""
    if cu_ptr is None:
        return first * H
    else:
        return first


@triton.jit
def line_of(cu_ptr, i, first, H, pitch):
    """The same in steps and decays, (b h pitch): in a batch the rows are padded, see `decays`."""
    if cu_ptr is None:
        return i.to(tl.int64) * H * pitch
    else:
        return first


@triton.jit(do_not_specialize=["sequences", "t", "blocks", "H"])
def decay_kernel(
    dt_ptr,
    a_ptr,
    bias_ptr,
    cu_ptr,
    step_ptr,
    log_ptr,
    other_ptr,
    sequences,
    t,
    pitch,
    blocks,
    H,
    dt_b,
    dt_t,
    dt_h,
    Q: tl.constexpr,
    OTHER: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):
    """One program: TOKENS tokens of a sequence, HEADS heads; chunks of Q tokens, and of OTHER."""
    i, first, length, begin = locate(cu_ptr, tl.program_id(0), sequences, t, blocks, TOKENS)
    if begin >= length:
        return
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    token = begin + tl.arange(0, TOKENS)
    mask = (token < length)[:, None] & (head < H)[None, :]
    if cu_ptr is None:
        dt_ptr += i.to(tl.int64) * dt_b
    else:
        dt_ptr += first * dt_t
    dt_ptr += begin.to(tl.int64) * dt_t
    rows = tl.arange(0, TOKENS)
    dt = tl.load(
        dt_ptr + rows[:, None] * dt_t + head[None, :].to(tl.int64) * dt_h, mask=mask, other=0.0
    )
    dt = dt.to(tl.float32)
    if bias_ptr is not None:
        dt += tl.load(bias_ptr + head, mask=head < H, other=0.0).to(tl.float32)[None, :]
    if SOFTPLUS:
        dt = softplus(dt)
    dt = tl.where(mask, dt, 0.0)
    a = tl.load(a_ptr + head, mask=head < H, other=0.0).to(tl.float32) * LOG2E
    a = dt * a[None, :]
    at = line_of(cu_ptr, i, first, H, pitch) + head[None, :].to(tl.int64) * pitch + token[:, None]
    if cu_ptr is None:
        mask = (token < pitch)[:, None] & (head < H)[None, :]
    tl.store(step_ptr + at, dt, mask=mask)
    log = tl.cumsum(tl.reshape(a, (TOKENS // Q, Q, HEADS)), 1)
    tl.store(log_ptr + at, tl.reshape(log, (TOKENS, HEADS)), mask=mask)
    if other_ptr is not None:
        log = tl.cumsum(tl.reshape(a, (TOKENS // OTHER, OTHER, HEADS)), 1)
        tl.store(other_ptr + at, tl.reshape(log, (TOKENS, HEADS)), mask=mask)


def decays(
    dt: Tensor,
    A: Tensor,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    cu_seqlens: Tensor | None,
    *chunks: int,
) -> tuple[Tensor, ...]:
    """The steps as they count, and log2 of the decays from a chunk's start on; all (b h pitch).

    dt (b t h). A row of a batch is padded to a multiple of KEEP tokens, over which nothing happens:
    the step is 0, and the decay stays what it was. For one or two sizes of chunks, powers of two up
    to TOKENS, entry t of a decay is the sum of dt A log2(e) from the first token of its chunk to
    token t. Chunks start where sequences do. All in float32.
    """
    b, t, h = dt.shape
    pitch = t if cu_seqlens is not None else cdiv(t, KEEP) * KEEP
    made = [torch.empty(b, h, pitch, dtype=torch.float32, device=dt.device) for _ in (0, *chunks)]
    rooms = made if len(chunks) == 2 else (*made, None)
    sequences = b if cu_seqlens is None else len(cu_seqlens) - 1
    bias = None if dt_bias is None else dt_bias.contiguous()
    blocks = cdiv(t, TOKENS)
    slots = b * blocks if cu_seqlens is None else t // TOKENS + sequences
    decay_kernel[(slots, cdiv(h, HEADS))](
        dt, A.contiguous(), bias, cu_seqlens, *rooms, sequences, t, pitch, blocks, h,
        *dt.stride(), Q=chunks[0], OTHER=chunks[-1], TOKENS=TOKENS, HEADS=HEADS,
        SOFTPLUS=dt_softplus, num_warps=8,
    )  # fmt: skip
    return tuple(made)
