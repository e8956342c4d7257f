"""The suite selection: layers that are what they are called, sweeps that try what they say."""

import json
from dataclasses import replace
from statistics import mean

import pytest
import torch
from agreement import assert_close
from torch import nn

from ssmlib.bench import selection, store
from ssmlib.bench.ledger import Ledger
from ssmlib.bench.selection.__main__ import main
from ssmlib.bench.selection.cases import SIZES, Size, cases_of, pieces
from ssmlib.bench.selection.fit import (
    Cell,
    accuracy,
    asked_lengths,
    built,
    fit,
    train_together,
)
from ssmlib.bench.selection.published import COPYING, INDUCTION, published_share
from ssmlib.bench.selection.sweep import sweep_all
from ssmlib.bench.selection.wrappers import (
    WRAPPERS,
    LongConvSystem,
    S4DSystem,
    S6System,
    WrapperConfig,
)
from ssmlib.mixers.mamba import MambaConfig
from ssmlib.recall import induction
from ssmlib.train import Task, train

SYSTEMS = {"s4d": S4DSystem(8), "long_conv": LongConvSystem(20), "s6": S6System(4, 2)}
TINY = SIZES["selective_copying"]["tiny"]


def drawn(config, d: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return config.build(d).double()


def test_the_mamba_wrapper_around_s6_is_mamba(seeded):
    """Outputs and gradients of every parameter, given the same weights."""
    ours = drawn(WrapperConfig(S6System(4, 2), "mamba"))
    mamba = drawn(MambaConfig(4, dt_rank=2))
    weights = {name.removeprefix("system."): p for name, p in ours.state_dict().items()}
    mamba.load_state_dict(weights)
    x = seeded.normal(2, 9, 8)
    for module in (ours, mamba):
        y, _ = module(x)
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    assert_close(ours(x)[0], mamba(x)[0])
    there = dict(mamba.named_parameters())
    for name, p in ours.named_parameters():
        assert_close(p.grad, there[name.removeprefix("system.")].grad, name=name)


def test_the_mamba_wrapper_draws_its_weights_as_mamba_does():
    sizes = [
        {name.removeprefix("system."): p.std() for name, p in module.named_parameters()}
        for module in (
            drawn(WrapperConfig(S6System(16, 8), "mamba"), 128),
            drawn(MambaConfig(16), 128),
        )
    ]
    assert sizes[0].keys() == sizes[1].keys()
    for name, size in sizes[0].items():
        assert_close(size, sizes[1][name], 0.15, name)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_layer_of_the_grid_is_causal_and_learns_all_it_has(system, wrapper, seeded):
    layer = drawn(WrapperConfig(SYSTEMS[system], wrapper))
    x = seeded.normal(2, 15, 8)
    y, state = layer(x)
    assert state is None
    y.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())
    changed = x.clone()
    changed[:, 10:] += 1
    after = layer(changed)[0]
    assert_close(after[:, :10], y[:, :10], 1e-6)
    assert (after[:, 10:] - y[:, 10:]).abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize("name", SYSTEMS)
def test_selection_is_what_superposition_finds(name, seeded):
    system = SYSTEMS[name].build(6).double()
    x, z = seeded.normal(1, 12, 6), seeded.normal(1, 12, 6)
    both, apart = system(x + z), system(x) + system(z)
    gap = ((both - apart).norm() / both.norm()).item()
    assert gap > 1e-2 if name == "s6" else gap < 1e-6


def test_the_long_convolution_has_one_kernel_for_all_lengths(seeded):
    system = LongConvSystem(20).build(6).double()
    taps = system.taps(33)
    assert taps.shape == (6, 33)
    assert_close(system.taps(10), taps[:, :10])
    x = seeded.normal(2, 33, 6)
    direct = torch.stack(
        [(taps[:, : i + 1].flip(1).mT * x[:, : i + 1]).sum(1) for i in range(33)], dim=1
    )
    assert_close(system(x), direct + system.D * x, 1e-8)
    assert (taps[:, :5].abs().sum() > 0).item()


def test_wrappers_refuse_what_they_are_not(seeded):
    with pytest.raises(ValueError, match="wrapper: expected one of plain, h3, mamba, got 'gru'"):
        WrapperConfig(S4DSystem(), "gru").build(8)
    layer = drawn(WrapperConfig(S4DSystem(4), "plain"))
    with pytest.raises(ValueError, match="state: expected None, as only whole sequences"):
        layer(seeded.normal(1, 3, 8), state=())


