"""ssmlib.bench.goals: what a row of a speed record was meant to reach, and whether it did."""

import pytest

from ssmlib.bench.goals import Verdict, markdown, shape_of, verdicts
from ssmlib.bench.store import load_record


def row(experiment, which, seconds, provider="ssmlib", shape=(8, 4096, 2048), floor=1e-3):
    b, d, n = shape
    names = {"experiment": experiment, "provider": provider, "pass": which, "b": b, "d": d, "n": n}
    return names | {"seconds": seconds, "floor_seconds": floor, "bound": "bytes", "status": "ok"}


def test_a_goal_in_times_is_measured_by_the_fastest_peer():
    other = (8, 2048, 4096)
    made = verdicts(
        [
            row("selective scan", "forward", 2e-3),
            row("selective scan", "forward", 3.9e-3, "mamba-ssm 2"),
            row("selective scan", "forward", 9e-3, "another"),
            row("selective scan", "forward", 2e-3, shape=other),
            row("selective scan", "forward", 3e-3, "mamba-ssm 2", shape=other),
            row("selective scan", "forward+backward", 2e-3),
        ]
    )
    assert [v.aim.least for v in made] == [2.0, 1.5, 3.0]
    assert [v.times for v in made] == [pytest.approx(1.95), pytest.approx(1.5), None]
    assert [v.met for v in made] == [False, True, None]
    assert "1 of 2 goals met." in markdown(made)
    assert "**missed**" in markdown(made)
    assert "Peers: another, mamba-ssm 2." in markdown(made)
    assert "| 2 | 1 bytes | 50% | 3.9 | 1.95 | – | 2× **missed** |" in markdown(made)


@pytest.mark.parametrize(
    ("experiment", "which", "goal"),
    [("linear scan", "forward", 0.8), ("causal conv1d", "backward", 0.7), ("decode", "step", 0.8)],
)
def test_a_goal_in_shares_is_measured_by_the_floor(experiment, which, goal):
    made = verdicts(
        [row(experiment, which, 1e-3 / share, shape=(32, 64, 1)) for share in (0.9, 0.5)]
    )
    assert [v.aim.least for v in made] == [goal, goal]
    assert [v.met for v in made] == [True, False]
    assert f"| {goal:.0%} met |" in markdown(made)


def test_a_share_just_below_its_goal_does_not_look_like_it():
    made = verdicts(
        [row("decode", "step", 1e-3 / share, shape=(32, 64, 1)) for share in (0.797, 0.803)]
    )
    assert [v.met for v in made] == [False, True]
    missed, met = markdown(made).splitlines()[2:4]
    assert "| 79.7% |" in missed
    assert "| 80% |" in met


def test_rows_without_a_goal_or_a_time_decide_nothing():
    alone = row("decode", "step", 1e-3, shape=(1, 4096, 1))
    failed = row("linear scan", "forward", None)
    ceilings = {"experiment": "ceilings", "copy_bytes_per_s": 3e12}
    made = verdicts([ceilings, alone, failed])
    assert [v.met for v in made] == [None]
    assert shape_of(alone) == "b 1, d 4,096, t 1"
    assert "0 of 0 goals met." in markdown(made)


@pytest.mark.parametrize(
    ("experiment", "which", "goal"),
    [
        ("cpu scan", "forward", 2),
        ("cpu scan", "forward+backward", 3),
        ("cpu model", "training step", 100),
        ("cpu mamba-2", "training step", 1.5),
    ],
)
def test_goals_on_a_cpu_are_about_what_else_runs_there(experiment, which, goal):
    ours, loop = row(experiment, which, 1e-3), row(experiment, which, 1e-3 * goal, "python loop")
    assert [(v.aim.least, v.met) for v in verdicts([ours, loop])] == [(goal, True)]


def test_peak_memory_is_compared_where_both_are_known():
    ours = row("selective scan", "forward", 1e-3) | {"peak_bytes": 100}
    lean, fat = (
        row("selective scan", "forward", 1e-3, name) | {"peak_bytes": held}
        for name, held in (("lean", 99), ("fat", 101))
    )
    assert [v.memory for v in verdicts([ours, fat])] == [pytest.approx(100 / 101)]
    assert [v.memory for v in verdicts([ours, fat, lean])] == [pytest.approx(100 / 99)]
    assert [v.memory for v in verdicts([ours])] == [None]
    assert "Peak memory above the peer's in 1 of 1 rows." in markdown(verdicts([ours, lean]))


