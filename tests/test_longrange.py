"""The suite longrange: floors that are floors, fits that near them, rows that outlive a kill."""

import json
import math

import pytest
import torch
from agreement import assert_close

from ssmlib.bench import longrange, store
from ssmlib.bench.ledger import Ledger, OutOfTime
from ssmlib.bench.longrange import classify, memory
from ssmlib.bench.longrange.__main__ import main
from ssmlib.discretize import bilinear
from ssmlib.mixers.s4 import S4Config
from ssmlib.s4 import initial, kernel_dplr
from ssmlib.tasks.signals import delay, white_noise

CPU = torch.device("cpu")


@pytest.mark.parametrize("system", memory.SYSTEMS)
def test_responses_are_the_powers_of_the_step(system):
    A, B = memory.SYSTEMS[system](8, torch.Generator().manual_seed(3))
    A_bar, h = bilinear(A, B, 0.1)
    v = memory.responses(system, 8, 0.1, 13, 3, CPU)
    for i in range(13):
        assert_close(v[: len(h), i], h[:, 0])
        h = A_bar @ h
    assert v.shape == (8, 13)
    assert (v[len(h) :] == 0).all()


@pytest.mark.parametrize("system", ["legs", "random"])
def test_a_mixture_of_responses_is_the_kernel_of_an_s4_layer(system, seeded):
    """K = C v, for the C of a layer that starts from the same system."""
    source = torch.Generator().manual_seed(3)
    A, P, B = initial.dplr(system, 16, generator=source)
    C = torch.complex(seeded.normal(1, 8), seeded.normal(1, 8))
    dt = torch.full((1,), 0.05, dtype=torch.float64)
    K = kernel_dplr(dt, A, P, B, C, 40)
    v = memory.responses(system, 16, 0.05, 40, 3, CPU)
    fit = torch.linalg.lstsq(v.mT, K.mT, driver="gelsd").solution  # in v's own coordinates
    assert_close((v.mT @ fit).mT, K, 1e-8)


@pytest.mark.parametrize("system", ["legs", "fourier", "gaussian"])
def test_the_floor_is_the_least_error_on_noise(system):
    """Least squares on many drawn sequences, without the covariance, comes to the same."""
    size = memory.Size(24, 6, 6, 0.25, 3000, 1, (), 1)
    v = memory.responses(system, size.n, 1 / size.lag, size.t, 0, CPU)
    x, y = (z[..., 0].double() for z in delay(size.batch, size.t, size.lag, size.cutoff, 1))
    lagged = torch.stack([torch.nn.functional.pad(x, (i, 0))[:, : size.t] for i in range(size.t)])
    columns = torch.cat([torch.einsum("ni,ibt->nbt", v, lagged), x[None]]).flatten(1).mT
    left = y.flatten() - columns @ torch.linalg.lstsq(columns, y.flatten(), driver="gelsd").solution
    error = left.square().mean() / y.square().mean()
    assert abs(error.sqrt() - memory.floor(v, "delay", size)) < 0.02

    states, wanted = x @ v.flip(1).mT, x[:, -size.lag :]
    left = wanted - states @ torch.linalg.lstsq(states, wanted, driver="gelsd").solution
    error = left.square().mean() / wanted.square().mean()
    assert abs(error.sqrt() - memory.floor(v, "reconstruct", size)) < 0.02


@pytest.mark.parametrize("experiment", ["delay", "reconstruct"])
def test_training_nears_the_floor_and_never_passes_it(experiment):
    size = memory.Size(32, 8, 16, 0.25, 16, 800, (1e-2, 1e-1), 2)
    systems = [("fourier", 1 / 8), ("legs", 2 / 8), ("gaussian", 2 / 8)]
    each = [memory.responses(s, size.n, dt, size.t, 0, CPU) for s, dt in systems]
    floors = torch.tensor([memory.floor(v, experiment, size) for v in each])[:, None]
    stacked = torch.stack([torch.stack([v, v]) for v in each]).float()
    error = memory.fit(experiment, size, stacked, size.lrs, [0, 1])
    assert error.shape == (2, 3, 2)
    assert (error > 0.85 * floors).all()  # the test batches are drawn, the floor is expected
    assert (error[1, :2] < floors[:2] + 0.15).all()
    assert error[1, 2].min() > error[1, 0].max()


def test_stacked_fits_are_the_fits_alone():
    size = memory.Size(32, 8, 8, 0.25, 4, 5, (1e-2, 1e-1), 2)
    v = torch.stack([memory.responses(s, 8, 0.2, 32, 0, CPU) for s in ("legs", "random")])
    v = v.float()[:, None].expand(-1, 2, -1, -1)
    together = memory.fit("delay", size, v, size.lrs, [0, 1])
    for i, lr in enumerate(size.lrs):
        for seed in (0, 1):
            alone = memory.fit("delay", size, v[1:, :1], [lr], [seed])
            assert_close(alone.flatten(), together[i, 1, seed].view(1), 1e-4)


