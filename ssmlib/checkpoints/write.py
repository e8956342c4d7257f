"""A checkpoint folder, written whole or not at all.

Everything goes into a hidden folder beside the one that is wanted, is forced to the disk, and takes
its name last: whoever looks sees all of it or none. Nothing that was there is written over.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

SHARD_BYTES = 5 * 10**9


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write config.json and the tensors, in files of at most shard_bytes where a tensor allows.

    Raises FileExistsError where something is already, and OSError, the disk as it was, for what
    cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: expected nothing there, or an empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    own = tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.")
    with own as place:
        half = Path(place) / folder.name
        half.mkdir()
        try:
            _write(half, config, _shards(tensors, shard_bytes))
            _sync(half)
            os.replace(half, folder)
            _sync(folder.parent)
        except (SafetensorError, OSError) as error:
            raise OSError(
                f"{folder}: could not be written, nothing is left of it: {error}"
            ) from error


def _write(folder: Path, config: Mapping[str, Any], shards: list[dict[str, Tensor]]) -> None:
    placed: dict[str, str] = {}
    for i, shard in enumerate(shards):
        one = len(shards) == 1
        name = "model" if one else f"model-{i + 1:05}-of-{len(shards):05}"
        file = folder / f"{name}.safetensors"
        save_file(shard, file, metadata={"format": "pt"})
        _sync(file)
        placed |= dict.fromkeys(shard, file.name)
    if len(shards) > 1:
        total = sum(_bytes(x) for shard in shards for x in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
        _write_json(folder / "model.safetensors.index.json", index)
    _write_json(folder / "config.json", config)


def _shards(tensors: Mapping[str, Tensor], shard_bytes: int) -> list[dict[str, Tensor]]:
    """Tensors in their order, cut where the next would not fit any more."""
    shards: list[dict[str, Tensor]] = [{}]
    room = shard_bytes
    for name, x in tensors.items():
        if _bytes(x) > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = x
        room -= _bytes(x)
    return shards


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    _sync(path)


def _sync(path: Path) -> None:
    place = os.open(path, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()
