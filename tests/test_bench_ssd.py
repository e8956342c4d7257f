"""The suite ssd: its rows are right before they are timed, and its floors are what they say."""

import subprocess
from types import SimpleNamespace

import pytest
import torch
from agreement import assert_close
from torch.utils.flop_counter import FlopCounterMode

from ssmlib.bench import ssd as suite
from ssmlib.bench import ssd_cpu
from ssmlib.bench.cell import Setting, fill
from ssmlib.bench.goals import verdicts
from ssmlib.bench.ssd import ahead, block, compare, here
from ssmlib.bench.ssd.scans import (
    CHUNK,
    SHAPES,
    Shape,
    cost,
    labels_of,
    ours,
    parameters,
    ssd_cell,
    step_cell,
)
from ssmlib.bench.timing import Ceilings

CPU = torch.device("cpu")
SMALL = Shape(b=2, t=33, h=4, p=16, g=2, n=4)
TOP = Ceilings(1e12, 1e15, "float32", special_per_s=1e9)


@pytest.fixture(scope="module")
def rows():
    return suite.run(quick=True, device="cpu")


def test_every_row_of_a_quick_run_is_right(rows):
    assert [row["status"] for row in rows] == ["ok"] * len(rows)
    assert {row["experiment"] for row in rows} == {
        "ceilings", "ssd", "ssd decode", "mamba-2 block", "mamba block",
        "state size", "quadratic", "crossover", "crossover decode",
    }  # fmt: skip
    assert all(row["error"] < 1e-5 for row in rows[1:])
    assert suite.summary(rows).count("\n") == len(rows)


def test_what_is_compared_is_not_judged(rows):
    judged = {verdict.row["experiment"] for verdict in verdicts(rows)}
    assert judged == {"ssd", "ssd decode", "mamba-2 block", "mamba block"}


def test_every_shape_of_the_table_has_a_goal():
    for shape in SHAPES:
        labels = labels_of("ssd", shape, "forward", torch.bfloat16)
        (verdict,) = verdicts([labels | {"seconds": 1.0}])
        assert verdict.aim.kind == "times"
        assert verdict.aim.least >= 1.8


@pytest.mark.parametrize("which", ["forward", "forward+backward"])
def test_the_floor_counts_what_enters_and_leaves_once(which):
    inputs = ssd_cell(SMALL, which, CPU).draw(SMALL.t)
    made = ssd_cell(SMALL, which, CPU).run(*inputs)  # y, and the gradients
    enters = (*inputs, *inputs[:4]) if which != "forward" else inputs  # x, dt, B, C again
    assert cost(SMALL, which != "forward", 4).n_bytes == sum(v.nbytes for v in (*enters, *made))


def test_the_floor_counts_half_of_what_is_masked():
    """The products of one chunk: those of tokens with tokens, and those with the state."""
    h, p, n = 3, 8, 16
    x, B, state = torch.ones(h, CHUNK, p), torch.ones(CHUNK, n), torch.ones(h, p, n)

    def flops(*products):
        with FlopCounterMode(display=False) as counter:
            for a, b in products:
                _ = a @ b
        return counter.get_total_flops()

    L = torch.ones(h, CHUNK, CHUNK)
    tokens = [(B, B.mT), (L, x)]
    states = [(x.mT, B), (B, state.mT)]  # what is added to it, what is read from it
    shape = Shape(1, CHUNK, h, p, 1, n)
    assert cost(shape, False, 2).flops == flops(*tokens) // 2 + flops(*states)
    # the other way: C B^T again, dG, dB, dC; M^T dy; d state, and what dx, dB, dC read of the two
    tokens = [(B, B.mT), (L[0], B), (L[0], B), (x, x.mT), (L, x)]
    backward = flops(*tokens) // 2 + 2 * flops(*states)
    assert cost(shape, True, 2).flops == cost(shape, False, 2).flops + backward


@pytest.mark.parametrize("t", [1, 17, 64])
def test_the_masked_matrix_is_the_same_map(t, seeded):
    b, h, p, n = 2, 3, 4, 5
    x, dt = seeded.normal(b, t, h, p), seeded.normal(b, t, h)
    B, C = seeded.normal(b, t, 1, n), seeded.normal(b, t, 1, n)
    A, D, bias = (v.double() for v in parameters(h, CPU, False))
    y = compare.masked(x, dt, A, B, C, D, bias)
    assert_close(y, ours(x, dt, A, B, C, D, bias))
    assert_close(y, compare.in_float32(x, dt, A, B, C, D, bias))


