"""The suite scan: its rows are right before they are timed, and its floors are what they say."""

import pytest
import torch

from ssmlib.bench import load_record, scan
from ssmlib.bench.__main__ import main
from ssmlib.bench.cell import Setting, fill
from ssmlib.bench.scan.movers import conv_cell, scan_cell
from ssmlib.bench.scan.selective import Shape, selective_cell, step_cell
from ssmlib.bench.timing import Ceilings

CPU = torch.device("cpu")
SMALL = Shape(b=2, d=8, t=33, n=4)


def test_every_row_of_a_quick_run_is_right():
    rows = scan.run(quick=True, device="cpu")
    assert [row["status"] for row in rows] == ["ok"] * len(rows)
    assert {row["experiment"] for row in rows} == {
        "ceilings", "selective scan", "linear scan", "causal conv1d", "decode", "copied state"
    }  # fmt: skip
    assert all(row["error"] < 1e-5 for row in rows[1:])
    assert scan.summary(rows).count("\n") == len(rows)


def test_a_suite_that_is_killed_leaves_the_rows_that_it_has(tmp_path, monkeypatch):
    cells = scan._cells

    def killed(*args):
        yield next(cells(*args))
        raise KeyboardInterrupt

    monkeypatch.setattr(scan, "_cells", killed)
    with pytest.raises(KeyboardInterrupt):
        main(["scan", "--quick", "--device", "cpu", "--out", str(tmp_path)])
    left = load_record("scan", tmp_path)
    assert [row["experiment"] for row in left.rows] == ["ceilings", "selective scan"]
    assert "partial" in left.line


@pytest.mark.parametrize("which", ["forward", "forward+backward"])
def test_the_floor_of_a_selective_scan_counts_exponentials_bytes_and_instructions(which):
    b, d, t, n = SMALL
    cell = selective_cell(SMALL, "ssmlib", which, CPU)
    backward = which != "forward"
    e = b * d * t
    assert cell.special == e * (2 * n + 9 if backward else n + 4)
    # forward x, dt, z and y; backward those three again, dy, dx, ddt, dz; B, C, and their gradients
    assert cell.n_bytes == 4 * (e * (11 if backward else 4) + b * t * n * (6 if backward else 2))
    top = Ceilings(1e12, 1e15, "float32", special_per_s=1e9, lanes_per_s=1e15)
    row = fill(cell, Setting(CPU, top, 0.0, 0.0))
    assert (row["bound"], row["status"]) == ("special", "ok")
    assert row["floor_seconds"] == pytest.approx(cell.special / 1e9)


def test_a_wrong_result_is_not_timed(monkeypatch):
    cell = step_cell(SMALL._replace(t=1), "ssmlib", CPU)
    monkeypatch.setattr("ssmlib.bench.scan.selective.selective_scan_step_", lambda x, *a, **k: x)
    row = fill(cell, Setting(CPU, Ceilings(1e12, 1e12, "float32"), 0.0, 0.0))
    assert row["status"].startswith("wrong: relative error")
    assert row["seconds"] is None


@pytest.mark.parametrize("which", ["forward", "backward"])
def test_what_only_moves_bytes_is_bound_by_them(which):
    e = SMALL.b * SMALL.d * SMALL.t
    moved = {"forward": (3, 2), "backward": (5, 3)}[which]
    cells = scan_cell(SMALL, which, CPU), conv_cell(SMALL, "ssmlib", which, CPU)
    assert tuple(cell.n_bytes for cell in cells) == tuple(4 * e * numbers for numbers in moved)


def test_a_suite_of_the_cpu_refuses_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr("ssmlib.bench.__main__.default_device", torch.device)
    with pytest.raises(SystemExit):
        main(["scan_cpu", "--device", "cuda"])
    assert "scan_cpu measures a CPU" in capsys.readouterr().err