def test_each_piece_is_left_out_once():
    whole = MambaConfig(16, dt_max=0.2)
    made = pieces(whole)
    assert len(made) == 9
    assert len(set(made.values())) == len(made)
    assert made["no selection"].selective == ()
    assert made["dt alone"].selective == ("dt",)
    assert made["dt fixed"].selective == ("B", "C")
    assert made["no conv"].conv_width is None
    assert not made["no gate"].gated
    for config in made.values():
        same = replace(config, selective=whole.selective, conv_width=4, gated=True)
        assert same == whole


def test_accuracy_in_pieces_is_that_of_the_whole(monkeypatch):
    """And only what is asked counts."""
    case = next(cases_of("induction", SIZES["induction"]["tiny"]))
    model = built(Cell(case, SIZES["induction"]["tiny"], 1e-2, 0, "cpu"))
    tokens, targets = induction(40, 37, 5, seed=0)
    with torch.no_grad():
        right = (model(tokens)[0][:, -1].argmax(-1) == targets[:, -1]).float().mean().item()
    assert 0 < right < 1
    assert accuracy(model, tokens, targets, in_pieces=False) == pytest.approx(right)
    for tokens_at_once in (40 * 10, 40, 1):
        monkeypatch.setattr("ssmlib.bench.selection.fit.AT_ONCE", tokens_at_once)
        assert accuracy(model, tokens, targets, in_pieces=True) == pytest.approx(right)
        assert accuracy(model, tokens, targets, in_pieces=False) == pytest.approx(right)


def test_a_case_is_asked_no_longer_than_it_says():
    size = SIZES["induction"]["tiny"]
    case = replace(next(cases_of("induction", size)), longest=12)
    cell = Cell(case, size, 1e-2, 0, "cpu")
    model = built(cell)
    assert [row["length"] for row in asked_lengths(model, cell, "ok")] == [8, 12]
    assert [row["length"] for row in asked_lengths(model, cell, "diverged")] == [12]


def pretend(shares: dict[tuple[float, int], float], asked: list):
    def run(cells):
        asked.append([(cell.lr, cell.seed) for cell in cells])
        return [
            [{"length": TINY.length, "accuracy": shares[cell.lr, cell.seed], "status": "ok"}]
            for cell in cells
        ]

    return run


def swept(size: Size, shares: dict, together: int = 1, count: int = 1) -> tuple[list, list]:
    """The rows of the first cases, and what was trained with what."""
    asked = []
    chosen = list(cases_of("selective_copying", TINY))[:count]
    ledger = Ledger(None, "")
    rows = list(sweep_all(chosen, size, ledger, "cpu", together, pretend(shares, asked)))
    assert ledger.rows == rows
    return rows, asked


def test_the_sweep_stops_at_what_solves_and_tries_everything_else():
    size = replace(TINY, lrs=(1e-3, 1e-2, 1e-1), seeds=3, solved=0.9)
    shares = {(lr, seed): lr for lr in size.lrs for seed in range(3)}
    _, asked = swept(size, shares)
    assert asked == [[(1e-3, 0)], [(1e-2, 0)], [(1e-1, 0)], [(1e-1, 1)], [(1e-1, 2)]]
    rows, asked = swept(size, shares | {(1e-3, 0): 0.95})
    assert asked == [[(1e-3, 0)], [(1e-3, 1)], [(1e-3, 2)]]
    assert [row["seed"] for row in rows] == [0, 1, 2]
    assert rows[0].items() >= next(cases_of("selective_copying", TINY)).labels.items()


def test_cells_are_trained_side_by_side_as_many_as_said():
    size = replace(TINY, lrs=(1e-3,), seeds=2)
    rows, asked = swept(size, {(1e-3, 0): 0.5, (1e-3, 1): 0.5}, together=2, count=3)
    assert [len(group) for group in asked] == [2, 1, 2, 1]
    assert len(rows) == 6
    assert len({(row["layer"], row["variant"]) for row in rows}) == 3


def test_the_best_of_a_case_is_the_mean_of_its_seeds_at_the_rate_gone_on_with():
    size = replace(TINY, lrs=(1e-2, 1e-3), seeds=3)
    shares = {(1e-3, 0): 0.5, (1e-2, 0): 0.5, (1e-2, 1): 0.3, (1e-2, 2): 0.4}
    rows, _ = swept(size, shares)
    (row,) = selection.best(rows)
    assert (row["lr"], row["lrs"], row["seeds"]) == (1e-2, 2, 3)
    assert row["accuracy"] == pytest.approx(0.4)
    assert row["worst"] == 0.3
    assert row["layer"] == rows[0]["layer"]


