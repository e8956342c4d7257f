"""The comparisons of the suite `ssd`, on the machine at hand."""

from collections.abc import Iterator
from typing import Any

import torch

from ssmlib.bench.cell import Cell, Setting, ceiling_row, fill
from ssmlib.bench.ssd import block, compare
from ssmlib.bench.timing import ceilings, default_device


def here(
    device: str | torch.device | None = None,
    sizes: compare.Sizes = compare.FULL,
    size: block.Size = block.FULL,
) -> list[dict[str, Any]]:
    """Rows of sizes of states, of crossovers and of blocks, with gradients, as the suite's are.

    In full, as it is, that takes a GPU about a minute.
    """
    device = default_device(device)
    setting = Setting(device, ceilings(device, time_s=0.05), 0.0, 0.05)
    return [
        ceiling_row(setting.top),
        *(fill(cell, setting) for cell in _cells(device, sizes, size)),
    ]


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