def test_noise_of_one_seed_does_not_depend_on_the_others():
    size = memory.SIZES["delay"]["tiny"]
    both = memory.draw(size, "train", 3, [0, 1], CPU)
    assert torch.equal(both[1], memory.draw(size, "train", 3, [1], CPU)[0])
    assert both.shape == (2, size.batch, size.t)
    assert not torch.equal(both[0], white_noise(size.batch, size.t, size.cutoff, 0))


def test_gaussian_poles_decay_and_are_the_layers():
    poles = classify.gaussian_poles(32)
    assert poles.shape == (16,)
    assert poles.real.max() < 0
    assert poles.imag.min() >= 0
    size = classify.SIZES["digits"]["tiny"]
    builds = {tuple(labels.values()): build for labels, build in classify.digit_models(size)}
    torch.manual_seed(0)
    system = builds["s4d", "gaussian", "frozen"]().backbone.layers[0].mixer.kernel
    torch.manual_seed(0)
    builds["s4d", "random", "frozen"]()  # what is overwritten is drawn first
    wanted = classify.gaussian_poles(size.n)
    assert_close(system.A_imag[0], wanted.imag.float(), 1e-6)
    assert_close(-system.log_A_real[1].exp(), wanted.real.float(), 1e-6)


def test_frozen_means_that_only_the_readout_learns():
    size = classify.SIZES["digits"]["tiny"]
    for labels, build in classify.digit_models(size):
        system = build().backbone.layers[0].mixer.kernel
        learned = {name for name, p in system.named_parameters() if p.requires_grad}
        whole = {name for name, _ in system.named_parameters()}
        assert learned == ({"C"} if labels["memory"] == "frozen" else whole)
    assert "P" in dict(S4Config(state_size=4).build(2).kernel.named_parameters())


def test_the_ledger_keeps_what_is_done_and_drops_a_torn_line(tmp_path, monkeypatch):
    monkeypatch.setenv("SSMLIB_COMMIT", "abc")
    path, calls = tmp_path / "deep" / "rows.jsonl", []

    def make():
        calls.append(0)
        yield from ({"value": 1.5}, {"value": None})

    first = Ledger(path, "here").fill({"a": 1}, make)
    mark = {"commit": "abc"}
    assert first == [{"a": 1, "value": 1.5} | mark, {"a": 1, "value": None} | mark]
    monkeypatch.setenv("SSMLIB_COMMIT", "def")  # what is measured later
    with path.open("a") as file:
        file.write('{"a": 2, "val')  # killed while writing
    again = Ledger(path, "here")
    assert again.fill({"a": 1}, make) == first
    assert [row["commit"] for row in again.fill({"a": 2}, make)] == ["def", "def"]
    assert len(calls) == 2
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"where": "here"}
    assert len(lines) == 5
    with pytest.raises(ValueError, match="expected rows from 'there', got"):
        Ledger(path, "there")


def test_the_ledger_begins_nothing_when_time_is_up():
    ledger = Ledger(None, "", seconds=0.0)
    with pytest.raises(OutOfTime):
        ledger.fill({"a": 1}, lambda: [{}])


def test_the_sweep_trains_more_seeds_at_the_best_rate_alone(monkeypatch):
    size = classify.Size(64, 4, 4, 1, 4, 4, (1e-3, 1e-2), 3)

    def pretend(experiment, size, build, task, lr, seed, device):
        return [{"test_accuracy": lr, "status": "ok"}]

    monkeypatch.setattr(classify, "_train", pretend)
    only = {("s4d", "lin", "frozen")}
    rows = list(classify.rows("digits", size, Ledger(None, ""), CPU, only))
    assert [(row["lr"], row["seed"]) for row in rows] == [
        (1e-3, 0),
        (1e-2, 0),
        (1e-2, 1),
        (1e-2, 2),
    ]
    assert {(row["layer"], row["init"], row["memory"]) for row in rows} == only


def test_the_tiny_suite_writes_a_record_and_continues(tmp_path, capsys):
    command = ["--out", str(tmp_path), "--quick", "--device", "cpu"]
    assert main([*command, "--seconds", "0"]) == 3
    assert "continues" in capsys.readouterr().out
    assert main([*command, "--only", "delay"]) == 0
    assert not (tmp_path / "longrange.json").exists()
    done = (tmp_path / "longrange_quick.jsonl").read_text()
    assert main(command) == 0
    assert (tmp_path / "longrange_quick.jsonl").read_text().startswith(done)
    rows = store.load_record("longrange", tmp_path).rows
    assert {row["experiment"] for row in rows} == set(longrange.EXPERIMENTS)
    assert {row["status"] for row in rows} == {"ok"}
    assert all(math.isfinite(row["test_accuracy"]) for row in rows if row["experiment"] == "digits")
    assert "listops" in longrange.summary(rows)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"experiment: expected one of delay, .*, got 'pathx'"):
        list(longrange.rows("pathx"))
    with pytest.raises(ValueError, match="size: expected one of full, small, tiny, got 'huge'"):
        list(longrange.rows("delay", "huge"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_tiny_suite_is_captured_on_a_gpu(tmp_path):
    assert main(["--out", str(tmp_path), "--quick", "--device", "cuda"]) == 0
    rows = store.load_record("longrange", tmp_path).rows
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["captured"] for row in rows if "captured" in row} == {True}
