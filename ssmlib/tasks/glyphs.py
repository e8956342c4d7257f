"""Ten digits drawn by strokes, read pixel by pixel: a stand-in for sequential MNIST.

A digit is a few lines and arcs in the unit square. Each drawing bends them a little, then turns,
slants, stretches and shifts the whole, and inks it with a pen of its own width. A pixel is as dark
as it is near to the nearest stroke. The last step is noise. No font is rendered, no handwriting is
shipped, and no picture is drawn twice.
"""

import math
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from ssmlib.shapes import check_number

Point = tuple[float, float]
SOFT = 0.02  # the blur of a stroke's edge, in the unit of the square


def digits(
    batch: int,
    seed: int,
    side: int = 28,
    jitter: float = 1.0,
    noise: float = 0.1,
    device: str | torch.device = "cpu",
) -> tuple[Tensor, Tensor]:
    """Return pixels x (b t 1), row by row, t = side², and which digit each is, (b,).

    Ink is 1 on 0, plus normal noise of the given size. jitter scales how much drawings differ: at 0
    every 7 is the same. Raises ValueError for a side < 8 and for negative numbers.
    """
    check_number(low=1, whole=True, batch=batch)
    check_number(low=8, whole=True, side=side)
    check_number(low=0, jitter=jitter, noise=noise)
    generator = torch.Generator(device).manual_seed(seed)
    labels = torch.randint(10, (batch,), generator=generator, device=device)
    strokes, real = (table.to(device) for table in _skeletons())
    points = _move(strokes[labels], jitter, generator)  # (b s 2 2): segments' ends
    missing = ~real[labels][:, :, None, None]
    distance = _distances(points, side).masked_fill_(missing, torch.inf).amin(1).sqrt().flatten(1)
    width = 0.045 + 0.02 * jitter * (_uniform(batch, 1, generator) + 0.5)
    ink = torch.sigmoid((width - distance) / SOFT)
    x = ink + noise * torch.randn(ink.shape, generator=generator, device=device)
    return x[..., None], labels


def _move(points: Tensor, jitter: float, generator: torch.Generator) -> Tensor:
    """Move each corner by itself, a little, and all of them together by an affine map."""
    b, device = len(points), points.device
    bend, wave = (torch.randn(b, 1, 1, 2, generator=generator, device=device) for _ in range(2))
    centre = points - 0.5
    bent = centre + jitter * 0.03 * (bend * torch.sin(7 * centre.flip(-1)) + wave * centre.flip(-1))
    draw = jitter * _uniform(b, 6, generator)
    turn, slant = 0.4 * draw[:, 0], 0.5 * draw[:, 1]
    wide, high = 0.72 * torch.exp(0.35 * draw[:, 2]), 0.8 * torch.exp(0.3 * draw[:, 3])
    cos, sin = turn.cos(), turn.sin()
    rows = [wide * cos, wide * (slant * cos - sin), high * sin, high * (slant * sin + cos)]
    matrix = torch.stack(rows, dim=1).view(b, 1, 2, 2)
    return bent @ matrix.mT + 0.5 + 0.2 * draw[:, None, None, 4:]


def _uniform(b: int, columns: int, generator: torch.Generator) -> Tensor:
    """(b columns) between -1/2 and 1/2."""
    return torch.rand(b, columns, generator=generator, device=generator.device) - 0.5


def _distances(segments: Tensor, side: int) -> Tensor:
    """Squares of the distances from each segment (b s 2 2) to each pixel: (b s rows columns).

    A point p is |p - start|² - 2 u (p - start)·along + u² |along|² from start + u along; both
    products are a part of the row plus a part of the column.
    """
    start, along = segments[:, :, 0], segments[:, :, 1] - segments[:, :, 0]
    pixel = (torch.arange(side, device=segments.device) + 0.5) / side
    towards = pixel - start[..., None]  # (b s 2 pixels)
    part = towards * along[..., None]
    dot = part[:, :, 1, :, None] + part[:, :, 0, None]
    square = along.square().sum(-1)[..., None, None]
    u = (dot / square).clamp_(0, 1)
    offset = (u * square).sub_(dot, alpha=2).mul_(u)
    towards = towards.square()
    return offset.add_(towards[:, :, 1, :, None]).add_(towards[:, :, 0, None]).clamp_min_(0)


@lru_cache(maxsize=1)
def _skeletons() -> tuple[Tensor, Tensor]:
    """Every digit's segments (10 s 2 2), x right and y down, and which of the s it really has."""
    drawn = [[s for stroke in strokes for s in _segments(stroke)] for strokes in _strokes()]
    most = max(map(len, drawn))
    padded = [segments + segments[:1] * (most - len(segments)) for segments in drawn]
    real = [[i < len(segments) for i in range(most)] for segments in drawn]
    return torch.tensor(padded), torch.tensor(real)


def _segments(stroke: list[Point]) -> list[tuple[Point, Point]]:
    return list(pairwise(stroke))


def _strokes() -> list[list[list[Point]]]:
    """Zero to nine; angles in degrees, clockwise from the right, as y goes down."""
    return [
        [_arc(0.5, 0.5, 0.26, 0.4, 0, 360)],
        [[(0.34, 0.27), (0.52, 0.1), (0.52, 0.9)]],
        [[*_arc(0.5, 0.33, 0.25, 0.23, 190, 395), (0.26, 0.9), (0.78, 0.9)]],
        [_arc(0.47, 0.3, 0.24, 0.2, 200, 450), _arc(0.47, 0.7, 0.27, 0.2, 270, 520)],
        [[(0.62, 0.9), (0.62, 0.1), (0.22, 0.64), (0.8, 0.64)]],
        [[(0.74, 0.1), (0.32, 0.1), (0.29, 0.46), *_arc(0.48, 0.65, 0.27, 0.25, 235, 500)]],
        [_arc(0.5, 0.67, 0.24, 0.23, 0, 360), _arc(0.72, 0.67, 0.46, 0.57, 180, 265)],
        [[(0.22, 0.1), (0.78, 0.1), (0.42, 0.9)]],
        [_arc(0.5, 0.3, 0.21, 0.2, 0, 360), _arc(0.5, 0.7, 0.25, 0.2, 0, 360)],
        [_arc(0.5, 0.33, 0.24, 0.23, 0, 360), [(0.74, 0.33), (0.66, 0.9)]],
    ]


def _arc(x: float, y: float, wide: float, high: float, start: float, stop: float) -> list[Point]:
    """A part of an ellipse as a chain of points, one for every 30 degrees or so."""
    pieces = math.ceil((stop - start) / 30)
    angles = [math.radians(start + (stop - start) * i / pieces) for i in range(pieces + 1)]
    return [(x + wide * math.cos(a), y + high * math.sin(a)) for a in angles]
