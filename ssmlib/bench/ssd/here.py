"""The comparisons of the suite `ssd` for the machine at hand: in full on a GPU, small on a CPU."""

from collections.abc import Iterator
from typing import Any

import torch

from ssmlib.bench.cell import Cell, Setting, ceiling_row, fill
from ssmlib.bench.ssd import block, compare
from ssmlib.bench.ssd.scans import Shape
from ssmlib.bench.timing import ceilings, default_device

LAPTOP = compare.Sizes(
    state=Shape(1, 256, 4, 64, 1, 0),
    states=(16, 64, 256),
    scanned=(16, 64, 256),
    quadratic=Shape(1, 256, 4, 64, 1, 64),
    squares=(),
    crossover=Shape(1, 2048, 4, 64, 1, 64),
    lengths=(128, 256, 512, 1024, 2048),
    decoding=Shape(8, 1, 8, 64, 1, 64),
    caches=(32, 128, 512, 2048),
)
BLOCK = block.Size(d=256, b=1, t=256, n=128, p=64)


def here(device: str | torch.device | None = None) -> list[dict[str, Any]]:
    """Rows of sizes of states, of crossovers and of blocks, with gradients, as the suite's are.

    A GPU takes the suite's sizes, and about a minute; a CPU one thread, LAPTOP, and some seconds.
    """
    device = default_device(device)
    on_gpu, threads = device.type == "cuda", torch.get_num_threads()
    torch.set_num_threads(threads if on_gpu else 1)
    try:
        setting = Setting(device, ceilings(device, time_s=0.05), 0.0, 0.05)
        cells = _cells(device, compare.FULL if on_gpu else LAPTOP, block.FULL if on_gpu else BLOCK)
        return [ceiling_row(setting.top), *(fill(cell, setting) for cell in cells)]
    finally:
        torch.set_num_threads(threads)


def _cells(device: torch.device, sizes: compare.Sizes, size: block.Size) -> Iterator[Cell]:
    backends = ["flash", "cudnn"] if device.type == "cuda" else ["flash"]
    made = [
        *compare.state_cells(sizes, device),
        *compare.crossover_cells(sizes, backends, device),
        block.mamba_cell(size, "forward+backward", device),
        block.mamba2_cell(size, "ssmlib", "forward+backward", device),
    ]
    yield from (cell for cell in made if cell.labels["pass"] == "forward+backward")
    yield from compare.decoding_cells(sizes, backends, device)