def test_the_best_of_rows_that_were_picked_out_is_the_best_of_those():
    size = replace(TINY, lrs=(1e-2, 1e-3), seeds=2)
    shares = {(1e-2, 0): 0.3, (1e-3, 0): 0.5, (1e-3, 1): 0.4}
    rows, _ = swept(size, shares)
    longer = [row | {"length": 4 * TINY.length, "accuracy": row["accuracy"] / 2} for row in rows]
    (row,) = selection.best(longer)
    assert (row["lr"], row["seeds"], row["length"]) == (1e-3, 2, 4 * TINY.length)
    (row,) = selection.best(row for row in rows + longer if row["seed"] and row["lr"] == 1e-3)[:1]
    assert (row["seeds"], row["accuracy"]) == (1, 0.4)
    assert selection.best([]) == []
    assert selection.summary(longer).count("\n") == 2  # its name, a head, a row


def test_what_the_paper_reports_stands_beside_its_length():
    assert published_share("selective_copying", "s6", "mamba", 512, 4096) == 0.998
    assert published_share("selective_copying", "s6", "mamba", 512, 512) is None
    assert published_share("selective_copying", "s6", "no conv", 512, 4096) is None
    assert published_share("induction", "attention", "rotary", 256, 2**10) == 0.313
    assert published_share("induction", "attention", "rotary", 32, 2**10) is None
    assert published_share("induction", "attention", "rotary", 256, 2**15) is None
    assert published_share("induction", "mamba", "", 256, 2**20) == 1.0
    for experiment, table in (("selective_copying", COPYING), ("induction", INDUCTION)):
        made = cases_of(experiment, SIZES[experiment]["full"])
        names = {(case.layer, case.variant) for case in made if case.part == "grid"}
        assert table.keys() <= names


@pytest.mark.parametrize("experiment", selection.EXPERIMENTS)
def test_models_side_by_side_learn_what_each_learns_alone(experiment):
    """As `train` would teach it, bit by bit."""
    size = SIZES[experiment]["tiny"]
    chosen = list(cases_of(experiment, size))
    cells = [Cell(chosen[i], size, 1e-2, seed, "cpu") for i, seed in ((0, 0), (1, 0), (0, 1))]
    models = [built(cell) for cell in cells]
    train_together(models, cells)
    for cell, model in zip(cells, models, strict=True):
        alone = built(cell)
        task = Task(lambda seed, cell=cell: cell.draw(size.batch, size.length, seed))
        train(alone, task, cell.config)
        for p, q in zip(model.parameters(), alone.parameters(), strict=True):
            assert torch.equal(p, q)


def test_a_fit_says_what_it_trained():
    case = next(cases_of("selective_copying", TINY))
    (rows,) = fit([Cell(case, TINY, 1e-2, 0, "cpu")])
    assert [row["length"] for row in rows] == list(TINY.tested)
    assert all(0 <= row["accuracy"] <= 1 and row["status"] == "ok" for row in rows)
    weights = sum(p.numel() for p in case.model.build().parameters())
    assert {row["parameters"] for row in rows} == {weights}


def test_a_fit_that_diverges_says_so():
    case = next(cases_of("selective_copying", TINY))
    (rows,) = fit([Cell(case, TINY, 1e20, 0, "cpu")])
    assert [(row["length"], row["status"]) for row in rows] == [(TINY.length, "diverged")]
    assert rows[0]["loss"] is None


def test_the_tiny_suite_writes_a_record_and_continues(tmp_path, capsys):
    command = ["--out", str(tmp_path), "--size", "tiny", "--device", "cpu"]
    assert main([*command, "--seconds", "0"]) == 3
    assert "continues" in capsys.readouterr().out
    assert main([*command, "--only", "induction"]) == 0
    assert not (tmp_path / "selection_tiny.json").exists()
    done = (tmp_path / "selection_tiny.jsonl").read_text()
    assert len(done.splitlines()) == 1 + 5 * 3
    assert main([*command, "--seconds", "0"]) == 3
    partial = store.load_record("selection_tiny", tmp_path)
    assert (len(partial.rows), partial.provenance["partial"]) == (5 * 3, True)
    assert main(command) == 0
    assert not (tmp_path / "selection_tiny.partial.json").exists()
    assert (tmp_path / "selection_tiny.jsonl").read_text().startswith(done)
    rows = store.load_record("selection_tiny", tmp_path).rows
    assert {row["experiment"] for row in rows} == set(selection.EXPERIMENTS)
    assert {row["status"] for row in rows} == {"ok"}
    assert "long_conv" in selection.summary(rows)
    lines = (tmp_path / "selection_tiny.jsonl").read_text().splitlines()
    assert len({json.dumps(json.loads(line), sort_keys=True) for line in lines}) == len(lines)


