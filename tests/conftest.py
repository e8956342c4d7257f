"""What every test shares: seeded data, uninitialised memory that shows, Triton on the CPU."""

import os
import sys

import pytest
import torch

if not torch.cuda.is_available():
    assert "triton" not in sys.modules, "TRITON_INTERPRET must be set before triton is imported"
    os.environ.setdefault("TRITON_INTERPRET", "1")


class Seeded:
    """Random tensors from one CPU generator: `seeded.normal(2, 3)`, `seeded.uniform(4)`."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64):
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=self.dtype)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        return low + (high - low) * torch.rand(*shape, generator=self.generator, dtype=self.dtype)

    def integers(self, low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self.generator)


@pytest.fixture
def seeded() -> Seeded:
    return Seeded()


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch):
    """torch.empty holds NaN, so that a result read before it was written cannot pass."""
    empty, empty_like = torch.empty, torch.empty_like

    def poison(x):
        return x.fill_(float("nan")) if x.is_floating_point() or x.is_complex() else x

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(empty_like(*a, **k)))
