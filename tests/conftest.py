"""What every test shares: seeded data, uninitialised memory that shows, Triton on the CPU."""

import os
import sys
import warnings

import pytest
import torch
from agreement import Seeded

if not torch.cuda.is_available():
    assert "triton" not in sys.modules, "TRITON_INTERPRET must be set before triton is imported"
    os.environ.setdefault("TRITON_INTERPRET", "1")

with torch.device("meta"):  # torch lists what makes tensors once: before `empty` is another one
    torch.empty(0)


@pytest.fixture
def seeded() -> Seeded:
    return Seeded()


@pytest.fixture(autouse=True)
def _no_shapes_remembered():
    """What is compiled for two lengths is compiled for any: no test sees those of another."""
    yield
    if "torch._dynamo.eval_frame" in sys.modules:
        with warnings.catch_warnings():  # torch 2.11 uses its own deprecated names here
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.compiler.reset()


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch):
    """torch.empty holds NaN, so that a result read before it was written cannot pass."""
    empty, empty_like = torch.empty, torch.empty_like

    def poison(x):
        if x.is_floating_point() or x.is_complex():
            with torch.no_grad():  # a compiler makes some that require a gradient
                x.fill_(float("nan"))
        return x

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(empty_like(*a, **k)))
