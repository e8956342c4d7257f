"""ssmlib.bench.language: models of one size, rows that can be kept, peers that agree."""

import pytest
import torch

from ssmlib.bench.language import chosen, run, step, step_rows, summary
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
    assert [len(found) for found in chosen(rows).values()] == [2] * 4  # seeds
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
    ms = {
        (row["provider"].rpartition(", ")[2], row["captured"]): row["seconds"] * 1e3 for row in rows
    }
    assert sorted(ms, key=ms.get) == [
        ("ssmlib", True), ("fused", True), ("fused", False),
        ("kernels", True), ("kernels", False), ("ssmlib", False),
    ]  # fmt: skip
    assert 0.97 < ms["ssmlib", True] / ms["fused", True] < 0.98  # by a fortieth
    launching = {who: 1 - ms[who, True] / ms[who, False] for who in ("ssmlib", "kernels", "fused")}
    assert 0.18 < launching["ssmlib"] < 0.2
    assert max(launching["kernels"], launching["fused"]) < 0.02
    assert all(5 < row["seconds"] / row["floor_seconds"] < 7 for row in rows)
    of_log = {("ssmlib", True): 93.5, ("kernels", True): 101.8, ("fused", True): 95.9}
    of_log |= {("ssmlib", False): 115.1, ("kernels", False): 103.2, ("fused", False): 97.5}
    assert {key: round(value, 1) for key, value in ms.items()} == of_log


def test_the_record_says_what_selection_is_worth_on_a_text():
    """In the words of chapter 06 and of the log."""
    rows = load_record("language_model").rows
    best = chosen(rows)
    assert all([run["seed"] for run in runs] == [0, 1, 2] for runs in best.values())
    assert {name: runs[0]["steps"] for name, runs in best.items()} == {
        "mamba": 200, "constant": 200, "s4d": 200, "attention": 400
    }  # fmt: skip

    def span(name: str, what: str) -> tuple[float, float]:
        found = [run[what] for run in best[name]]
        return round(min(found), 2), round(max(found), 2)

    assert span("mamba", "bits") == (1.85, 1.87)
    assert span("constant", "bits") == (1.83, 1.85)
    assert span("s4d", "bits") == (1.88, 1.89)
    assert span("attention", "bits") == (1.88, 1.97)
    assert span("mamba", "carried_bits") == (1.85, 1.87)
    assert span("constant", "carried_bits") == (1.82, 1.84)
    (alone,) = [row["bits"] for row in rows if row["row"] == "frequencies"]
    assert round(alone, 2) == 4.67
    bits = {name: [run["bits"] for run in runs] for name, runs in best.items()}
    assert max(bits["constant"]) < min(bits["mamba"]) < max(bits["mamba"]) < min(bits["s4d"])
    mean = {name: sum(found) / 3 for name, found in bits.items()}
    assert 0.015 < mean["mamba"] - mean["constant"] < 0.03
    assert 0.015 < mean["s4d"] - mean["mamba"] < 0.03
    sizes = {name: runs[0]["parameters"] for name, runs in best.items()}
    assert 0.07 < 1 - sizes["constant"] / sizes["mamba"] < 0.08


def test_the_record_says_that_selection_learns_faster_and_by_heart():
    """Mamba beside the layer without selection, at each rate and number of updates, seed 0."""
    rows = load_record("language_model").rows
    of = {
        (row["model"], row["lr"], row["steps"]): row
        for row in rows
        if row["row"] == "held_out" and row["seed"] == 0
    }
    pairs = [(of[key], of["constant", *key[1:]]) for key in of if key[0] == "mamba"]
    assert len(pairs) == 9
    less = [fixed["train_bits"] - mamba["train_bits"] for mamba, fixed in pairs]
    assert all(0.06 < bits < 0.16 for bits in less)
    early = [mamba["bits"] < fixed["bits"] for mamba, fixed in pairs if mamba["steps"] == 100]
    late = [mamba["bits"] > fixed["bits"] for mamba, fixed in pairs if mamba["steps"] == 400]
    assert early == late == [True] * 3


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
