"""How the work is cut up, and the few copies that make every launch's addresses regular."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ssmlib.kernels.sizes import cdiv, power_of_2

CHUNK = 64  # tokens between two states that the forward pass keeps: 4 n / CHUNK bytes per (t, d)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Tile(NamedTuple):
    """What a program holds at once, and from how many programs on a sequence stays whole.

    A multiprocessor has four schedulers, and two programs on each fill it. Where the forward pass
    has too few programs for that, it first makes them narrower, which costs a sixth more
    instructions, then cuts sequences, which costs two thirds more. To cut costs the backward pass
    little.
    """

    tokens: int
    width: int
    enough: float  # programs per multiprocessor


FORWARD = (Tile(tokens=8, width=32, enough=5.5), Tile(tokens=16, width=16, enough=4))
BACKWARD = (Tile(tokens=16, width=32, enough=7.5),)
FULL = 8  # programs per multiprocessor


class Plan(NamedTuple):
    """Sizes, and the cut of each sequence into segments that run side by side.

    A sequence is cut only where there are too few programs: a segment must first be run through for
    what it makes of a state, which doubles the exponentials. Packed sequences stay whole.
    """

    device: torch.device
    tile: Tile
    sequences: int
    t: int
    d: int
    g: int
    n: int
    segments: int
    segment: int
    cu_seqlens: Tensor | None

    @staticmethod
    def of(
        x: Tensor, A: Tensor, B: Tensor, cu_seqlens: Tensor | None, tiles: tuple[Tile, ...]
    ) -> "Plan":
        """The first of the tiles that makes enough programs; the first, and a cut, if none does."""
        if x.dtype not in DTYPES:
            raise ValueError(
                f"x: expected dtype float32, bfloat16 or float16 for the kernel, got {x.dtype};"
                " backend='torch' takes float64"
            )
        (b, t, d), g, n = x.shape, B.shape[2], A.shape[1]
        s = b if cu_seqlens is None else len(cu_seqlens) - 1
        share = {w: s * g * cdiv(d // g, w) / processors(x.device) for _, w, _ in tiles}
        enough = [tile for tile in tiles if share[tile.width] >= tile.enough]
        tile, segments = (enough or tiles)[0], 1
        if cu_seqlens is None and not enough:
            segments = _cut(t, share[tile.width])
        segment = cdiv(cdiv(t, segments), CHUNK) * CHUNK
        segments = cdiv(t, segment)
        return Plan(x.device, tile, s, t, d, g, n, segments, segment, cu_seqlens)

    @property
    def per_group(self) -> int:
        return self.d // self.g

    @property
    def blocks(self) -> int:
        """Blocks of channels in a group."""
        return cdiv(self.per_group, self.tile.width)

    @property
    def grid(self) -> tuple[int, int]:
        return self.g * self.blocks, self.sequences * self.segments

    @property
    def n_pad(self) -> int:
        return max(16, power_of_2(self.n))

    @property
    def warps(self) -> int:
        return self.n_pad // 16

    @property
    def pitch(self) -> int:
        """Tokens from one sequence of B and C to the next: whole tiles, so that none reads past."""
        return cdiv(self.t, 16) * 16

    def parts(self, itemsize: int) -> tuple[int, int]:
        """Launches of the backward pass over a segment, and the rows of shares that each fills.

        The shares of dB and dC, (blocks t 2 n) in float32, are twice as large as a narrow x with
        n = 16; a few launches that use the same room keep them at a third of it.
        """
        if self.cu_seqlens is not None:
            return 1, self.t
        bytes_of_shares, bytes_of_x = self.grid[0] * 8 * self.n_pad, self.d * itemsize
        wanted = cdiv(3 * bytes_of_shares, bytes_of_x)
        chunks = self.segment // CHUNK
        rows = cdiv(chunks, min(wanted, chunks)) * CHUNK
        return cdiv(self.segment, rows), rows

    def tokens(self, v: Tensor | None) -> Tensor | None:
        """v (b t d) with channels side by side and one sequence after the other."""
        if v is None:
            return None
        regular = v.stride(2) == 1 and v.stride(0) == self.t * v.stride(1)
        return v if regular or (v.stride(2) == 1 and len(v) == 1) else v.contiguous()

    def decay(self, A: Tensor) -> Tensor:
        """A log2(e) as (n d), so that a decay is one power of two."""
        return (A.float() * 1.4426950408889634).mT.contiguous()

    def states(self) -> Tensor:
        """Room for a state of every segment."""
        size = (self.sequences, self.segments, self.n, self.d)
        return torch.empty(size, dtype=torch.float32, device=self.device)

    def totals(self) -> Tensor:
        size = (self.sequences, self.segments, self.d)
        return torch.empty(size, dtype=torch.float32, device=self.device)

    def starts(self, state: Tensor | None, reverse: bool) -> Tensor:
        """Room for what each segment starts from, filled in for the first, or last, of them."""
        starts = self.states()
        starts[:, -1 if reverse else 0] = 0.0 if state is None else state
        return starts


def states_first(state: Tensor) -> Tensor:
    """A state (b d n) as the kernels hold it, (b n d) in float32."""
    return state.float().mT.contiguous()


@functools.cache
def processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _cut(t: int, programs: float) -> int:
    """Segments of one sequence, none shorter than four chunks; programs per multiprocessor."""
    if t < 8 * CHUNK:
        return 1
    return min(cdiv(t, 4 * CHUNK), max(2, round(FULL / programs)))


def saved_shape(x: Tensor, A: Tensor, B: Tensor, cu_seqlens: Tensor | None) -> tuple[int, int, int]:
    """The shape of what `forward` keeps for `backward`, from the shapes of the inputs alone."""
    (b, t, d), n = x.shape, A.shape[1]
    if cu_seqlens is None:
        return b * cdiv(t, CHUNK), n, d
    return t // CHUNK + cu_seqlens.shape[0] - 1, n, d
