"""What a kernel reads and writes, recorded while it runs interpreted, and drawn.

The interpreter runs one program after the other and hands every load and store the addresses of
its numbers. `trace` notes them; `draw` shows each tensor as a grid whose colour says when a cell
was touched, early or late in its program.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ssmlib.backends import interpreting
from ssmlib.kernels import ladder
from ssmlib.palette import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOUR = {name: light for name, (light, _) in PALETTE.items()}
T, D, N = 12, 8, 3  # sizes of the traced calls, all different, so that an axis is known by its size
WIDTH, GAP = 90, 2.0  # of a drawing, in cells


@dataclass(frozen=True)
class Access:
    """One load or store of one program: which numbers of which tensor, as flat indices."""

    kind: str
    program: int
    tensor: str
    cells: list[int]


@dataclass(frozen=True)
class Traffic:
    """The tensors of one launch, {name: (shape, bytes of a number)}, and what was done to them."""

    tensors: dict[str, tuple[list[int], int]]
    accesses: list[Access]

    def moved(self, kind: str, *names: str) -> int:
        """Bytes loaded or stored, repetitions included, of these tensors, or of all of them."""
        return sum(
            len(a.cells) * self.tensors[a.tensor][1]
            for a in self.accesses
            if a.kind == kind and (not names or a.tensor in names)
        )

    def touched(self, kind: str) -> list[str]:
        """The tensors that are loaded, or stored, in the order in which that begins."""
        return list(dict.fromkeys(a.tensor for a in self.accesses if a.kind == kind))


def traffic(name: str) -> Traffic:
    """What the rung `name` of `ssmlib.kernels.ladder`, one of CALLS, does on a few tokens.

    Where kernels are compiled, it is traced in a process of its own, interpreted. Raises ValueError
    for an unknown name.
    """
    if name not in CALLS:
        raise ValueError(f"name: expected one of {', '.join(CALLS)}, got {name!r}")
    if interpreting():
        return trace(CALLS[name])
    code = (
        "import json, sys\nfrom ssmlib.viz.traffic import traffic\n"
        "t = traffic(sys.argv[1])\n"
        "print(json.dumps([t.tensors, [vars(a) for a in t.accesses]]))"
    )
    run = [sys.executable, "-c", code, name]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(run, capture_output=True, text=True, env=environment, check=True)
    tensors, accesses = json.loads(done.stdout.splitlines()[-1])
    return Traffic(
        {key: (shape, size) for key, (shape, size) in tensors.items()},
        [Access(**a) for a in accesses],
    )


def trace(call: Callable[[], object]) -> Traffic:
    """The loads and stores of the one kernel that `call` launches, interpreted, on CPU tensors."""
    from triton.runtime import interpreter

    builder, kernel = interpreter.interpreter_builder, interpreter.InterpretedFunction
    load, store, run = builder.create_masked_load, builder.create_masked_store, kernel.run
    tensors: dict[str, Tensor] = {}
    accesses: list[Access] = []

    def note(kind: str, pointers: Any, mask: Any) -> None:
        addresses = pointers.data[mask.data].tolist()
        for name, x in tensors.items():
            start, size = x.data_ptr(), x.element_size()
            if addresses and start <= addresses[0] < start + x.numel() * size:
                x_, y_, z_ = builder.grid_idx
                _, ny, nz = builder.grid_dim
                cells = [(at - start) // size for at in addresses]
                accesses.append(Access(kind, (x_ * ny + y_) * nz + z_, name, cells))

    def noted_load(pointers: Any, mask: Any, *rest: Any) -> Any:
        note("load", pointers, mask)
        return load(pointers, mask, *rest)

    def noted_store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        note("store", pointers, mask)
        return store(pointers, value, mask, *rest)

    def noted_run(self: Any, *args: Any, **options: Any) -> Any:
        named = zip(self.arg_names, args, strict=False)
        pointed = {k.removesuffix("_ptr"): x for k, x in named if isinstance(x, Tensor)}
        tensors.update(pointed)
        return run(self, *args, **options)

    builder.create_masked_load, builder.create_masked_store = noted_load, noted_store
    kernel.run = noted_run
    try:
        call()
    finally:
        del builder.create_masked_load, builder.create_masked_store
        kernel.run = run
    shapes = {name: (list(x.shape), x.element_size()) for name, x in tensors.items()}
    return Traffic(shapes, accesses)


def draw(ax: "Axes", strips: Mapping[str, Traffic], time: int = T) -> None:
    """For each launch a strip of its tensors, all to one scale: what it reads, then what it writes.

    Time runs to the right, the other axes go down; a tensor without time is a column. A cell's
    colour is the place of its first touch in the run of its program, from blue to yellow.
    """
    top = 0.0
    for title, seen in strips.items():
        reads, writes = ([(k, name) for name in seen.touched(k)] for k in ("load", "store"))
        pictures = {key: _picture(seen, *key, time) for key in reads + writes}
        wide = sum(p.shape[1] + GAP for p in pictures.values()) > WIDTH
        lines = [reads, writes] if wide else [reads + writes]
        told = f"{title}: {seen.moved('load'):,} B read, {seen.moved('store'):,} B written"
        ax.text(0, top + 2, told, fontsize=10.5, color=COLOUR["ink"])
        for line in lines:
            left, top = 0.0, top + 7
            for kind, name in line:
                if (kind, name) == writes[0] and not wide:
                    ax.text(left + 1, top + 4, "→", fontsize=16, color=COLOUR["muted"])
                    left += 8
                left = _place(ax, pictures[kind, name], left, top, _label(seen, kind, name))
            top += max(pictures[key].shape[0] for key in line)
        top += 3
    ax.set(xlim=(-0.5, WIDTH), ylim=(top - 2, -1), aspect="equal")
    ax.axis("off")


def _place(ax: "Axes", picture: Tensor, left: float, top: float, label: str) -> float:
    """Draw one tensor, and return where the next one begins."""
    high, wide = picture.shape
    box = (left, left + wide, top + high, top)
    ax.imshow(picture.numpy(), extent=box, vmin=0, vmax=1, cmap="cividis", interpolation="nearest")
    edges = [left, left + wide, left + wide, left, left], [top, top, top + high, top + high, top]
    ax.plot(*edges, color=COLOUR["muted"], lw=0.6)
    ax.text(left, top - 0.7, label, fontsize=8.5, color=COLOUR["ink"])
    return left + max(wide, 1.15 * len(label)) + GAP


def _label(seen: Traffic, kind: str, name: str) -> str:
    shape, size = seen.tensors[name]
    often = seen.moved(kind, name) / (prod(shape) * size)
    return name if often == 1 else f"{name} {often:g}×"


def _picture(seen: Traffic, kind: str, name: str, time: int) -> Tensor:
    """When each number was first touched, 0 to 1, NaN if never; time, if any, along axis 1."""
    shape, _ = seen.tensors[name]
    first = torch.full((prod(shape),), torch.nan)
    for place, access in _places(seen):
        if (access.kind, access.tensor) == (kind, name):
            cells = torch.tensor(access.cells)
            first[cells] = torch.where(first[cells].isnan(), place, first[cells])
    along = shape.index(time) if time in shape else 1 if len(shape) == 4 else None
    if along is None:
        return first[:, None]
    return first.view(shape).movedim(along, -1).reshape(-1, shape[along])


def _places(seen: Traffic) -> list[tuple[float, Access]]:
    """Every access with its place in its program: 0 the first, 1 the last."""
    by_program: dict[int, list[Access]] = {}
    for access in seen.accesses:
        by_program.setdefault(access.program, []).append(access)
    return [
        (i / max(1, len(own) - 1), access)
        for own in by_program.values()
        for i, access in enumerate(own)
    ]


def _calls() -> Mapping[str, Callable[[], object]]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    x, dt, dy, A = normal(1, T, D), normal(1, T, D).exp() / 8, normal(1, T, D), -normal(D, N).exp()
    B, C = normal(1, T, N), normal(1, T, N)
    a, driven = torch.exp(dt[..., None] * A), (dt * x)[..., None] * B[:, :, None]
    return {
        "tile_scan": lambda: ladder.tile_scan(a[..., 0].contiguous(), x, D=4),
        "chunked_scan": lambda: ladder.chunked_scan(a[..., 0].contiguous(), x, T=4, D=4),
        "spread_scan": lambda: ladder.chunked_scan(a.flatten(2), driven.flatten(2), T=4, D=4),
        "states_scan": lambda: ladder.states_scan(a, driven, C, D=4),
        "fused_scan": lambda: ladder.fused_scan(x, dt, A, B, C, D=4),
        "fused_saving": lambda: ladder.fused_scan(x, dt, A, B, C, S=4, D=4),
        "fused_backward": lambda: ladder.fused_backward(
            dy, x, dt, A, B, C, torch.zeros(1, T // 4, D, N), S=4, D=4
        ),
        "step": lambda: ladder.step(
            x[:, 0].contiguous(), dt[:, 0].contiguous(), A, B[:, 0], C[:, 0], normal(1, D, N), D=4
        ),
    }


CALLS = _calls()
