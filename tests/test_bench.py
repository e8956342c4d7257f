"""The bench: measures that make sense, records that are whole or absent, a command that runs."""

import importlib
import inspect
import json
import os
import re
import stat
import threading
import time

import numpy as np
import pytest
import torch

from ssmlib import bench
from ssmlib.bench import attention, store
from ssmlib.bench.__main__ import main
from ssmlib.bench.cell import Setting, relative_error
from ssmlib.bench.provenance import KEYS

ROWS = [{"n": 1024, "seconds": 0.5, "backend": "math", "ok": True, "status": None}]
COMMAND = "python -m ssmlib.bench attention"


def test_measure_orders_its_percentiles_and_keeps_its_bounds():
    calls = []
    timing = bench.measure(
        lambda: calls.append(time.sleep(0.001)), warmup_s=0, time_s=0.02, device="cpu"
    )
    assert 0.001 <= timing.p20 <= timing.median <= timing.p80
    assert 3 <= timing.repeats <= 20
    assert len(calls) == timing.repeats + 2  # two calls warm up


def test_measure_repeats_a_slow_call_min_repeats_times_and_a_fast_one_max_repeats_times():
    slow = bench.measure(lambda: time.sleep(0.01), warmup_s=0, time_s=0, device="cpu")
    fast = bench.measure(lambda: None, warmup_s=0, time_s=1, max_repeats=7, device="cpu")
    assert (slow.repeats, fast.repeats) == (3, 7)


def test_measure_takes_turns_through_its_inputs():
    seen = []
    bench.measure(
        seen.append, inputs=[(0,), (1,), (2,)], warmup_s=0, time_s=0, min_repeats=4, device="cpu"
    )
    assert seen == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"time_s": -1}, "time_s: expected"),
        ({"warmup_s": float("nan")}, "warmup_s: expected"),
        ({"min_repeats": 1}, "min_repeats: expected"),
        ({"min_repeats": 5, "max_repeats": 4}, "max_repeats: expected"),
        ({"inputs": []}, "inputs: expected a list of at least one tuple, got list"),
        ({"inputs": 3}, "inputs: expected a list of at least one tuple, got int"),
        ({"inputs": torch.ones(2)}, "inputs: expected a list of at least one tuple, got Tensor"),
        ({"inputs": [(), torch.ones(2)]}, r"inputs\[1\]: expected a tuple, got Tensor"),
        ({"device": "meta"}, "device: expected 'cuda' or 'cpu', got 'meta'"),
        ({"device": "tpu"}, "device: expected 'cuda' or 'cpu', got 'tpu'"),
        ({"device": ""}, "device: expected 'cuda' or 'cpu', got ''"),
        ({"device": 1.5}, r"device: expected 'cuda' or 'cpu', got '1\.5'"),
        ({"device": "cuda:99"}, "device: expected one of the . CUDA GPUs here, got 'cuda:99'"),
    ],
)
def test_measure_refuses(wrong, message):
    with pytest.raises(ValueError, match=message):
        bench.measure(lambda: None, **wrong)


def test_peak_memory_counts_what_lives_together():
    def chain():
        a = torch.ones(1000)
        b = a + 1
        del a
        return b + 1

    x = torch.ones(1000)
    assert bench.peak_memory(chain, device="cpu") == 2 * 4000
    assert bench.peak_memory(lambda: x.view(10, 100).add_(1), device="cpu") == 0


def test_peak_memory_sees_the_score_matrix_and_its_absence():
    n, setting = 256, Setting(torch.device("cpu"), bench.Ceilings(1e12, 1e12, "float32"), 0, 0)
    shape = attention.Shape(b=1, h=1, g=1, k=8)
    math, flash = (
        next(iter(attention.causal(setting, shape, [n], [name])))["peak_bytes"]
        for name in ("math", "flash")
    )
    assert math >= 2 * 4 * n * n > 4 * n * n > flash


