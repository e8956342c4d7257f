"""How the work is cut up, what is kept for the backward pass, and which strides a kernel takes."""

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ssmlib.backends import interpreting
from ssmlib.kernels.sizes import cdiv, power_of_2, up_to

KEEP = 128  # tokens between two states that the forward pass keeps
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST = 256  # p and n that fit into a program
FULL = 2  # programs that run on a multiprocessor at once
ENOUGH = 0.4  # of such a round, with which a sequence stays whole
MANY = 1024  # shapes that are remembered
FAR = 2**24  # strides from which the offsets within a chunk would not fit into 32 bits

_CHECKED: dict[tuple, dict[str, Any]] = {}  # descriptions of tiles, without their tensors


class Tile(NamedTuple):
    """What a program of the forward pass holds at once: tokens of a chunk, channels of a head."""

    chunk: int
    width: int
    warps: int
    stages: int


@dataclass(eq=False)
class Plan:
    """Sizes, and the cut of each sequence into segments that run side by side.

    A segment is a whole number of KEEP tokens; the last one of a sequence may be shorter. In a
    batch, each sequence has `segments` of them, and slot i * segments + k is the k-th of sequence
    i. In a pack, where lengths are not known here, slots are `parts.locate`'s: of t // segment + s,
    some are empty.
    """

    device: torch.device
    dtype: torch.dtype  # of what the matrix products read
    sequences: int
    t: int
    h: int
    p: int
    g: int
    n: int
    segments: int
    segment: int
    cu_seqlens: Tensor | None
    relays: bool = False  # a segment waits for the one before it

    @staticmethod
    def of(
        x: Tensor,
        B: Tensor,
        C: Tensor,
        cu_seqlens: Tensor | None,
        segment: int | None = None,
        relays: bool = False,
    ) -> "Plan":
        """segment: tokens, a multiple of KEEP; None leaves sequences whole."""
        (b, t, h, p), (g, n) = x.shape, B.shape[2:]
        s = b if cu_seqlens is None else len(cu_seqlens) - 1
        segment = up_to(t, KEEP) if segment is None else segment
        segments = cdiv(t, segment)
        dtype = kept_dtype(x, B, C)
        return Plan(x.device, dtype, s, t, h, p, g, n, segments, segment, cu_seqlens, relays)

    @property
    def slots(self) -> int:
        """Segments there are, or may be."""
        if self.cu_seqlens is None:
            return self.sequences * self.segments
        return self.sequences if self.segments == 1 else self.t // self.segment + self.sequences

    @functools.cached_property
    def n_pad(self) -> int:
        return max(16, power_of_2(self.n))

    @functools.cached_property
    def p_pad(self) -> int:
        return max(16, power_of_2(self.p))

    @functools.cached_property
    def operand(self) -> tl.dtype:
        """What a kernel's matrix products read. Interpreted, they are right in float32 only."""
        names = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
        return tl.float32 if interpreting() else names[self.dtype]

    @functools.cached_property
    def precision(self) -> str:
        """How float32 operands are multiplied: as three products of their halves, not cut off."""
        return "tf32x3" if self.dtype == torch.float32 else "tf32"

    def describable(self, v: Tensor | None) -> bool:
        """Whether the hardware can fetch tiles of v by their coordinates, in the right dtype."""
        if v is None:
            return True
        fits = v.dtype == self.dtype and v.data_ptr() % 16 == 0
        return fits and nested(v.stride()[:-1], v.itemsize)

    @functools.cached_property
    def fetches(self) -> bool:
        """Whether there is such hardware; interpreted, where operands are as they are kept."""
        return self.dtype == torch.float32 if interpreting() else fetches(self.device)

    def describe(self, v: Tensor | None, *block: int) -> TensorDescriptor | None:
        """v in such tiles; what a tile has beyond v is read as zeros, and not written."""
        if v is None:
            return None
        key = (v.dtype, v.shape, v.stride(), block)
        known = _CHECKED.get(key)
        if known is None:
            if len(_CHECKED) >= MANY:
                _CHECKED.clear()
            known = vars(TensorDescriptor.from_tensor(v, list(block)))
            _CHECKED[key] = known = {name: known[name] for name in known if name != "base"}
        made = object.__new__(TensorDescriptor)  # its own checks take longer than a short kernel
        made.__dict__.update(known, base=v)
        return made

    def states(self, rows: int) -> Tensor:
        size = (rows, self.h, self.p, self.n)
        return torch.empty(size, dtype=torch.float32, device=self.device)

    def relay(self, tile: Tile) -> Tensor:
        """A counter, and a flag for each program."""
        programs = self.slots * self.h * cdiv(self.p, tile.width)
        return torch.zeros(1 + programs, dtype=torch.int32, device=self.device)

    def starts(self, state: Tensor | None) -> Tensor:
        """Room for what each segment starts from, filled in for the first one of each sequence."""
        starts = self.states(self.slots)
        if self.cu_seqlens is None:
            starts[:: self.segments] = 0.0 if state is None else state
        else:
            first = self.cu_seqlens[:-1] // self.segment
            first = first + torch.arange(self.sequences, device=self.device)
            starts[first] = torch.zeros((), device=self.device) if state is None else state
        return starts


