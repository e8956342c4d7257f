"""The recall laboratory: models side by side learn what each learns alone; sweeps; the driver."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from agreement import assert_close

from ssmlib.bench import recall as lab
from ssmlib.bench import store
from ssmlib.bench.ledger import Ledger, OutOfTime
from ssmlib.bench.recall import driver, pool
from ssmlib.bench.recall import lane as lanes
from ssmlib.bench.recall import published as told
from ssmlib.bench.recall.cases import Case, Run, told_of
from ssmlib.bench.recall.claims import spearman, verdicts
from ssmlib.bench.recall.driver import main
from ssmlib.bench.recall.experiments import EXPERIMENTS, FAMILIES, MIXTURE, experiment_of
from ssmlib.bench.recall.lane import Lane, Stretch, answers, drawn, scored
from ssmlib.bench.recall.layers import ShortConvConfig
from ssmlib.bench.recall.models import MIXERS, model_of
from ssmlib.bench.recall.published import PAIRS_OF_4, PAIRS_OF_16, published
from ssmlib.bench.recall.results import best, by_case, command_of, interval, lines_of
from ssmlib.bench.recall.speed import throughput
from ssmlib.generate import state_bytes
from ssmlib.recall import TASKS
from ssmlib.train.step import make_optimizer, set_lr
from ssmlib.train.task import UNSCORED, loss

TINY = experiment_of("mqar", "tiny")


def case_of(mixer: str = "attention", steps: int = 4, **options) -> Case:
    case = TINY.case("16", mixer, 8, **options)
    return replace(case, course=replace(case.course, steps=steps))


def weights(lane: Lane) -> list[torch.Tensor]:
    return [p.detach().clone() for p in lane.model.parameters()]


def trained(lane: Lane, run: Run) -> list[torch.Tensor]:
    lane.begin(run)
    while lane.done < run.case.course.steps:
        lane.advance()
    while lane.ahead:  # a GPU is not done when all was sent
        lane.look()
    return weights(lane)


@pytest.mark.parametrize("size", ["full", "small", "tiny"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_case_can_be_built_and_no_two_are_alike(name, size):
    experiment = experiment_of(name, size)
    cases = list(experiment.cases())
    assert len({json.dumps(case.labels) for case in cases}) == len(cases) > 2
    for case in cases if size == "tiny" else cases[:2]:
        case.model.build()
    for course in experiment.courses.values():
        tokens, targets = course.draw(2, 0, "cpu")
        assert tokens.shape == targets.shape == (2, course.batch, tokens.shape[2])
        assert (targets != UNSCORED).sum(2).max() <= course.most_asked
        for setting in course.tested:
            assert 0 < TASKS[course.task].chance(**setting) < 0.5


def test_a_batch_has_as_many_rows_of_each_setting():
    course = experiment_of("mqar").courses["64"]
    tokens, targets = course.draw(3, 0, "cpu")
    asked = (targets != UNSCORED).sum(2)
    assert [row.unique_consecutive().tolist() for row in asked] == [[64 // m for m in MIXTURE]] * 3
    assert not torch.equal(tokens[0], tokens[1])
    assert torch.equal(tokens, course.draw(3, 0, "cpu")[0])
    assert not torch.equal(tokens, course.draw(3, 1, "cpu")[0])
    with pytest.raises(ValueError, match="batch: expected a multiple of 3 settings, got 4"):
        replace(course, batch=4)


@pytest.mark.parametrize("mixer", MIXERS)
def test_models_are_causal_and_their_pieces_are_the_whole(mixer, seeded):
    torch.manual_seed(0)
    model = model_of(mixer, 11, 8).build().double()
    tokens = torch.randint(11, (2, 12), generator=torch.Generator().manual_seed(0))
    whole, last = model(tokens)
    first, state = model(tokens[:, :7])
    second, after = model(tokens[:, 7:], state)
    assert_close(torch.cat([first, second], 1), whole, 1e-6)
    assert state_bytes(after) == state_bytes(last)


def test_the_short_convolution_is_a_gated_filter(seeded):
    torch.manual_seed(0)
    layer, x = ShortConvConfig(3).build(4).double(), seeded.normal(2, 9, 4)
    padded = torch.nn.functional.pad(x.mT, (2, 0))
    seen = torch.nn.functional.conv1d(padded, layer.conv1d.weight, layer.conv1d.bias, groups=4).mT
    assert_close(layer(x)[0], layer.out_proj(layer.in_proj(x) * seen))
    assert layer(x)[1].shape == (2, 4, 2)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"mixer: expected one of attention, .*, got 'gru'"):
        model_of("gru", 8, 8)
    with pytest.raises(ValueError, match=r"s4d: .*window"):
        model_of("s4d", 8, 8, window=3)
    with pytest.raises(ValueError, match="positions: expected one of rotary, none, got 'alibi'"):
        model_of("attention", 8, 8, positions="alibi")
    with pytest.raises(ValueError, match=r"experiment: expected one of mqar, .*, got 'chess'"):
        experiment_of("chess")
    with pytest.raises(ValueError, match="size: expected one of full, small, tiny, got 'huge'"):
        experiment_of("mqar", "huge")
    with pytest.raises(ValueError, match="course: expected one of 16, got '64'"):
        TINY.case("64", "attention", 8)


def test_only_what_is_asked_is_answered(seeded):
    targets = torch.full((3, 9), UNSCORED)
    targets[0, [2, 5]], targets[1, 8] = torch.tensor([7, 1]), 4
    places, asked = scored(targets)
    assert places.shape == (3, 2)
    assert asked.tolist() == [[7, 1], [4, UNSCORED], [UNSCORED, UNSCORED]]
    assert places[0].tolist() == [2, 5]
    assert places[1, 0] == 8
    wide = scored(targets, 4)
    assert (wide[1] != UNSCORED).sum() == 3
    model = model_of("mamba", 11, 8).build().double()
    tokens = torch.randint(11, (3, 9), generator=torch.Generator().manual_seed(0))
    rows = torch.arange(3)[:, None]
    assert_close(answers(model, tokens, places), model(tokens)[0][rows, places])


def by_hand(run: Run) -> list[torch.Tensor]:
    """The run as a plain loop over whole outputs."""
    model = drawn(run.case, run.seed)
    lane = Lane(run.case, "cpu")
    config = lane._config(run.lr, run.seed)
    optimizer = make_optimizer(model, config)
    for k in range(config.steps):
        lane.run = run
        lane._fill(k // lanes.CHUNK)
        tokens = lane.chunk[0][k % lanes.CHUNK]
        targets = torch.full_like(tokens, UNSCORED)
        places, asked = (x[k % lanes.CHUNK] for x in lane.chunk[1:])
        for row in range(len(tokens)):
            for place, want in zip(places[row], asked[row], strict=True):
                if want != UNSCORED:
                    targets[row, place] = want
        set_lr(optimizer, config.scale(k))
        optimizer.zero_grad()
        loss(model(tokens)[0], targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("mixer", ["attention", "mamba2", "s4d"])
def test_a_lane_learns_what_a_plain_loop_learns(mixer, monkeypatch):
    monkeypatch.setattr(lanes, "CHUNK", 3)
    run = Run(case_of(mixer, steps=7), 1e-2, 3)
    for p, q in zip(trained(Lane(run.case, "cpu"), run), by_hand(run), strict=True):
        assert_close(p, q, 1e-4)


def test_a_lane_forgets_the_run_before():
    """Another seed and rate on the same lane: bit by bit as on a new one."""
    case = case_of("mamba", steps=5)
    lane = Lane(case, "cpu")
    first = trained(lane, Run(case, 1e-2, 0))
    second = trained(lane, Run(case, 3e-3, 1))
    for run, there in ((Run(case, 3e-3, 1), second), (Run(case, 1e-2, 0), first)):
        for p, q in zip(trained(Lane(case, "cpu"), run), there, strict=True):
            assert torch.equal(p, q)


def test_a_lane_says_how_it_is_doing(monkeypatch):
    monkeypatch.setattr(lanes, "CHUNK", 3)
    case = case_of(steps=7)
    lane = Lane(case, "cpu")
    lane.begin(Run(case, 1e-2, 0))
    while lane.done < 7:
        lane.advance()
    looks = [lane.look() for _ in range(3)]
    assert [look.steps for look in looks] == [3, 3, 1]
    assert lane.reached is None
    assert all(0 <= look.accuracy <= 1 and 2 < look.loss < 5 for look in looks)


def test_a_test_counts_answers_sequences_and_bytes(monkeypatch):
    case = case_of()
    lane, setting = Lane(case, "cpu"), case.course.tested[0]
    lane.begin(Run(case, 1e-2, 0))
    whole = lane.test(setting, 5)
    monkeypatch.setattr(lanes, "AT_ONCE", 3 * 16)
    assert lane.test(setting, 5) == whole
    tokens, targets = TASKS["mqar"].draw(batch=8, seed=5, **setting)
    with torch.no_grad():
        guess, state = lane.model(tokens)
    right = (guess.argmax(-1) == targets)[targets != UNSCORED].view(8, -1)
    assert whole.accuracy == pytest.approx(right.double().mean().item())
    assert whole.exact == pytest.approx(right.all(1).double().mean().item())
    assert (whole.length, whole.sequences, whole.answers) == (16, 8, 8 * 4)
    assert whole.state_bytes == state_bytes(state) // 8


def swept(shares: dict[tuple[float, int], float], lrs: tuple[float, ...], seeds: int) -> list:
    case = case_of()
    search = pool.Search(replace(case, course=replace(case.course, lrs=lrs, seeds=seeds)))
    asked = []
    while runs := search.missing():
        asked.append([(run.lr, run.seed) for run in runs])
        search.note(runs[0], [{"accuracy": shares[runs[0].lr, runs[0].seed]}])
    return asked


def test_what_fails_has_failed_at_every_rate_and_all_have_their_seeds():
    shares = {(lr, seed): lr for lr in (0.1, 0.3, 0.2) for seed in range(3)}
    asked = swept(shares, (0.1, 0.3, 0.2), 3)
    assert [runs[0] for runs in asked] == [(0.1, 0), (0.3, 0), (0.2, 0), (0.3, 1), (0.3, 2)]
    assert asked[3] == [(0.3, 1), (0.3, 2)]
    asked = swept(shares | {(0.1, 0): 0.995}, (0.1, 0.3, 0.2), 2)
    assert asked == [[(0.1, 0)], [(0.1, 1)], [(0.3, 0)], [(0.2, 0)]]  # one seed did not solve it
    asked = swept({(0.1, seed): 0.995 for seed in range(3)}, (0.1, 0.3), 3)
    assert asked == [[(0.1, 0)], [(0.1, 1), (0.1, 2)], [(0.1, 2)]]


def cases_with(lrs: tuple[float, ...], count: int = 3, steps: int = 4) -> list[Case]:
    cases = list(TINY.cases())[:count]
    return [replace(c, course=replace(c.course, lrs=lrs, steps=steps)) for c in cases]


def test_runs_side_by_side_are_those_one_after_the_other():
    def rows(together):
        ledger = Ledger(None, "")
        lab.run_cases(cases_with((1e-2, 1e-3), 2), ledger, "cpu", together)
        return sorted(
            json.dumps({k: v for k, v in row.items() if k != "seconds"}) for row in ledger.rows
        )

    assert rows(1) == rows(3)


def test_what_is_on_file_is_not_trained_again(tmp_path, monkeypatch):
    cases, path = cases_with((1e-2, 1e-3)), tmp_path / "rows.jsonl"
    rows = lab.run_cases(cases, lab.ledger_for(path, "cpu"), "cpu")
    monkeypatch.setattr(pool, "Lane", None)
    again = lab.run_cases(cases, lab.ledger_for(path, "cpu"), "cpu")
    assert sorted(map(json.dumps, rows)) == sorted(map(json.dumps, again))


def test_when_time_is_up_what_was_begun_ends(monkeypatch):
    ledger, calls = Ledger(None, ""), []
    monkeypatch.setattr(ledger, "check_time", lambda: calls.append(0) or _raise(len(calls) > 2))
    with pytest.raises(OutOfTime):
        lab.run_cases(cases_with((1e-2,)), ledger, "cpu", 2)
    assert len({(row["mixer"], row["variant"], row["seed"]) for row in ledger.rows}) == 2


def _raise(late: bool) -> None:
    if late:
        raise OutOfTime


def test_a_run_that_diverges_ends_with_that_word():
    ledger = Ledger(None, "")
    with torch.autograd.set_grad_enabled(True):
        rows = lab.run_cases(cases_with((1e30,), 1, steps=60), ledger, "cpu")
    assert {row["status"] for row in rows} == {"diverged"}
    assert {(row["test"], row["loss"], row["steps"]) for row in rows} == {(0, None, 50)}
    assert best(rows)[0]["diverged"] == 2


def test_a_run_ends_when_it_solves_its_task():
    case = case_of(steps=10_000)
    lane = Lane(replace(case, course=replace(case.course, solved=0.0)), "cpu")
    lane.begin(Run(lane.case, 1e-2, 0))
    last = pool.turn(lane)
    assert isinstance(last, Stretch)
    assert lane.done == last.steps == lanes.CHUNK


def test_a_lane_knows_when_it_was_good(monkeypatch):
    monkeypatch.setattr(lanes, "GOOD", 0.0)
    case = case_of(steps=60)
    lane = Lane(case, "cpu")
    for seed in (0, 1):
        lane.begin(Run(case, 1e-2, seed))
        assert lane.reached is None
        pool.turn(lane)
        assert lane.reached == lanes.CHUNK


def test_throughput_trains_all_of_them_in_each_way(monkeypatch):
    monkeypatch.setattr("ssmlib.bench.recall.lane.CHUNK", 2)
    monkeypatch.setattr("ssmlib.bench.recall.speed.CHUNK", 2)
    rows = list(throughput([case_of(), case_of("mamba")], "cpu", 2))
    assert [row["way"] for row in rows] == ["eager", "together"]
    assert rows[0]["speedup"] == 1
    for row in rows:
        assert row["models"] == 2
        assert row["model_steps_per_second"] * row["seconds"] == pytest.approx(2 * 2 * 2)


def row(lr, seed, share, test=0, status="ok"):
    case = case_of()
    labels = Run(case, lr, seed).labels
    found = {"test": test, "tested": told_of(case.course.tested[test]), "length": 16}
    found |= {"accuracy": share, "exact": 0.0, "chance": 0.1, "state_bytes": 9, "parameters": 5}
    return labels | found | {"steps": 4, "steps_to_90": 3, "seconds": 1.0, "status": status}


def test_the_best_of_a_case_has_the_mean_and_interval_of_its_seeds():
    rows = [row(1e-3, 0, 0.5), row(1e-2, 0, 0.6), row(1e-2, 1, 0.7), row(1e-2, 2, 0.8)]
    rows += [row(1e-2, seed, 0.9, test=1) for seed in range(3)]
    first, second = best(rows[::-1])
    assert (first["lr"], first["lrs"], first["seeds"]) == (1e-2, 2, 3)
    assert first["accuracy"] == pytest.approx(0.7)
    assert (first["low"], first["high"]) == pytest.approx((0.7 - 0.2484, 0.7 + 0.2484), abs=1e-3)
    assert first["worst"] == 0.6
    assert second["low"] == second["high"] == pytest.approx(0.9)
    assert interval([0.4]) == (None, None)
    assert interval([0.0, 1.0]) == (0.0, 1.0)
    with pytest.raises(ValueError, match="shares: expected 1 to 5 of them, got 6"):
        interval([0.1] * 6)


def test_cases_have_a_line_each():
    rows = [row(1e-2, seed, 0.8 + 0.1 * seed) for seed in range(2)] + [row(1e-2, 0, 0.5, test=1)]
    cases = by_case(rows, "mqar", "accuracy")
    assert cases == {("16", "attention", "", "8"): pytest.approx([0.85, 0.5])}
    assert lines_of(cases).endswith("85.0%  50.0%")


def test_students_t_is_what_scipy_says():
    stats = pytest.importorskip("scipy.stats")
    from ssmlib.bench.recall.results import STUDENT

    for k, value in STUDENT.items():
        assert stats.t.ppf(0.975, k - 1) == pytest.approx(value, abs=1e-3)


def test_claims_have_their_verdicts():
    def made(mixer, variant, share, **more):
        names = {"experiment": "mqar", "mixer": mixer, "variant": variant, "test": 0}
        names |= {"course": "64", "length": 64, "d_model": 64, "state_bytes": 9}
        return names | {"accuracy": share, "exact": share, "budget": 900} | more

    none = verdicts([])
    assert {found.met for found in none} == {None}
    rows = [
        made("attention", "", 0.995),
        made("mamba2", "n=16", 0.6, state_bytes=1),
        made("mamba2", "n=256", 0.93, state_bytes=3),
        made("mamba2", "n=64", 0.95, experiment="pareto", state_bytes=2),
        *(made("h3", "", share, d_model=d) for share, d in ((0.2, 32), (0.5, 64), (0.4, 128))),
        made("h3", "", 0.1, d_model=32, length=128, course="128"),
        made("mamba", "n=16", 0.1, experiment="copying", steps_to_90=None),
        made("attention", "", 1.0, experiment="copying", steps_to_90=80),
    ]
    found = {v.claim: (v.ours, v.met) for v in verdicts(rows) if v.met is not None}
    assert found == {
        "attention answers .99 in every cell of mqar": (0.995, True),
        "S4D and H3 rise with width": (pytest.approx(2 / 3), False),
        "and fall with length": (1.0, True),
        "Mamba-2: recall rises with bytes of state, Spearman > .9": (pytest.approx(0.5), False),
        "Mamba-2 answers .9 with n = 256 where n = 16 has .65": (0.93, True),
        "copying takes Mamba ten times attention's samples": (11.25, True),
    }
    assert spearman([1, 2, 3, 4], [2, 2, 5, 9]) == pytest.approx(0.9486833)


def test_the_record_of_the_small_size_has_all_of_mqar():
    rows = [r for r in store.load_record("recall_small").rows if r["experiment"] == "mqar"]
    cases = list(experiment_of("mqar", "small").cases())
    assert pool.complete(cases, ledger_of(rows))
    found = {v.claim: v.met for v in verdicts(best(rows)) if v.met is not None}
    assert found["attention answers .99 in every cell of mqar"]
    assert found["Mamba-2 answers .9 with n = 256 where n = 16 has .65"]


def ledger_of(rows: list) -> Ledger:
    ledger = Ledger(None, "")
    ledger.rows = rows
    return ledger


def test_what_is_published_has_a_reference():
    references = (Path(__file__).parent.parent / "book/references.bib").read_text()
    for key in (told.ZOOLOGY, told.MAMBA2, told.HAX, told.MAMBA3):
        assert f"{{{key}," in references


def test_what_is_published_stands_beside_its_setting():
    near = {"experiment": "mqar", "mixer": "mamba2", "variant": "n=256", "d_model": 32}
    asked = "length=256 pairs=64 vocab=512 filler=zero"
    assert published(near | {"length": 256, "tested": asked}) == (0.95, "dao2024transformers")
    asked = "length=128 pairs=8 vocab=512 filler=zero"
    near |= {"mixer": "h3", "variant": "", "d_model": 64}
    assert published(near | {"length": 128, "tested": asked}) == (0.25, "arora2023zoology")
    assert published(near | {"d_model": 32, "length": 128, "tested": asked}) is None
    key = {"experiment": "passkey", "mixer": "hybrid", "variant": "n=64 times=2", "d_model": 64}
    key |= {"trained": "length=256"}
    assert published(key | {"length": 512}) == (0.032, "lahoti2026mamba3")
    assert published(key | {"length": 1024}) is None
    assert published({"experiment": "copying"}) is None
    names = [(mixer, " ".join(f"{k}={v}" for k, v in o.items())) for mixer, o in FAMILIES]
    assert {*PAIRS_OF_4, *PAIRS_OF_16} <= set(names)


def test_the_driver_trains_a_cell_and_goes_on(tmp_path, capsys):
    cell = ["mqar", "--size", "tiny", "--out", str(tmp_path), "--device", "cpu"]
    cell += ["--mixer", "mamba2", "--n", "4", "--lr", "1e-2", "--seeds", "1"]
    assert main([*cell, "--seconds", "0"]) == 3
    assert "goes on" in capsys.readouterr().out
    assert not any(tmp_path.glob("*.json"))
    assert main(cell) == 0
    assert store.load_record("recall_tiny", tmp_path).provenance["partial"]
    first = store.load_record("recall_tiny", tmp_path).rows
    assert len(first) == 3
    assert first[0].items() >= {"mixer": "mamba2", "variant": "n=4", "lr": 1e-2, "seed": 0}.items()
    cell[cell.index("--seeds") + 1] = "2"
    assert main(cell) == 0
    rows = store.load_record("recall_tiny", tmp_path).rows
    assert rows[:3] == first
    assert [row["seed"] for row in rows] == [0, 0, 0, 1, 1, 1]
    assert "mamba2" in capsys.readouterr().out


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_cell_is_trained_again_by_its_command(name):
    cases = list(experiment_of(name).cases())
    for case in cases[:: max(1, len(cases) // 9)]:
        command = command_of(case.labels).removeprefix("python -m ssmlib.recall ")
        args = driver._parser().parse_args(command.split())
        assert driver.chosen(experiment_of(name), args) == [case]


def test_the_driver_writes_the_record_when_all_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "EXPERIMENTS", ["copying"])
    command = ["--size", "tiny", "--out", str(tmp_path), "--device", "cpu"]
    assert main(["copying", *command]) == 0
    assert not (tmp_path / "recall_tiny.json").exists()
    assert main(["all", *command]) == 0
    rows = store.load_record("recall_tiny", tmp_path).rows
    assert {row["experiment"] for row in rows} == {"copying", "throughput"}
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".jsonl"}
    assert not (tmp_path / "recall_tiny.partial.json").exists()


def test_the_driver_refuses_what_there_is_not(tmp_path, capsys):
    out = ["--size", "tiny", "--out", str(tmp_path), "--device", "cpu"]
    for wrong in (["--course", "5"], ["--mixer", "s4d", "--window", "3"], ["--n", "4", "--d", "8"]):
        with pytest.raises(SystemExit):
            main(["mqar", *wrong, *out])
    told = capsys.readouterr().err
    for option, value, wanted in (
        ("--n", "0", "state_size: expected a whole number >= 1, got 0"),
        ("--d", "0", "d_model: expected a whole number >= 1, got 0"),
        ("--lr", "nan", "lr: expected a finite number >= 0, got nan"),
        ("--seeds", "0", "seeds: expected a whole number >= 1, got 0"),
        ("--steps", "0", "steps: expected a whole number >= 1, got 0"),
        ("--batch", "0", "batch: expected a whole number >= 1, got 0"),
    ):
        with pytest.raises(SystemExit):
            main(["mqar", "--mixer", "mamba2", option, value, *out])
        assert wanted in capsys.readouterr().err
    (tmp_path / "taken").write_text("no folder")
    with pytest.raises(SystemExit):
        main(["mqar", "--size", "tiny", "--out", str(tmp_path / "taken"), "--device", "cpu"])
    assert "taken" in capsys.readouterr().err
    (tmp_path / "recall_tiny.jsonl").write_text('{"where": "elsewhere"}\n')
    with pytest.raises(SystemExit):
        main(["mqar", *out])
    assert "expected rows from" in capsys.readouterr().err
    assert "course: expected one of 16, got '5'" in told
    assert "s4d:" in told
    assert "expected --mixer beside --n, --d, got none" in told


@pytest.mark.parametrize("name", [n for n in EXPERIMENTS if n not in ("mqar", "pareto")])
def test_every_experiment_runs(name):
    cases = [
        replace(case, course=replace(case.course, seeds=1))
        for case in experiment_of(name, "tiny").cases()
    ]
    rows = lab.run_cases(cases, Ledger(None, ""), "cpu")
    assert {row["status"] for row in rows} == {"ok"}
    assert len(rows) == sum(len(case.course.tested) for case in cases)
    assert len(lab.summary(rows).splitlines()) >= 1 + len(rows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize(("mixer", "options"), [*FAMILIES, ("beside", {"keys": 4})])
def test_a_graph_learns_what_python_learns(mixer, options):
    """Of a choice of keys, few steps: a rounding that falls otherwise chooses another key."""
    case = case_of(mixer, steps=8 if mixer == "beside" else 60, **options)
    made = [trained(Lane(case, "cuda", captured), Run(case, 1e-3, 1)) for captured in (True, False)]
    for p, q in zip(*made, strict=True):
        assert_close(p, q, 2e-2)
