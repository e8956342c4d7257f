"""A run on disk: one file, replaced whole, read without running code from it."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssmlib.train.config import TrainConfig


def save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    step: int,
    total: Tensor,
    rows: list[dict[str, Any]],
) -> None:
    """Write everything that the next step depends on; a kill leaves the old file or the new one."""
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "identity": config.identity(),
        "step": step,
        "total": total,
        "rows": json.dumps(rows),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with half.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)


def _check_same(wanted: dict[str, str], came: dict[str, str], path: Path) -> None:
    """Name the first entry in which the run on disk is another one."""
    for name in sorted(wanted.keys() | came.keys()):
        if wanted.get(name) != came.get(name):
            raise ValueError(
                f"checkpoint: expected {name} {wanted.get(name)}, got {came.get(name)} in {path}"
            )


def load(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig
) -> tuple[int, Tensor | None, list[dict[str, Any]]]:
    """Restore both, and return the step, the loss summed since the last row, and the rows.

    Nothing there is a start at step 0. Raises ValueError for a file of another run.
    """
    if not path.exists():
        return 0, None, []
    device = next(model.parameters()).device
    content = torch.load(path, map_location=device, weights_only=True)
    _check_same(config.identity(), content["identity"], path)
    shapes = [
        {name: str(tuple(x.shape)) for name, x in state.items()}
        for state in (model.state_dict(), content["model"])
    ]
    _check_same(*shapes, path)
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    return content["step"], content["total"], json.loads(content["rows"])