@functools.lru_cache(MANY)
def nested(strides: tuple[int, ...], itemsize: int) -> bool:
    """Whether axes lie one in the other, on whole sixteens of bytes; the last one is left out."""
    inside = all(far >= near > 0 for far, near in itertools.pairwise(strides))
    return inside and all(stride * itemsize % 16 == 0 for stride in strides)


def rows(v: Tensor | None) -> Tensor | None:
    """v (b t ...) with its last axis side by side, and no stride too far for a kernel."""
    if v is None or (v.stride(-1) == 1 and v.stride(1) < FAR):
        return v
    return v.contiguous()


def kept_dtype(x: Tensor, B: Tensor, C: Tensor) -> torch.dtype:
    """What matrix products read and states are kept in: the dtype of x, B and C, or float32 where
    they are of several.
    """
    return x.dtype if x.dtype == B.dtype == C.dtype else torch.float32


def saved_shape(
    x: Tensor, B: Tensor, cu_seqlens: Tensor | None, chunk_size: int | None
) -> tuple[int, int, int, int]:
    """The shape (slots h n p) of what `forward` keeps: the h before each KEEP tokens of a sequence.

    Those of sequence i begin at slot i * cdiv(t, KEEP), in a pack at first // KEEP + i, where first
    is its first token: that leaves every sequence room, whatever the lengths.
    """
    (b, t, h, p), n = x.shape, B.shape[3]
    slots = b * cdiv(t, KEEP)
    if cu_seqlens is not None:
        slots = t // KEEP + cu_seqlens.shape[0] - 1
    return slots, h, n, p


def tile(x: Tensor, B: Tensor, C: Tensor, chunk_size: int | None, backward: bool = False) -> Tile:
    """A state of 2^13 numbers fills half the registers of four warps.

    Beside it there is room for a chunk of 32 tokens, and barely for one of 64: on an H100 the walk
    of the backward pass is a little faster so, that of the forward pass is not.
    """
    n_pad, p_pad = (max(16, power_of_2(v)) for v in (B.shape[3], x.shape[3]))
    if kept_dtype(x, B, C) == torch.float32:
        chunk, width, states, stages = 16, 32, 2**12, 2
    else:
        chunk, width, states, stages = 32, 64, 2**13, 4
        if n_pad <= 64:
            chunk, stages = 64, 3
        elif n_pad == 128 and backward:
            chunk, stages = 64, 2
    chunk = chunk if chunk_size is None else min(chunk, chunk_size)
    return Tile(chunk, min(p_pad, width, states // n_pad), 4, stages)


def cut(x: Tensor, cu_seqlens: Tensor | None, tile: Tile) -> tuple[int, bool]:
    """Tokens of a segment, and whether segments are a relay.

    Where there are too few programs for one round of all multiprocessors, segments run side by
    side, in about two rounds: a first pass finds what each makes of a state, for a third of the
    work again, of which twice as many programs find room.
    Where there are rounds, of which the last would leave many idle, segments make for more and
    shorter ones, and each waits for the one before it, which has mostly been over for long.
    """
    s, t, h, p = x.shape
    s = s if cu_seqlens is None else len(cu_seqlens) - 1
    rounds = s * h * cdiv(p, tile.width) / (FULL * processors(x.device))
    segments, relays = 1, False
    if rounds < ENOUGH and t >= 8 * KEEP:
        segments = min(cdiv(t, 4 * KEEP), max(2, int(2 / rounds)))
    elif rounds > 1 and cu_seqlens is None:
        few = min(8, max(1, t // (8 * KEEP)))
        loss = {k: math.ceil(k * rounds) / (k * rounds) for k in range(1, few + 1)}
        segments = next(k for k in loss if loss[k] < 1.05 or loss[k] == min(loss.values()))
        relays = segments > 1
    return up_to(cdiv(t, segments), KEEP), relays


def skip_strides(D: Tensor | None) -> tuple[int, int]:
    """Those of D (h,) or (h p), as if it had both axes."""
    if D is None:
        return 0, 0
    return D.stride(0), D.stride(1) if D.ndim == 2 else 0


def saved_dtype(x: Tensor, B: Tensor, C: Tensor, wide: torch.dtype) -> torch.dtype:
    return kept_dtype(x, B, C)


@functools.cache
def processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def fetches(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9