def test_ceilings_name_the_term_that_binds():
    top = bench.Ceilings(copy_bytes_per_s=10.0, matmul_flops_per_s=100.0, dtype="float32")
    assert top.floor(flops=100, n_bytes=5) == (1.0, "flops")
    assert top.floor(flops=10, n_bytes=5) == (0.5, "bytes")
    assert top.floor(flops=10, n_bytes=5, special=1e9, lanes=1e9) == (0.5, "bytes")
    top = top._replace(special_per_s=4.0, lanes_per_s=8.0)
    assert top.floor(flops=10, n_bytes=5, special=3, lanes=7) == (0.875, "lanes")
    assert top.floor(flops=10, n_bytes=5, special=4, lanes=7) == (1.0, "special")


@pytest.mark.gpu
def test_a_gpu_does_fewer_exponentials_than_multiply_adds():
    from ssmlib.bench.rates import with_rates

    device = torch.device("cuda")
    top = with_rates(bench.ceilings(device, time_s=0.05), device, time_s=0.05)
    assert 1e12 < top.special_per_s < top.lanes_per_s < top.matmul_flops_per_s


def test_ceilings_measure_this_machine():
    top = bench.ceilings("cpu", time_s=0.01)
    assert top.dtype == "float32"
    assert min(top[:2]) > 1e6


def test_a_record_comes_back_as_it_was_written(tmp_path):
    path = bench.record("attention", ROWS, COMMAND, tmp_path, device="cpu")
    loaded = bench.load_record("attention", tmp_path)
    assert path == tmp_path / "attention.json"
    assert (loaded.name, loaded.rows, loaded.provenance["command"]) == ("attention", ROWS, COMMAND)
    assert loaded.provenance["torch"] == torch.__version__
    assert bench.records(tmp_path) == ["attention"]
    assert os.listdir(tmp_path) == ["attention.json"]


def test_the_provenance_is_one_line_without_what_does_not_exist():
    source = dict.fromkeys(("driver", "triton", "commit", "dirty")) | {
        "device": "NVIDIA H200",
        "torch": "2.11",
        "ssmlib": "0.1",
        "python": "3.12",
        "date": "2026-11-23T10:00:00Z",
        "command": COMMAND,
    }
    here = bench.Record("attention", [], source)
    line = "NVIDIA H200 · torch 2.11 · ssmlib 0.1 · python 3.12 · 2026-11-23"
    assert bench.provenance_line(here) == here.line == f"{line} · {COMMAND}"
    source |= {"commit": "0123456789", "dirty": True, "driver": "580.1"}
    assert "driver 580.1" in here.line
    assert "commit 0123456 (modified)" in here.line


def test_the_line_counts_rows_of_another_device():
    rows = [{"n": 1}, {"n": 2, "device": "NVIDIA H200"}, {"n": 3, "device": "NVIDIA L4"}]
    source = dict.fromkeys(KEYS) | {"device": "NVIDIA H200"}
    line = bench.Record("recall", rows, source).line
    assert line.startswith("NVIDIA H200 (1 of 3 rows NVIDIA L4) · ")
    assert bench.Record("recall", rows[:2], source).line.startswith("NVIDIA H200 · ")


def test_a_nan_is_written_as_null_with_a_status(tmp_path):
    rows = [{"a": float("nan"), "status": "ok"}, {"a": float("nan"), "status": "out of memory"}]
    bench.record("x", rows, COMMAND, tmp_path)
    assert "NaN" not in (tmp_path / "x.json").read_text()
    assert bench.load_record("x", tmp_path).rows == [
        {"a": None, "status": "not a number: a"},
        {"a": None, "status": "out of memory"},
    ]


