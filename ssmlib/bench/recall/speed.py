"""How much faster many models train side by side than one after the other.

eager       one at a time, a call of Python for every kernel
captured    one at a time, each update a CUDA graph
together    all at once, each a CUDA graph on a stream of its own
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from ssmlib.bench.ledger import Row
from ssmlib.bench.recall.cases import Case, Run
from ssmlib.bench.recall.lane import CHUNK, Lane


def throughput(cases: Sequence[Case], device: str, chunks: int = 4) -> Iterator[Row]:
    """A row for each way to train all the cases' models for some stretches of steps.

    models, seconds, model_steps_per_second, and speedup: over "eager".
    """
    cases = [_for_as_long(case, 1 + chunks) for case in cases]
    ways = ("eager", "captured", "together") if device.startswith("cuda") else ("eager", "together")
    base = None
    for way in ways:
        lanes = [Lane(case, device, captured=None if way != "eager" else False) for case in cases]
        for lane in lanes:
            lane.begin(Run(lane.case, lane.case.course.lrs[0], 0))
            _train([lane], 1)
        groups = [lanes] if way == "together" else [[lane] for lane in lanes]
        seconds, before = 0.0, sum(lane.done for lane in lanes)
        for group in groups:
            _wait(device)
            began = time.perf_counter()
            _train(group, chunks)
            _wait(device)
            seconds += time.perf_counter() - began
        rate = (sum(lane.done for lane in lanes) - before) / seconds
        base = rate if base is None else base
        for lane in lanes:
            lane.close()
        yield {
            "experiment": "throughput",
            "way": way,
            "models": len(lanes),
            "seconds": seconds,
            "model_steps_per_second": rate,
            "speedup": rate / base,
            "status": "ok",
        }


def _for_as_long(case: Case, chunks: int) -> Case:
    return replace(case, course=replace(case.course, steps=chunks * CHUNK))


def _train(lanes: Sequence[Lane], chunks: int) -> None:
    for _ in range(chunks):
        for lane in lanes:
            lane.advance()
    for lane in lanes:
        while lane.ahead:
            lane.look()


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
