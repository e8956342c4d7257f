"""A chunk of tokens of some batch members, and the matrix products that state space duality is."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmlib.recurrence import softplus


class Chunk(NamedTuple):
    """m batch members' inputs at c tokens, and what a chunk makes of them.

    x, z, u = dt x (m c h p). raw, dt (m c h): dt with its bias, and as it counts. B, C (m g c n).
    L (m h c c), G = C Bᵀ (m g c c). What is left of the state at the chunk's start at each token,
    past, and of each token at the chunk's end, rest (m c h 1); of the one at the other, total
    (m h 1 1).
    """

    x: Tensor
    z: Tensor | None
    u: Tensor
    raw: Tensor
    dt: Tensor
    B: Tensor
    C: Tensor
    L: Tensor
    G: Tensor
    past: Tensor
    rest: Tensor
    total: Tensor


class Found(NamedTuple):
    """Where a part's gradients go: x, dt, B, C, z have its tokens, the others are added up."""

    x: Tensor
    dt: Tensor
    B: Tensor
    C: Tensor
    z: Tensor | None
    A: Tensor
    D: Tensor | None
    bias: Tensor | None


class Part:
    """Some members of the batch, of which it loads a chunk at a time in the working dtype."""

    def __init__(
        self,
        members: slice,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        dt_bias: Tensor | None,
        dt_softplus: bool,
        wide: torch.dtype,
    ):
        self.tokens = [None if v is None else v[members] for v in (x, dt, B, C, z)]
        self.A, self.wide, self.softplus = A.double(), wide, dt_softplus
        self.bias = None if dt_bias is None else dt_bias.to(wide)
        self.D = None if D is None else D.to(wide).reshape(len(D), -1)  # (h 1) or (h p)
        self.state = (len(self.tokens[0]), *x.shape[2:], B.shape[3])

    def load(self, tokens: slice) -> Chunk:
        x, raw, B, C, z = (None if v is None else v[:, tokens].to(self.wide) for v in self.tokens)
        raw = raw if self.bias is None else raw + self.bias
        dt = softplus(raw) if self.softplus else raw
        s = (dt.double() * self.A).cumsum(1).mT.contiguous()  # (m h c), and L is laid out like it
        c = s.shape[2]
        future = torch.ones(c, c, dtype=torch.bool, device=s.device).triu(1)
        L = (s.unsqueeze(3) - s.unsqueeze(2)).masked_fill_(future, -torch.inf)
        past, rest = (v.transpose(1, 2).unsqueeze(3) for v in (s, s[:, :, -1:] - s))
        past, rest, L = (exp(v.to(self.wide)) for v in (past, rest, L))
        B, C = B.transpose(1, 2), C.transpose(1, 2)
        total = past[:, -1, :, :, None]
        return Chunk(x, z, x * dt.unsqueeze(3), raw, dt, B, C, L, C @ B.mT, past, rest, total)

    def read(self, chunk: Chunk, h: Tensor) -> Tensor:
        """y before its gate, (m c h p)."""
        within = mixing(chunk) @ chunk.u.transpose(1, 2)
        y = read_state(chunk.C, h).mul_(chunk.past).add_(within.transpose(1, 2))
        return y if self.D is None else y.addcmul_(self.D, chunk.x)


def exp(log_a: Tensor) -> Tensor:
    """e^log_a, in place, and 0 below the normal numbers, where exp is slow."""
    floor = math.log(torch.finfo(log_a.dtype).tiny)
    return F.threshold_(log_a, floor, -torch.inf).exp_()


def mixing(chunk: Chunk) -> Tensor:
    """L ∘ G, each head's matrix from u to y within the chunk: (m h c c)."""
    L = chunk.L.unflatten(1, (chunk.G.shape[1], -1))
    return (L * chunk.G.unsqueeze(2)).flatten(1, 2)


def outer(v: Tensor, M: Tensor) -> Tensor:
    """Sum over tokens of v Mᵀ: (m c h p), (m g c n) to (m h p n)."""
    return (_by_group(v, M.shape[1]).mT @ M).flatten(1, 2).unflatten(1, v.shape[2:])


def read_state(M: Tensor, h: Tensor) -> Tensor:
    """h M for each token: (m g c n), (m h p n) to (m c h p)."""
    m, g, c, n = M.shape
    flat = M @ h.reshape(m, g, -1, n).mT  # (m g c e*p)
    return flat.transpose(1, 2).reshape(m, c, *h.shape[1:3])


def read_heads(v: Tensor, h: Tensor, g: int) -> Tensor:
    """Sum over a group's heads of v h: (m c h p), (m h p n) to (m g c n)."""
    return _by_group(v, g) @ h.reshape(len(h), g, -1, h.shape[3])


def _by_group(v: Tensor, g: int) -> Tensor:
    """(m c h p) to (m g c e*p)."""
    return v.reshape(*v.shape[:2], g, -1).transpose(1, 2)