def test_the_record_of_the_small_size_is_whole_and_holds_what_is_said_of_it():
    rows = store.load_record("selection_small").rows
    for experiment in selection.EXPERIMENTS:
        made = cases_of(experiment, SIZES[experiment]["small"])
        there = {(r["layer"], r["variant"]) for r in rows if r["experiment"] == experiment}
        assert there == {(case.layer, case.variant) for case in made}
    chosen = selection.best(rows)
    copied = {
        (row["layer"], row["variant"], row["length"]): row["accuracy"]
        for row in chosen
        if row["experiment"] == "selective_copying"
    }
    at_64 = {key[:2]: share for key, share in copied.items() if key[2] == 64}
    at_256 = {key[:2]: share for key, share in copied.items() if key[2] == 256}
    selective = {key for key in at_64 if key[0] == "s6" and key[1] != "no selection"}
    fixed = at_64.keys() - selective
    assert all(at_64[key] > 0.97 and at_256[key] > 0.9 for key in selective)
    assert sum(at_64[key] > 0.6 for key in fixed) > len(fixed) / 2
    assert all(at_256[key] < 0.4 for key in fixed)
    assert max(fixed, key=at_64.get) == ("s4d", "h3")
    assert 0.88 < at_64["s4d", "h3"] < 0.89
    assert min(at_256["s6", wrapper] for wrapper in ("plain", "h3", "mamba")) > 0.93
    heads = {(r["layer"], r["variant"], r["length"]): r["accuracy"] for r in chosen}
    assert heads["attention", "rotary", 32] == 1 > 0.64 > heads["attention", "rotary", 64] > 0.62
    assert heads["mamba", "no conv", 32] < 0.2


@pytest.fixture(scope="module")
def recorded() -> tuple[list, dict]:
    """The rows of the large record, and what is best of them by layer, variant and length."""
    rows = store.load_record("selection").rows
    chosen = selection.best(rows)
    return rows, {(row["layer"], row["variant"], row["length"]): row for row in chosen}


def right(recorded: tuple[list, dict], layer: str, variant: str, length: int) -> list[float]:
    """What each seed gets right at the best rate, the least first."""
    rows, best = recorded
    names = (layer, variant, length, best[layer, variant, length]["lr"])
    keys = ("layer", "variant", "length", "lr")
    return sorted(row["accuracy"] for row in rows if tuple(map(row.get, keys)) == names)


def test_the_record_lacks_only_what_chapter_05_says(recorded):
    _, best = recorded
    single = {("s6", name) for name in ("no gate", "dt alone", "no selection")}
    assert all(row["seeds"] == (1 if key[:2] in single else 3) for key, row in best.items())
    for experiment in selection.EXPERIMENTS:
        size = SIZES[experiment]["full"]
        made = {(case.layer, case.variant) for case in cases_of(experiment, size)}
        there = {key[:2] for key, row in best.items() if row["experiment"] == experiment}
        assert there == made
        tried = {key[:2]: row for key, row in best.items() if key[2] == size.length}
        for key in made:
            row = tried[key]
            assert row["lrs"] == len(size.lrs) or row["accuracy"] > size.solved


def test_the_record_of_induction_holds_what_chapter_05_says(recorded):
    rows, best = recorded
    heads = {n: best["mamba", "", n] for n in SIZES["induction"]["full"].tested}
    assert all(row["worst"] == 1 for n, row in heads.items() if n <= 2**17)
    assert heads[2**20]["worst"] == 57 / 64
    assert [row["accuracy"] < 1 for row in rows if row["length"] == 2**20].count(True) == 1
    rotary = [best["attention", "rotary", 2**k]["accuracy"] for k in (8, 9, 10)]
    assert rotary[0] == 1 > 0.62 > rotary[1] > 0.58 > 0.26 > rotary[2] > 0.24
    assert right(recorded, "attention", "rotary", 2**10)[-1] < 0.4
    told = [INDUCTION["attention", "rotary"][2**k] for k in (9, 10)]
    assert told[0] > rotary[1]
    assert told[1] > rotary[2]
    assert 0.7 < best["attention", "no positions", 2**8]["accuracy"] < 0.72
    assert best["mamba", "no selection", 2**8]["worst"] == 1
    least, *others = right(recorded, "mamba", "no selection", 2**10)
    assert 0.195 < least < 0.205
    assert others == pytest.approx([0.7, 0.8], abs=0.005)
    assert f"{mean([least, *others]):.0%}" == "57%"

    without = {n: best["mamba", "no conv", 2**n] for n in (8, 9, 13)}
    assert without[8]["lr"] == pytest.approx(heads[2**8]["lr"] / 5)
    assert without[8]["worst"] == without[9]["worst"] == 1
    assert f"{without[13]['accuracy']:.0%}" == "77%"
    guessed = [r for r in rows if r["variant"] == "no conv" and r["lr"] == heads[2**8]["lr"]]
    assert max(row["accuracy"] for row in guessed if row["experiment"] == "induction") < 0.08


