"""The suite hybrid: a stream that asks what it says, patterns that are what they are called."""

import json
from dataclasses import replace

import pytest
import torch

from ssmlib.bench import hybrid, store
from ssmlib.bench.hybrid import here
from ssmlib.bench.hybrid.__main__ import main
from ssmlib.bench.hybrid.cases import SIZES, Size, cases_of, pattern_of
from ssmlib.bench.hybrid.fit import Cell, fit, sweep
from ssmlib.bench.hybrid.published import MAMBA2, MAMBA2_TRANSFORMER
from ssmlib.bench.hybrid.stream import Stream, markov, markov_loss
from ssmlib.bench.ledger import Ledger
from ssmlib.recall import mqar

STREAM = Stream(length=24, vocab=32, pairs=4, letters=5)


def test_kinds_take_turns_and_have_one_shape():
    for seed, kind in enumerate(STREAM.kinds):
        tokens, targets = STREAM.draw(3, seed)
        assert tokens.shape == targets.shape == (3, 24)
        assert torch.equal(tokens, STREAM.draw(3, seed)[0])
        assert tokens.max() < 32
        assert (targets != -100).any()
        assert (targets != -100).sum() == (STREAM.ask(kind, 3, seed)[1] != -100).sum()
    assert torch.equal(STREAM.draw(2, 1)[0], mqar(2, 24, 4, 32, 1, filler="zero", power=1.0)[0])
    few = {int((STREAM.draw(1, 1 + 3 * k)[1] != -100).sum()) for k in range(3)}
    assert few == {4, 2, 1}


def test_the_text_is_told_by_two_letters_and_no_fewer():
    letters, said = 3, markov(64, 400, 3, 0)
    p = torch.zeros(letters, letters, letters).double()
    for a, b, c in zip(said[:, :-2].T, said[:, 1:-1].T, said[:, 2:].T, strict=True):
        p.index_put_((a, b, c), torch.ones(64).double(), accumulate=True)
    joint = p / p.sum()
    conditional = joint / joint.sum(-1, keepdim=True)
    measured = -(joint * conditional.log()).sum().item()
    assert measured == pytest.approx(markov_loss(letters), abs=0.03)
    one = joint.sum(0)
    assert -(one * (one / one.sum(-1, keepdim=True)).log()).sum() > measured + 0.1
    tokens, targets = STREAM.ask("text", 2, 7)
    assert torch.equal(tokens[:, 2:], targets[:, 1:-1])
    assert (targets[:, 0] == -100).all()


@pytest.mark.parametrize(
    ("layers", "attention", "place", "pattern"),
    [
        (8, 0, "spread", "MMMMMMMM"),
        (8, 1, "spread", "MMMM*MMM"),
        (8, 2, "spread", "MM*MMM*M"),
        (8, 4, "spread", "M*M*M*M*"),
        (8, 2, "first", "**MMMMMM"),
        (8, 1, "last", "MMMMMMM*"),
        (8, 4, "middle", "MM****MM"),
        (12, 4, "middle", "MMMM****MMMM"),
        (2, 2, "spread", "**"),
        (2, 1, "spread", "M*"),
    ],
)
def test_patterns(layers, attention, place, pattern):
    assert pattern_of(layers, attention, place) == pattern


def test_the_cases_of_experiment_13():
    cases = list(cases_of(SIZES["full"]))
    assert len(cases) == 14  # one in the middle is one that is spread
    assert {case.attention for case in cases} == {0, 1, 2, 4, 8}
    for case in cases:
        assert case.model.pattern.count("*") == case.attention
        assert len(case.model.pattern) == 8
    assert [case.model.pattern for case in cases_of(SIZES["small"])] == [
        "MM",
        "M*",
        "*M",
        "**",
        "**",
    ]
    sizes = [sum(p.numel() for p in case.model.build().parameters()) for case in cases]
    assert max(sizes) < 2.2 * min(sizes)  # attention weighs less than Mamba-2: it has no advantage