def test_a_row_without_a_floor_is_judged_by_its_peers():
    """As the rows of a training step on a CPU are, which count nothing."""
    ours, theirs = (
        {key: value for key, value in row("cpu model", "training step", seconds, who).items()
         if key not in ("floor_seconds", "bound")}
        for seconds, who in ((0.25, "ssmlib"), (52.0, "transformers 5"))
    )  # fmt: skip
    (verdict,) = verdicts([ours, theirs])
    assert (verdict.met, verdict.share, verdict.times) == (True, None, 208)
    assert "| 250 | – | – | 5.2e+04 | 208.00 | – | 100× met |" in markdown([verdict])


def heads(b, n, h, g, state_size, seconds, provider="ssmlib", which="forward", peak=None):
    names = {"experiment": "ssd", "provider": provider, "pass": which, "b": b, "n": n, "h": h}
    sizes = {"g": g, "state_size": state_size, "d": h * 64, "peak_bytes": peak}
    return names | sizes | {"seconds": seconds, "status": "ok"}


def test_the_peer_of_ssd_is_the_better_of_its_two_chunk_sizes():
    shape = (4, 8192, 80, 1, 128)
    (verdict,) = verdicts(
        [
            heads(*shape, 1.0),
            heads(*shape, 2.4, "mamba-ssm 2, chunk 256"),
            heads(*shape, 2.2, "mamba-ssm 2, chunk 128"),
            heads(*shape, 9.0, "mamba-ssm 2, chunk 128", "forward+backward"),
            heads(4, 8192, 80, 8, 128, 0.1, "mamba-ssm 2, chunk 128"),
        ]
    )
    assert (verdict.aim.least, verdict.times, verdict.met) == (2.3, 2.2, False)
    assert shape_of(verdict.row) == "b 4, d 5,120 = 80 × 64, t 8,192"


def test_the_first_shape_of_ssd_has_half_the_memory_to_live_on():
    shape = (8, 4096, 64, 1, 128)
    peer = heads(*shape, 3.0, "mamba-ssm 2", peak=200)
    for peak, met in ((None, None), (101, False), (100, True)):
        (verdict,) = verdicts([heads(*shape, 1.0, peak=peak), peer])
        assert verdict.met is met
    assert "| 3×, memory ≤ 0.5 met |" in markdown([verdict])


def test_goals_of_ssd_are_those_of_its_passes():
    fast, few = (8, 2048, 24, 1, 128), (1, 1024, 128, 1, 128)
    rows = [heads(*s, 1.0, which=w) for s in (fast, few) for w in ("forward", "forward+backward")]
    assert [v.aim.least for v in verdicts(rows)] == [4.5, 4.0, 3.0, None]
    block = heads(8, 4096, 64, 1, 128, 1.0, which="forward+backward")
    step = heads(64, 1, 80, 1, 128, 1.0, which="step")
    others = [block | {"experiment": "mamba-2 block"}, step | {"experiment": "ssd decode"}]
    assert [v.aim[:2] for v in verdicts(others)] == [("times", 1.5), ("share", 0.9)]
    assert [v.met for v in verdicts(others)] == [None, None]


