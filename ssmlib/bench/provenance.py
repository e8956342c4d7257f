"""Where a measurement comes from: the device, the versions, the date, the commit, the command."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType

import torch

import ssmlib
from ssmlib.bench.timing import default_device

KEYS: dict[str, type | UnionType] = {
    "device": str,
    "driver": str | None,
    "torch": str,
    "triton": str | None,
    "ssmlib": str,
    "python": str,
    "date": str,
    "commit": str | None,
    "dirty": bool | None,
    "command": str,
}


def provenance(
    command: str, device: str | torch.device | None = None
) -> dict[str, str | bool | None]:
    """Everything in KEYS, for a measurement made now on `device`; None for what does not exist.

    SSMLIB_COMMIT, where it is set, names the commit: for a machine that has the sources, and their
    repository not at all or as it once was.
    """
    device = default_device(device)
    on_gpu = device.type == "cuda"
    commit, dirty = commit_of(Path(ssmlib.__file__).parent)
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else _processor(),
        "driver": _driver() if on_gpu else None,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "ssmlib": ssmlib.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit,
        "dirty": dirty,
        "command": command,
    }


def check_provenance(source: object) -> None:
    """Raise ValueError unless it has everything in KEYS, each of its type, and no empty string."""
    missing = KEYS.keys() - source.keys() if isinstance(source, dict) else KEYS.keys()
    if missing:
        raise ValueError(f"provenance lacks {', '.join(sorted(missing))}")
    for key, kind in KEYS.items():
        value = source[key]
        empty = isinstance(value, str) and not value.strip()
        if empty or not isinstance(value, kind):
            wanted = "what was run to get these rows" if key == "command" else _named(kind)
            raise ValueError(f"{key}: expected {wanted}, got {value!r}")


def _named(kind: type | UnionType) -> str:
    return getattr(kind, "__name__", str(kind))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    info, name = Path("/proc/cpuinfo"), platform.machine()
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    return f"CPU {name}, {torch.get_num_threads()} threads"


def _driver() -> str | None:
    answer = _ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return answer.splitlines()[0].strip() if answer else None


def commit_of(package: Path) -> tuple[str | None, bool | None]:
    """The commit that holds the package, and whether its files differ from it."""
    named = os.environ.get("SSMLIB_COMMIT")
    if named:
        return named, None
    git = ("git", "-C", str(package))
    # a package installed inside somebody's repository is not of that repository
    if not _ask(*git, "ls-files", "--error-unmatch", "__init__.py"):
        return None, None
    commit = _ask(*git, "rev-parse", "HEAD")
    if not commit:
        return None, None
    changed = _ask(*git, "status", "--porcelain", "--", ".", ":(exclude)results")
    return commit.strip(), changed != ""


def _ask(*command: str) -> str | None:
    """What the command prints; None if it does not exist, fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (subprocess.SubprocessError, OSError):
        return None
    return done.stdout
