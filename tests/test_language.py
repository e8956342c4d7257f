"""ssmlib.bench.language: models of one size, rows that can be kept, peers that agree."""

import pytest
import torch

from ssmlib.bench.language import run, step, step_rows, summary
from ssmlib.bench.language.learn import FULL, models
from ssmlib.bench.language.step import Fused, Kernels, Size, build
from ssmlib.bench.store import load_record, record
from ssmlib.mixers.mamba import Mamba
from ssmlib.train.task import loss

CPU = torch.device("cpu")


def test_models_have_equally_many_parameters():
    sizes = {
        name: sum(p.numel() for p in config.build().parameters())
        for name, config in models(FULL).items()
    }
    assert sizes["attention"] == pytest.approx(sizes["mamba"], rel=0.01)
    assert sizes["constant"] == pytest.approx(sizes["mamba"], rel=0.08)
    assert sizes["s4d"] == pytest.approx(sizes["mamba"], rel=0.08)


def test_the_quick_suite_trains_each_model_and_makes_a_record(tmp_path):
    told = []
    rows = run(quick=True, device="cpu", progress=told.append, keep=tmp_path / "rows")
    held_out = [row for row in rows if row["row"] == "held_out"]
    runs = [(row["model"], row["lr"], row["steps"], row["seed"]) for row in held_out]
    assert len(runs) == len(set(runs)) == 4 * (2 * 2 + 1)
    assert all(6.5 < row["bits"] < 9 for row in held_out)  # nothing is learned in four steps
    carried = {row["model"] for row in held_out if row["carried_bits"] is not None}
    assert carried == {"mamba", "constant"}
    curves = [(row["steps"], row["step"]) for row in rows if row["row"] == "curve"]
    assert curves == [(steps, i * steps // 2) for _, _, steps, _ in runs for i in (1, 2)]
    (sample,) = [row["text"] for row in rows if row["row"] == "sample"]
    assert sample.startswith("The assignment statement")
    record("language_model", rows, "a test", tmp_path, "cpu")
    assert load_record("language_model", tmp_path).rows == rows
    assert len(told) == len(summary(rows).splitlines()) - 1
    assert run(quick=True, device="cpu", keep=tmp_path / "rows") == rows  # kept, not run again


def test_the_record_has_the_steps_that_chapter_06_tells_of():
    rows = [row for row in load_record("language_model").rows if row["row"] == "step"]
    assert {row["status"] for row in rows} == {"ok"}
    order = {True: [], False: []}
    for row in sorted(rows, key=lambda row: row["seconds"]):
        order[row["captured"]].append(row["provider"].rpartition(", ")[2])
    assert order[True] == ["ssmlib", "fused", "kernels"]
    assert order[False] == ["fused", "ssmlib", "kernels"]
    best, second = sorted(row["seconds"] for row in rows)[:2]
    assert 0.98 < best / second < 1
    assert all(5.5 < row["seconds"] / row["floor_seconds"] < 6.5 for row in rows)
    ours = next(row for row in rows if row["provider"] == "ssmlib" and not row["captured"])
    assert ours["p20"] < min(row["seconds"] for row in rows if not row["captured"])
    assert ours["p80"] > max(row["seconds"] for row in rows)


def test_a_step_is_timed_beside_its_floor():
    (row,) = step_rows(CPU, quick=True)
    assert (row["provider"], row["captured"], row["status"]) == ("ssmlib", False, "ok")
    assert row["seconds"] > row["floor_seconds"] > 0
    assert row["peak_bytes"] > 0


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*get_autocast_gpu_dtype:DeprecationWarning")  # the peer's
@pytest.mark.parametrize("layer", [Kernels, Fused])
def test_a_peers_layer_is_the_same_layer(layer, seeded):
    pytest.importorskip("mamba_ssm")
    size = Size(64, 2, 50, 2, 100)
    tokens = seeded.integers(0, 50, 2, 101).cuda()
    losses, grads = [], []
    for kind in (Mamba, layer):
        model = build(kind, size).cuda()
        with torch.autocast("cuda", torch.bfloat16):
            value = loss(model(tokens[:, :-1])[0], tokens[:, 1:])
        value.backward()
        losses.append(value.item())
        grads.append(model.backbone.layers[0].mixer.in_proj.weight.grad)
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert (grads[0] - grads[1]).norm() / grads[0].norm() < 5e-2


def test_a_provider_that_cannot_run_says_so(monkeypatch):
    def fail(*_):
        raise RuntimeError("no kernel image\nmore")

    monkeypatch.setattr(step, "_measure", fail)
    (row,) = step_rows(CPU, quick=True)
    assert row["status"] == "unavailable: no kernel image"