def test_the_record_of_copying_holds_what_chapter_05_says(recorded):
    rows, best = recorded
    assert all(row["steps"] == 60000 for row in rows if "items" in row)
    for name in ("h3", "mamba", "no conv", "no gate", "dt alone"):
        assert best["s6", name, 512]["worst"] > 0.994
    assert 0.97 <= best["s6", "plain", 512]["accuracy"] < 0.975
    assert 0.575 < best["s6", "no selection", 512]["accuracy"] < 0.585
    shares = {key: row["accuracy"] for key, row in best.items() if key[0] in ("s4d", "long_conv")}
    at_512 = {key[:2]: share for key, share in shares.items() if key[2] == 512}
    passed = {key: f"{share:.0%}" for key, share in at_512.items() if share > 0.6}
    assert passed == {
        ("s4d", "plain"): "66%",
        ("s4d", "mamba"): "84%",
        ("s4d", "h3"): "87%",
        ("long_conv", "mamba"): "75%",
    }
    fixed_at_4096 = max(share for key, share in shares.items() if key[2] == 4096)
    assert 0.115 < fixed_at_4096 < 0.125
    assert best["s6", "no selection", 4096]["accuracy"] < fixed_at_4096
    for name in ("plain", "mamba", "no conv"):
        assert 0.235 < best["s6", name, 4096]["accuracy"] < 0.355
    for name in ("plain", "mamba"):
        assert best["s6", name, 4096]["worst"] < fixed_at_4096
    least, *others = right(recorded, "s6", "h3", 4096)
    assert 0.255 < least < 0.265 < 0.955 < min(others) <= max(others) < 0.965
    assert 0.835 < best["s6", "no gate", 4096]["accuracy"] < 0.845


def test_the_record_of_copying_holds_what_the_log_says(recorded):
    """Of rates that hide a layer, and of fixed layers that copy well enough."""
    rows, best = recorded
    by_rate: dict[tuple, list] = {}
    for row in rows:
        if row["layer"] == "s6" and row["length"] == 512:
            by_rate.setdefault((row["variant"], row["lr"]), []).append(row["accuracy"])
    assert min(by_rate["mamba", 3e-3]) > 0.99
    least, *others = sorted(by_rate["mamba", 3e-4])
    assert 0.175 < least < 0.185 < 0.99 < min(others)
    for name in ("mamba", "no gate", "dt alone"):
        assert max(by_rate[name, 1e-3]) < 0.16
    for name in ("h3", "no conv"):
        assert min(by_rate[name, 1e-3]) > 0.99
    assert all(best["s4d", name, 512]["lr"] == 3e-3 for name in ("plain", "h3", "mamba"))
    below = [best["long_conv", name, 512]["accuracy"] for name in ("plain", "h3")]
    assert [f"{share:.0%}" for share in below] == ["56%", "50%"]
    at_4096 = [best["s6", name, 4096]["accuracy"] for name in ("plain", "mamba", "h3")]
    assert [f"{share:.0%}" for share in at_4096] == ["24%", "32%", "73%"]


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"experiment: expected one of selective_copying, .*'mqar"):
        list(selection.rows("mqar"))
    with pytest.raises(ValueError, match="size: expected one of full, small, tiny, got 'huge'"):
        list(selection.rows("induction", "huge"))
    assert isinstance(TINY, Size)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_tiny_suite_is_captured_on_a_gpu(tmp_path):
    assert (
        main(["--out", str(tmp_path), "--size", "tiny", "--device", "cuda", "--together", "3"]) == 0
    )
    rows = store.load_record("selection_tiny", tmp_path).rows
    assert {row["status"] for row in rows} == {"ok"}