def test_a_cell_learns_and_is_asked():
    size = replace(SIZES["tiny"], steps=40, lrs=(1e-2,), batch=8)
    case = next(iter(cases_of(size)))
    rows = [fit([Cell(case, replace(size, steps=n), 1e-2, 0, "cpu")])[0][0] for n in (1, 40)]
    assert rows[1]["loss"] < rows[0]["loss"] - 0.1
    row = rows[1]
    assert row["loss"] == pytest.approx(
        (row["text_loss"] + row["recall_loss"] + row["copy_loss"]) / 3
    )
    assert 0 <= row["recall_accuracy"] <= 1
    assert row["status"] == "ok"


def tiny(cases: list, ledger: Ledger) -> list:
    return list(sweep(cases, SIZES["tiny"], ledger, "cpu", 1))


def test_the_other_seeds_take_the_rate_that_did_best(tmp_path):
    cases = list(cases_of(SIZES["tiny"]))[:2]
    rows = tiny(cases, Ledger(tmp_path / "rows.jsonl", "here"))
    assert len(rows) == 2 * (2 + 1)
    for case in cases:
        own = [row for row in rows if row["pattern"] == case.model.pattern]
        first = [row for row in own if row["seed"] == 0]
        assert {row["lr"] for row in first} == {1e-2, 1e-3}
        lr = min(first, key=lambda row: row["loss"])["lr"]
        assert {row["lr"] for row in own if row["seed"]} == {lr}
    assert tiny(cases, Ledger(tmp_path / "rows.jsonl", "here")) == rows  # nothing is trained twice


def row(attention: int, loss: float, seed: int = 0, lr: float = 1e-3, place: str = "spread"):
    return {
        "attention": attention, "place": place, "positions": "none", "loss": loss, "seed": seed,
        "lr": lr, "status": "ok", "text_loss": loss, "recall_accuracy": 0.5,
    }  # fmt: skip


def test_best_and_the_first_layers_share():
    rows = [row(0, 3.0), row(0, 2.0, lr=1e-2), row(0, 2.2, seed=1, lr=1e-2), row(1, 1.5)]
    rows += [row(1, 1.3, place="last"), row(4, 1.1), row(8, 1.6)]
    found = hybrid.best(rows)
    assert found[0]["loss"] == pytest.approx(2.1)
    assert (found[0]["lr"], found[0]["seeds"]) == (1e-2, 2)
    assert hybrid.share_of_the_first(found) == pytest.approx(0.8)
    assert "recall" in hybrid.summary(rows)
    with pytest.raises(ValueError, match="a gain from attention"):
        hybrid.share_of_the_first([row(0, 1.0), row(1, 2.0)])


def test_the_records_are_as_chapter_8_and_the_log_have_them():
    """1,000 updates and 3,000: what the first layer brings, and where; text, which needs none."""
    made = {}
    for name in ("hybrid", "hybrid_long"):
        rows = store.load_record(name).rows
        assert {row["status"] for row in rows} == {"ok"}
        kept = hybrid.best(rows)
        assert len(kept) == 14
        assert {r["seeds"] for r in kept} == {3}
        made[name] = {(r["attention"], r["place"], r["positions"]): r for r in kept}
        share = hybrid.share_of_the_first(kept)
        assert round(share, 2) == {"hybrid": 0.24, "hybrid_long": 1.0}[name]
    found = {key[:2]: r for key, r in made["hybrid_long"].items() if key[2] == "none"}
    recall, copied, loss, text = (
        {key: row[what] for key, row in found.items()}
        for what in ("recall_accuracy", "copy_accuracy", "loss", "text_loss")
    )
    none, one = (0, "spread"), (1, "spread")
    assert round(recall[none], 2) == 0.83
    assert round(copied[none], 2) == 0.24
    assert round(copied[1, "last"], 1) == 0.5
    assert min(recall[one], copied[one]) > 0.999
    assert min(loss.values()) > loss[one] - 0.002
    for key, value in loss.items():
        if key[1] == "first":
            assert value > loss[none]
            assert recall[key] < recall[none]
        elif key[0] in (2, 4):
            assert value < loss[one] + 0.03
    every = [r for key, r in made["hybrid_long"].items() if key[0] == 8]
    assert max(r["recall_accuracy"] for r in every) < 0.2
    few = [value for key, value in text.items() if key[0] < 8]
    assert text[none] - 0.001 < min(few) < max(few) < min(few) + 0.02
    assert min(r["text_loss"] for r in every) > max(few)


