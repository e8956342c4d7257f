"""How the work is cut up, what is kept for the backward pass, and which strides a kernel takes."""

import functools
from typing import NamedTuple

import torch
import triton
from torch import Tensor

KEEP = 128  # tokens between two states that the forward pass keeps
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST = 256  # p and n that fit into a program
FAR = 2**24  # strides from which the offsets within a chunk would not fit into 32 bits


class Plan(NamedTuple):
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

    @staticmethod
    def of(
        x: Tensor, B: Tensor, C: Tensor, cu_seqlens: Tensor | None, segment: int | None = None
    ) -> "Plan":
        """segment: tokens, a multiple of KEEP; None leaves sequences whole."""
        (b, t, h, p), (g, n) = x.shape, B.shape[2:]
        s = b if cu_seqlens is None else len(cu_seqlens) - 1
        segment = up_to(t, KEEP) if segment is None else segment
        segments = triton.cdiv(t, segment)
        dtype = kept_dtype(x, B, C)
        return Plan(x.device, dtype, s, t, h, p, g, n, segments, segment, cu_seqlens)

    @property
    def slots(self) -> int:
        """Segments there are, or may be."""
        if self.cu_seqlens is None:
            return self.sequences * self.segments
        return self.sequences if self.segments == 1 else self.t // self.segment + self.sequences

    @property
    def n_pad(self) -> int:
        return max(16, triton.next_power_of_2(self.n))

    @property
    def p_pad(self) -> int:
        return max(16, triton.next_power_of_2(self.p))


def up_to(size: int, step: int) -> int:
    return triton.cdiv(size, step) * step


def rows(v: Tensor | None) -> Tensor | None:
    """v (b t ...) with its last axis side by side, and no stride too far for a kernel."""
    if v is None or (v.stride(-1) == 1 and v.stride(1) < FAR):
        return v
    return v.contiguous()


def kept_dtype(x: Tensor, B: Tensor, C: Tensor) -> torch.dtype:
    """What matrix products read and states are kept in: that of x, B and C if it is one, and 16
    bits wide, float32 otherwise.
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
    slots = b * triton.cdiv(t, KEEP)
    if cu_seqlens is not None:
        slots = t // KEEP + cu_seqlens.shape[0] - 1
    return slots, h, n, p


@functools.cache
def processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