def test_numpys_numbers_are_numbers(tmp_path):
    row = {"n": np.int64(3), "x": np.float32(0.5), "nothing": np.float64("nan")}
    bench.record("x", [row], COMMAND, tmp_path)
    read = {"n": 3, "x": 0.5, "nothing": None, "status": "not a number: nothing"}
    assert bench.load_record("x", tmp_path).rows == [read]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least one row"),
        ({"n": 1}, "expected a list of rows, got dict"),
        ("rows", "expected a list of rows, got str"),
        ([{}], r"rows\[0\]: expected a dict"),
        ([{"n": 1}, 3], r"rows\[1\]: expected a dict"),
        ([{"n": [1]}], r"rows\[0\]\['n'\]: expected a string, number or None, got list"),
        ([{"n": torch.ones(())}], "got Tensor"),
        ([{"n": float("inf")}], "expected a finite number, got inf"),
        ([{1: 2}], "expected keys that are strings, got 1"),
        ([{"x": 1j}], "expected a string, number or None, got complex"),
        ([{"x": np.float64("inf")}], "expected a finite number, got inf"),
        ([{"status": float("nan")}], r"rows\[0\]\['status'\]: expected a string or None, got nan"),
        ([{"status": 3}], r"rows\[0\]\['status'\]: expected a string or None, got 3"),
    ],
)
def test_rows_are_refused(rows, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        bench.record("x", rows, COMMAND, tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a.b", "/etc/x", "X", "a b", None, "x\n"])
def test_names_that_could_leave_the_folder_are_refused(name, tmp_path):
    for call in (
        lambda: bench.record(name, ROWS, COMMAND, tmp_path),
        lambda: bench.load_record(name, tmp_path),
    ):
        with pytest.raises(ValueError, match="name: expected small letters"):
            call()


@pytest.mark.parametrize("command", [" ", "", None, 3])
def test_a_command_is_wanted(command, tmp_path):
    with pytest.raises(ValueError, match="command: expected what was run to get these rows, got"):
        bench.record("x", ROWS, command, tmp_path)


def test_threads_that_record_one_name_do_not_meet(tmp_path, monkeypatch):
    meet, replace = threading.Barrier(4), os.replace

    def together(*paths):
        meet.wait(timeout=30)  # all have written, none has renamed
        replace(*paths)

    monkeypatch.setattr(store.os, "replace", together)
    failed = []

    def write(n: int) -> None:
        try:
            bench.record("x", [{"n": n}], COMMAND, tmp_path, device="cpu")
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert os.listdir(tmp_path) == ["x.json"]
    assert bench.load_record("x", tmp_path).rows[0]["n"] in range(4)


def test_a_record_may_be_read_by_whom_other_files_may(tmp_path):
    (tmp_path / "other").touch()
    path = bench.record("x", ROWS, COMMAND, tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


@pytest.mark.parametrize("dies", ["os.fsync", "os.replace", "json.dumps"])
def test_a_record_that_dies_half_way_leaves_the_old_one(dies, tmp_path, monkeypatch):
    bench.record("x", ROWS, COMMAND, tmp_path)
    before = (tmp_path / "x.json").read_bytes()

    def die(*args, **kwargs):
        raise KeyboardInterrupt

    module, name = dies.split(".")
    monkeypatch.setattr(getattr(store, module), name, die)
    with pytest.raises(KeyboardInterrupt):
        bench.record("x", [{"n": 2}], COMMAND, tmp_path)
    assert os.listdir(tmp_path) == ["x.json"]
    assert (tmp_path / "x.json").read_bytes() == before


def test_what_was_measured_before_a_kill_is_kept_and_says_partial(tmp_path):
    draft = store.Draft("scan", COMMAND, tmp_path, "cpu")
    draft.add(ROWS[0])
    draft.add({"n": 2})
    assert os.listdir(tmp_path) == ["scan.partial.json"]
    loaded = bench.load_record("scan", tmp_path)
    assert loaded.rows == [ROWS[0], {"n": 2}]
    assert loaded.line.endswith("partial: it was cut short")
    assert bench.records(tmp_path) == []
    draft.finish([*loaded.rows, {"n": 3}])
    assert os.listdir(tmp_path) == ["scan.json"]
    assert "partial" not in bench.load_record("scan", tmp_path).line


def test_a_draft_leaves_the_record_that_is_there_alone(tmp_path):
    bench.record("x", ROWS, COMMAND, tmp_path)
    store.Draft("x", COMMAND, tmp_path, "cpu").add({"n": 2})
    assert bench.load_record("x", tmp_path).rows == ROWS
    with pytest.raises(ValueError, match=r"rows\[0\]: expected a dict that is not empty"):
        store.Draft("y", COMMAND, tmp_path, "cpu").add({})


def test_a_missing_record_names_its_command(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`python -m ssmlib\.bench attention` writes it"):
        bench.load_record("attention", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no suite writes it: .* has attention"):
        bench.load_record("nothing", tmp_path)
    with pytest.raises(FileNotFoundError, match="not found in ssmlib/results"):
        bench.load_record("nothing")
    assert bench.records(tmp_path / "absent") == []


def _source(**change: object) -> dict[str, object]:
    return dict.fromkeys(KEYS, "x") | {"dirty": None} | change


def _broken(**change: object) -> str:
    return json.dumps({"name": "attention", "rows": ROWS, "provenance": _source()} | change)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_broken()[:-20], "damaged"),
        ("", "damaged"),
        ("[]", "expected an object with name, rows and provenance"),
        ('{"name": NaN}', "NaN is no JSON"),
        (_broken(name="other"), "its name is 'other'"),
        (_broken(rows=[]), "at least one row"),
        (_broken(rows=7), "expected a list of rows, got int"),
        (_broken(rows=[{"n": {}}]), "got dict"),
        (_broken(provenance={}), "provenance lacks command, commit"),
        (_broken(provenance=None), "provenance lacks"),
        (_broken(provenance=_source(command=" ")), "command: expected what was run to get these"),
        (_broken(provenance=_source(command=None)), "command: expected what was run to get these"),
        (_broken(provenance=_source(device=3)), "device: expected str, got 3"),
        (_broken(provenance=_source(torch=None)), "torch: expected str, got None"),
        (_broken(provenance=_source(commit=1)), r"commit: expected str \| None, got 1"),
        (_broken(provenance=_source(dirty="yes")), r"dirty: expected bool \| None, got 'yes'"),
        (_broken(rows=[{"status": 1}]), "expected a string or None, got 1"),
        ("[" * 100_000, "damaged"),
        (_broken(more=1), "expected an object with"),
    ],
)
def test_a_damaged_record_says_what_is_wrong_and_what_writes_it(content, message, tmp_path):
    (tmp_path / "attention.json").write_text(content)
    with pytest.raises(
        ValueError, match=rf"{message}.*`python -m ssmlib\.bench attention` writes it"
    ):
        bench.load_record("attention", tmp_path)


def test_what_cannot_be_read_says_what_writes_it(tmp_path):
    (tmp_path / "attention.json").mkdir()
    with pytest.raises(ValueError, match=r"`python -m ssmlib\.bench attention` writes it"):
        bench.load_record("attention", tmp_path)
    assert bench.records(tmp_path) == []
    with pytest.raises(ValueError, match=r"no suite writes it: `python -m ssmlib\.bench` has"):
        bench.load_record("a" * 300, tmp_path)


def test_bytes_that_are_no_text_are_a_damaged_record(tmp_path):
    (tmp_path / "attention.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="damaged"):
        bench.load_record("attention", tmp_path)


def test_a_commit_that_was_named_is_the_one_that_is_written(monkeypatch):
    monkeypatch.setenv("SSMLIB_COMMIT", "c0ffee")
    source = bench.provenance.provenance(COMMAND, "cpu")
    assert (source["commit"], source["dirty"]) == ("c0ffee", None)


def test_every_record_of_the_package_loads():
    for name in bench.records():
        assert bench.load_record(name).line.count("\n") == 0


def test_the_quick_run_writes_a_record_and_ends_with_its_table(tmp_path, capsys):
    assert main(["attention", "--quick", "--device", "cpu", "--out", str(tmp_path)]) == 0
    loaded = bench.load_record("attention", tmp_path)
    assert loaded.provenance["command"] == f"{COMMAND} --quick"
    assert loaded.rows[0]["experiment"] == "ceilings"
    assert [row["status"] for row in loaded.rows] == ["ok"] * 17
    for row in loaded.rows[1:]:
        assert row["error"] < 1e-5
        assert row["floor_seconds"] > 0
        assert row["seconds"] > 0
        assert row["bound"] in ("flops", "bytes")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("17 rows in ")
    assert len(lines) == 2 + 16 + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "--quick", "--out", "x"], "'nothing' .*choose from '?attention"),
        ([], "required: suite"),
        (["attention", "--quick"], "say with --out where"),
        (["attention", "--device", "cpu"], "the full sizes need a CUDA GPU"),
        (["attention", "--device", "meta"], "expected 'cuda' or 'cpu'"),
        (["attention", "--device", "foo"], "device: expected 'cuda' or 'cpu', got 'foo'"),
    ],
)
def test_the_command_refuses(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("name", bench.SUITES)
def test_every_suite_runs_and_saves_as_it_says(name):
    suite = bench.SUITES[name]
    run = importlib.import_module(suite.module).run
    first = ["quick", "device", "progress"] + ["save"] * suite.by_row
    assert list(inspect.signature(run).parameters)[: len(first)] == first


def test_every_column_of_the_table_has_a_heading():
    assert all(heading for heading, *_ in attention.COLUMNS)


def test_help_lists_the_suites(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(f"  {name} " in out and suite.about in out for name, suite in bench.SUITES.items())


def _setting(**change: float) -> Setting:
    top = bench.Ceilings(copy_bytes_per_s=1e12, matmul_flops_per_s=1e12, dtype="float32")
    return Setting(torch.device("cpu"), top, warmup_s=0, time_s=0, **change)


def _first(setting: Setting, backend: str = "math") -> dict:
    return next(attention.causal(setting, attention.Shape(1, 2, 1, 4), [8], [backend]))


def test_a_cell_that_would_take_too_long_is_not_started():
    row = _first(_setting(limit_s=1e-12))
    assert row["status"].startswith("skipped: would take about")
    assert row["seconds"] is None


def test_a_backend_that_cannot_run_says_so_in_its_row():
    assert _first(_setting(), "cudnn")["status"].startswith("unavailable: ")


def test_memory_that_runs_out_is_a_status(monkeypatch):
    def burst(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", burst)
    assert _first(_setting())["status"] == "out of memory"


def test_a_wrong_backend_is_not_timed(monkeypatch):
    right = attention.F.scaled_dot_product_attention
    for factor, told in ((1.01, "wrong: relative error 1.0e-02"), (float("nan"), "wrong: ")):

        def off(*args, factor=factor, **kwargs):
            return right(*args, **kwargs) * factor

        monkeypatch.setattr(attention.F, "scaled_dot_product_attention", off)
        row = _first(_setting())
        assert row["status"].startswith(told)
        assert row["seconds"] is None


def test_the_definition_shares_heads_as_pytorch_does(seeded):
    q, dy = seeded.normal(2, 6, 5, 4).requires_grad_(), seeded.normal(2, 6, 5, 4)
    k, v = (seeded.normal(2, 3, 5, 4).requires_grad_() for _ in range(2))
    run = attention._attend("math", is_causal=True, enable_gqa=True)
    assert relative_error(run(q, k, v, dy), attention.definition(q, k, v, dy, True)) < 1e-14


@pytest.mark.parametrize("form", attention.FORMS)
def test_both_forms_of_a_decoding_step_are_the_same_step(form):
    shape, n, cpu = attention.Shape(b=2, h=4, g=2, k=8), 16, torch.device("cpu")
    q, k, v = attention.decode_cell(shape, n, "math", "gqa", cpu).draw(n)
    cell = attention.decode_cell(shape, n, "math", form, cpu)
    (y,) = cell.run(*cell.draw(n))
    (want,) = attention.definition(q, k, v)
    assert relative_error([y.reshape(want.shape)], [want]) < 1e-6


def test_costs_are_counted_as_the_docstring_says():
    cpu, shape = torch.device("cpu"), attention.Shape(b=2, h=4, g=2, k=8)
    forward = attention.causal_cell(shape, 3, "math", "forward", cpu)
    both = attention.causal_cell(shape, 3, "math", "forward+backward", cpu)
    step = attention.decode_cell(shape, 3, "math", "gqa", cpu)
    assert forward.flops == 2 * (2 * 2 * 4 * 6 * 8)  # two products, b h pairs k, two FLOPs each
    assert both.flops == 3 * forward.flops
    assert forward.n_bytes == 4 * sum(x.numel() for x in (*forward.draw(3), forward.draw(3)[0]))
    assert both.n_bytes == 3 * forward.n_bytes
    assert step.n_bytes == 4 * sum(x.numel() for x in (*step.draw(3), step.draw(3)[0]))
    assert step.flops == 2 * (2 * 2 * 4 * 3 * 8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_quick_run_works_on_a_gpu(tmp_path):
    assert main(["attention", "--quick", "--device", "cuda", "--out", str(tmp_path)]) == 0
    rows = bench.load_record("attention", tmp_path).rows
    assert {row["status"] for row in rows if row.get("backend") in ("math", "flash")} == {"ok"}