def test_the_record_of_the_scan_holds_what_chapter_06_says():
    rows = load_record("scan").rows
    made = verdicts(rows)

    def of(experiment: str, which: str) -> list[Verdict]:
        return [v for v in made if (v.row["experiment"], v.row["pass"]) == (experiment, which)]

    there, back = of("selective scan", "forward"), of("selective scan", "forward+backward")
    assert all(1.5 < v.times < 2.3 and 0.33 < v.share < 0.69 and v.met for v in there)
    assert all(1.49 < v.times < 1.85 and 0.16 < v.share < 0.23 and not v.met for v in back)
    for way in ("forward", "backward"):
        ((linear,), (conv,)) = of("linear scan", way), of("causal conv1d", way)
        assert linear.met
        assert not conv.met
        assert conv.times < 1
        assert linear.row["bytes"] > conv.row["bytes"]
    tokens = of("decode", "step")
    assert all(v.times < 1 for v in tokens)
    assert [v.met for v in tokens] == [None, False, False, False]
    copies = [row for row in rows if row["experiment"] == "copied state"]
    assert [row["b"] for row in copies] == [v.row["b"] for v in tokens] == [1, 32, 64, 256]
    reached = [row["floor_seconds"] / row["seconds"] for row in copies]
    assert [share > 0.8 for share in reached] == [False, False, False, True]
    pairs = zip(tokens, copies, strict=True)
    assert all(1.18 < v.row["seconds"] / copy["seconds"] < 1.27 for v, copy in pairs)


def test_the_record_of_the_scan_holds_what_the_log_says():
    made = verdicts(load_record("scan").rows)
    of = {(v.row["experiment"], v.row["pass"], v.row["b"], v.row["d"]): v for v in made}
    scans = [v for v in made if v.row["experiment"] == "selective scan"]
    there, back = scans[::2], scans[1::2]
    assert [f"{v.times:.2f}" for v in back] == ["1.81", "1.52", "1.50", "1.72", "1.66"]
    assert [f"{v.share:.0%}" for v in back] == ["23%", "19%", "17%", "17%", "22%"]
    assert {v.row["bound"] for v in back} == {"lanes"}
    longer = [b.row["seconds"] / f.row["seconds"] for f, b in zip(there, back, strict=True)]
    assert all(4.3 < factor < 6.8 for factor in longer)
    assert [f"{v.memory:.2f}" for v in back] == ["0.99", "1.00", "0.98", "0.97", "1.06"]
    assert all(v.memory < 0.53 for v in there)
    assert (f"{there[0].share:.0%}", f"{there[0].times:.1f}") == ("61%", "2.2")
    narrow = there[1].row["seconds"] / there[0].row["seconds"]
    assert 1.1 < narrow < 1.12  # a ninth more
    moved = {
        (name, way): f"{of[name, way, 8, 4096].share:.0%}"
        for name in ("linear scan", "causal conv1d")
        for way in ("forward", "backward")
    }
    assert list(moved.values()) == ["82%", "78%", "74%", "63%"]
    of_h100 = load_record("ladder").rows[0]["copy_bytes_per_s"]
    assert 1.39 < load_record("scan").rows[0]["copy_bytes_per_s"] / of_h100 < 1.42
    peers = [v.peers[0] for v in made if v.row["experiment"] == "causal conv1d"]
    assert [f"{p['floor_seconds'] / p['seconds']:.0%}" for p in peers] == ["91%", "84%"]


def test_the_record_of_the_scan_holds_what_the_log_says_of_a_token():
    rows = load_record("scan").rows
    copies = {row["b"]: row for row in rows if row["experiment"] == "copied state"}
    tokens = {v.row["b"]: v for v in verdicts(rows) if v.row["experiment"] == "decode"}
    told = {
        b: tuple(
            f"{share:.0%}"
            for share in (
                v.share,
                copies[b]["floor_seconds"] / copies[b]["seconds"],
                copies[b]["seconds"] / v.row["seconds"],
                v.times,
            )
        )
        for b, v in tokens.items()
        if b > 1
    }
    assert told == {
        32: ("35%", "41%", "81%", "91%"),
        64: ("51%", "57%", "84%", "94%"),
        256: ("75%", "85%", "84%", "99%"),
    }


def test_the_record_of_the_ladder_holds_what_chapter_06_says():
    rows = [row for row in load_record("ladder").rows if row["experiment"] == "crossover"]
    times = {(row["form"], row["pass"], row["n"]): row["seconds"] for row in rows}
    ahead = {
        which: [
            n
            for form, way, n in times
            if (form, way) == ("attention", which) and times["scan", way, n] < times[form, way, n]
        ]
        for which in ("forward", "forward+backward")
    }
    assert ahead == {"forward": [4096], "forward+backward": []}
    assert max(n for form, _, n in times if form == "attention") == 4096