def test_seeds_of_the_records_are_as_chapter_8_and_the_log_have_them():
    def recalls(name, attention, lr):
        return sorted(
            row["recall_accuracy"]
            for row in store.load_record(name).rows
            if (row["attention"], row["place"], row["lr"]) == (attention, "spread", lr)
        )

    assert [round(x, 2) for x in recalls("hybrid_long", 0, 2e-3)] == [0.57, 0.93, 1.0]
    assert recalls("hybrid_long", 1, 7e-4)[0] > 0.999
    least, middle, most = recalls("hybrid", 1, 1e-3)
    assert least < middle < 0.15 < 0.99 < most
    assert max(recalls("hybrid", 0, 3e-3)) < 0.1


def test_published_numbers_say_that_the_first_layer_gains_most():
    gain = MAMBA2[0] - min(MAMBA2.values())
    assert (MAMBA2[0] - MAMBA2[1]) / gain > 0.6
    assert max(MAMBA2.values()) < MAMBA2_TRANSFORMER


def stop_after(path, lines):
    def check(ledger):
        if len(path.read_text().splitlines()) >= lines:
            raise hybrid.OutOfTime

    return check


def test_the_command_goes_on_where_it_was(tmp_path, capsys, monkeypatch):
    fewer = replace(SIZES["tiny"], seeds=1, lrs=(1e-2,))
    monkeypatch.setitem(SIZES, "tiny", fewer)
    command = ["--size", "tiny", "--device", "cpu", "--out", str(tmp_path)]
    assert main([*command, "--seconds", "0"]) == 3
    assert "continues" in capsys.readouterr().out
    assert not (tmp_path / "hybrid_tiny.partial.json").exists()
    monkeypatch.setattr(Ledger, "check_time", stop_after(tmp_path / "hybrid_tiny.jsonl", 3))
    assert main(command) == 3
    assert len(store.load_record("hybrid_tiny", tmp_path).rows) == 2
    monkeypatch.undo()
    monkeypatch.setitem(SIZES, "tiny", fewer)
    assert main(command) == 0
    assert not (tmp_path / "hybrid_tiny.partial.json").exists()
    made = json.loads((tmp_path / "hybrid_tiny.json").read_text())
    assert store.load_record(made["name"], tmp_path).rows == made["rows"]
    assert len(made["rows"]) == len(list(cases_of(fewer)))


def test_the_machine_at_hand_is_timed():
    rows = list(here.rows("cpu", prompts=[16], contexts=[32]))
    assert [row["experiment"] for row in rows] == ["decode", "prefill"] * 4
    assert {row["status"] for row in rows} == {"ok"}
    sizes = [row["parameters"] for row in rows]
    assert max(sizes) < 1.2 * min(sizes)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="kinds: expected some of text, recall, copy, got 'song'"):
        Stream(24, 32, 4, kinds=("song",))
    with pytest.raises(ValueError, match="vocab"):
        Stream(24, 20, 4)
    with pytest.raises(ValueError, match="attention"):
        pattern_of(3, 4, "first")
    with pytest.raises(ValueError, match="place: expected one of spread, first, middle, last"):
        pattern_of(3, 1, "top")
    with pytest.raises(
        ValueError, match="size: expected one of full, small, tiny, long, got 'huge'"
    ):
        hybrid.run_size("huge")
    assert isinstance(SIZES["full"], Size)
