"""The library's parts import only from ranks above them; importing it is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ssmlib

ROOT = Path(ssmlib.__file__).parent
RANKS = [
    {"shapes", "backends", "palette", "example", "recurrence"},
    {"kernels"},
    {"costs", "attention", "discretize", "convolution", "scan", "linear_attention", "delta_rule"},
    {"hippo"},
    {"s4", "selective_scan", "ssd"},
    {"layers"},
    {"mixers"},
    {"model"},
    {"generate", "checkpoints", "presets", "recall", "tasks", "train", "distributed"}
    | {"bench", "plots", "viz"},
]
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
FILES = sorted(p for p in ROOT.rglob("*.py") if p.parent != ROOT or p.stem != "__init__")


def room(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "ssmlib":
            rooms |= {alias.name for alias in node.names if alias.name in RANK}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ssmlib."):
            rooms.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            rooms |= {a.name.split(".")[1] for a in node.names if a.name.startswith("ssmlib.")}
    return rooms


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_from_ranks_above_its_own(path):
    own = room(path)
    for other in imported_rooms(path) - {own}:
        same_rank_is_fine = RANK[own] == len(RANKS) - 1 or RANK[own] == 0
        assert RANK[other] < RANK[own] or (same_rank_is_fine and RANK[other] == RANK[own]), (
            f"{own} (rank {RANK[own]}) imports {other} (rank {RANK[other]})"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_readable(path):
    lines = len(path.read_text().splitlines())
    assert lines <= 300 or "kernels" in path.parts, f"{lines} lines"


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("ssmlib", "torch"),
        ("ssmlib.costs", "torch"),
        ("ssmlib.attention", "triton"),
        ("ssmlib.discretize", "scipy"),
    ],
)
def test_imports_are_lazy(module, unwanted):
    code = f"import sys, {module}; sys.exit({unwanted!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0, (
        f"{module} imports {unwanted}"
    )
