"""A checkpoint on disk: config.json and tensors in one file or several, read without running code.

    folder/config.json                      the model's sizes
    folder/model.safetensors                its tensors, or
    folder/model.safetensors.index.json     which of several files holds which
    folder/pytorch_model.bin                as torch saves them; an index as above

What is read here was made elsewhere, and is trusted with nothing: names that leave the folder, a
file shorter than its header says, and a torch file that holds anything but tensors are refused.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

FORMS = ("model.safetensors", "pytorch_model.bin")  # in the order of preference
LFS = b"version https://git-lfs"
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Tensors(Mapping[str, Tensor]):
    """The tensors of a folder by name, on the CPU; those of safetensors are read when asked for.

    What comes may lie in the file's own pages: copy it. Raises FileNotFoundError for a folder
    without tensors, and ValueError, with the file's name, for one that is damaged, incomplete or
    out of place.
    """

    def __init__(self, folder: Path):
        self._files: dict[str, Any] = {}  # an opened safetensors file, or the tensors of torch's
        self._where: dict[str, str] = {}
        for file, wanted in _files(folder).items():
            path = folder / file
            if not path.is_file():
                raise ValueError(
                    f"{file}: expected a file in {folder}, as the index says, got none"
                )
            reads = _open if path.suffix == ".safetensors" else _load_torch
            self._files[file] = reads(path)
            self._where |= dict.fromkeys(self._files[file].keys(), file)
            for name in wanted:
                if self._where.get(name) != file:
                    raise ValueError(f"{name}: expected in {file}, as the index says, got none")

    def __getitem__(self, name: str) -> Tensor:
        file = self._files[self._where[name]]
        return file[name] if isinstance(file, dict) else file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        """The shape and the dtype of a tensor, without reading it."""
        file = self._files[self._where[name]]
        if isinstance(file, dict):
            return tuple(file[name].shape), str(file[name].dtype).removeprefix("torch.")
        part = file.get_slice(name)
        return tuple(part.get_shape()), DTYPES.get(part.get_dtype(), part.get_dtype())


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises FileNotFoundError, or ValueError if it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path.name}: expected a file in {path.parent}, got none"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}: expected JSON, got {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name}: expected an object, got {type(content).__name__}")
    return content


def _files(folder: Path) -> dict[str, list[str]]:
    """File names in a folder, and which tensors an index says are there."""
    for name in FORMS:
        if (folder / name).is_file():
            return {name: []}
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _indexed(index)
    wanted = " or ".join(FORMS)
    raise FileNotFoundError(f"{folder}: expected {wanted}, or their index, got neither")


def _indexed(index: Path) -> dict[str, list[str]]:
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise ValueError(f"{index.name}: expected a weight_map of tensors to files, got {placed!r}")
    files: dict[str, list[str]] = {}
    kind = ".safetensors" if index.name.startswith(FORMS[0]) else ".bin"
    for name, file in placed.items():
        plain = isinstance(file, str) and Path(file).name == file and file.endswith(kind)
        if not plain:
            told = f"{index.name}: expected the name of a {kind} file in the folder"
            raise ValueError(f"{told} for {name}, got {file!r}")
        files.setdefault(file, []).append(name)
    return files


def _open(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path.name}: {_damage(path, 'safetensors')}, {error}") from None


def _load_torch(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no one class for what it refuses
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path.name}: {_damage(path, 'tensors alone')}, {first}") from None
    wrong = not isinstance(content, dict) or [
        name for name, x in content.items() if not isinstance(x, Tensor)
    ]
    if wrong:
        came = type(content).__name__ if wrong is True else f"{wrong[0]!r}, which is none"
        raise ValueError(f"{path.name}: expected tensors by name, got {came}")
    return content


def _damage(path: Path, wanted: str) -> str:
    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            return "expected weights, got a pointer of Git LFS (`git lfs pull` fetches the file)"
    return f"expected a whole file of {wanted}, got one that cannot be read"