def test_a_wrong_result_is_not_timed(monkeypatch):
    cell = step_cell(SMALL._replace(t=1), "ssmlib", CPU)
    monkeypatch.setattr("ssmlib.bench.ssd.scans.ssd_step_", lambda x, *a, **k: x)
    row = fill(cell, Setting(CPU, TOP, 0.0, 0.0))
    assert row["status"].startswith("wrong: relative error")
    assert row["seconds"] is None


def test_a_peer_that_cannot_run_says_so_in_its_row():
    def broken(*inputs):
        raise RuntimeError("no such kernel")

    cell = suite._tuned(ssd_cell(SMALL, "forward", CPU, broken, provider="peer"))
    row = fill(cell, Setting(CPU, TOP, 0.0, 0.0))
    assert (row["provider"], row["status"]) == ("peer", "unavailable: no such kernel")


def test_a_step_reads_and_writes_its_state_and_little_else():
    cell = step_cell(Shape(2, 1, 4, 64, 1, 128), "ssmlib", CPU)
    *small, state = cell.draw(1)
    (y,) = cell.run(*small, state)
    assert cell.n_bytes == 2 * state.nbytes + sum(v.nbytes for v in (*small, y))
    assert sum(v.nbytes for v in small) < 0.02 * state.nbytes


def test_layers_of_every_class_have_equal_weights():
    config = block.Mamba2Config(state_size=4, head_dim=8)
    made = [block.seeded(layer, 16, config, CPU) for layer in (block.Mamba2, suite.peers.Fused)]
    ours, theirs = (module.state_dict() for module in made)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.gpu
def test_the_quick_run_works_on_a_gpu():
    rows = suite.run(quick=True, device="cuda")
    ours = [row for row in rows if row["experiment"] == "ceilings" or row["provider"] == "ssmlib"]
    assert {row["status"] for row in ours} == {"ok"}


def test_every_configuration_is_compiled_ahead_by_one_process_and_none_is_launched():
    compiled = []

    def compile_it(*args, **kwargs):
        compiled.append((args, kwargs["size"], kwargs["warmup"], kwargs["grid"]))
        if kwargs["size"] == 2:
            raise RuntimeError("out of shared memory")

    configs = [SimpleNamespace(all_kwargs=lambda size=size: {"size": size}) for size in range(5)]
    tuner = SimpleNamespace(
        arg_names=["x"], prune_configs=lambda given: configs, fn=SimpleNamespace(run=compile_it)
    )
    for share in range(3):
        run = ahead.only_compile(share, 3)
        for x in "ab":
            assert run(tuner, x, grid=(1,), warmup=False) is None
    wanted = [((x,), size, True, (1,)) for x in "ab" for size in range(5)]
    assert sorted(compiled) == wanted


def test_a_process_that_compiles_too_long_is_stopped(monkeypatch):
    class Slow:
        def __init__(self, command):
            started.append(command[-3:])

        def wait(self, seconds=None):
            if seconds is not None:
                raise subprocess.TimeoutExpired("slow", seconds)

        def kill(self):
            stopped.append(self)

    started, stopped, tuner = [], [], SimpleNamespace()
    monkeypatch.setattr(ahead.subprocess, "Popen", Slow)
    monkeypatch.setattr(ahead.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(ahead, "tuners", lambda: [tuner])
    ahead.compile_ahead(0.0)
    assert started == [["ssmlib.bench.ssd.ahead", str(i), "3"] for i in range(3)]
    assert len(stopped) == 3
    assert tuner.do_bench.keywords["rep"] == ahead.TRIED_MS


def test_the_suite_of_the_cpu_finds_equal_gradients():
    rows = ssd_cpu.run(quick=True)
    assert [row["provider"].split()[0] for row in rows] == ["transformers"] * 2 + ["ssmlib"]
    assert {row["status"] for row in rows} == {"ok"}
    assert all(row["error"] < 1e-5 and row["seconds"] > 0 < row["peak_bytes"] for row in rows)
    assert ssd_cpu.summary(rows).count("\n") == 3
    (verdict,) = verdicts(rows)
    assert (verdict.aim.least, len(verdict.peers), verdict.share) == (1.5, 2, None)


def test_a_model_of_other_weights_is_wrong(monkeypatch):
    monkeypatch.setattr(ssd_cpu, "twin_of", lambda theirs, config: config.build())
    assert [row["status"][:5] for row in ssd_cpu.rows(quick=True)] == ["ok", "ok", "wrong"]


def test_here_measures_the_comparisons():
    top, *rows = here.here("cpu", compare.QUICK, block.TINY)
    assert top["experiment"] == "ceilings"
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["pass"] for row in rows if row["experiment"] == "crossover"} == {"forward+backward"}
    assert {row["experiment"] for row in rows} == {
        "state size", "crossover", "crossover decode", "mamba block", "mamba-2 block",
    }  # fmt: skip
