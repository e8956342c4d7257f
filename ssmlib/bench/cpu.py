"""What suites need for rows of a CPU: its allocator's peak, and a number of cores."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def allocated_at_most(f: Callable[[], Any]) -> int:
    """The most bytes that f() took from the CPU's allocator at once, inside operations too."""
    f()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        f()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held, peak = 0, 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@contextlib.contextmanager
def two_cores() -> Iterator[None]:
    """Two threads for PyTorch on the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)
