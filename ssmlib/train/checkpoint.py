"""A run on disk: one safetensors file, replaced whole, and read without running code from it.

Its tensors are called model.<name>, optimizer.<parameter>.<name> and total; its header holds the
step, the rows and the identity of the run as JSON.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
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
    """Write everything that the next step depends on; a kill leaves the old file or the new one.

    The optimizer's groups follow from the model and the config, so its state alone is kept.
    """
    own = model.state_dict()
    tensors = {f"model.{name}": own[name] for name in set(_first_names(model).values())}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": x for name, x in state.items()}
    tensors = {name: x.detach().contiguous() for name, x in tensors.items()} | {"total": total}
    header = {
        "step": str(step),
        "rows": json.dumps(rows),
        "identity": json.dumps(config.identity()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, half, metadata=header)
        with half.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)


def load(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig
) -> tuple[int, Tensor | None, list[dict[str, Any]]]:
    """Restore both, and return the step, the loss summed since the last row, and the rows.

    Nothing there is a start at step 0. Raises ValueError for a file of another run, or of none.
    """
    if not path.exists():
        return 0, None, []
    header, tensors = read(path, next(model.parameters()).device)
    _check_same(config.identity(), header["identity"], path)
    firsts, own = _first_names(model), model.state_dict()
    prefix = "model."
    kept = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
    wanted = {name: str(tuple(own[name].shape)) for name in set(firsts.values())}
    _check_same(wanted, {name: str(tuple(x.shape)) for name, x in kept.items()}, path)
    model.load_state_dict({name: kept[first] for name, first in firsts.items()})
    optimizer.load_state_dict(optimizer.state_dict() | {"state": _optimizer_state(tensors)})
    return header["step"], tensors["total"], header["rows"]


def read(
    path: Path, device: str | torch.device = "cpu"
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header of a checkpoint, decoded, and its tensors. Raises ValueError if it is none."""
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return {name: json.loads(header[name]) for name in ("step", "rows", "identity")}, tensors
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"checkpoint: expected a file that train wrote, got {path}") from error


def _first_names(model: nn.Module) -> dict[str, str]:
    """Every name in the model's state, with the first name of the same tensor: ties have many."""
    firsts: dict[int, str] = {}
    named = model.state_dict(keep_vars=True).items()
    return {name: firsts.setdefault(id(x), name) for name, x in named}


def _optimizer_state(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, x in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            i, _, key = rest.partition(".")
            state.setdefault(int(i), {})[key] = x
    return state


def _check_same(wanted: dict[str, str], came: dict[str, str], path: Path) -> None:
    """Name the first entry in which the run on disk is another one."""
    for name in sorted(wanted.keys() | came.keys()):
        if wanted.get(name) != came.get(name):
            raise ValueError(
                f"checkpoint: expected {name} {wanted.get(name)}, got {came.get(name)} in {path}"
            )
