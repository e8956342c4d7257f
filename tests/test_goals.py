"""ssmlib.bench.goals: what a row of the record `scan` was meant to reach, and whether it did."""

import pytest

from ssmlib.bench.goals import markdown, shape_of, verdicts


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
    assert [v.goal for v in made] == [2.0, 1.5, 3.0]
    assert [v.times for v in made] == [pytest.approx(1.95), pytest.approx(1.5), None]
    assert [v.met for v in made] == [False, True, None]
    assert "1 of 2 goals met." in markdown(made)
    assert "**missed**" in markdown(made)
    assert "Peers: another, mamba-ssm 2." in markdown(made)
    assert "| 2 | 1 bytes | 50% | 3.9 | 1.95 | 2× | **missed** |" in markdown(made)


@pytest.mark.parametrize(
    ("experiment", "which", "goal"),
    [("linear scan", "forward", 0.8), ("causal conv1d", "backward", 0.7), ("decode", "step", 0.8)],
)
def test_a_goal_in_shares_is_measured_by_the_floor(experiment, which, goal):
    made = verdicts(
        [row(experiment, which, 1e-3 / share, shape=(32, 64, 1)) for share in (0.9, 0.5)]
    )
    assert [v.goal for v in made] == [goal, goal]
    assert [v.met for v in made] == [True, False]
    assert f"| {goal:.0%} | met |" in markdown(made)


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
    [("cpu scan", "forward", 2), ("cpu scan", "forward+backward", 3), ("cpu step", "step", 100)],
)
def test_goals_on_a_cpu_are_about_what_else_runs_there(experiment, which, goal):
    ours, loop = row(experiment, which, 1e-3), row(experiment, which, 1e-3 * goal, "python loop")
    assert [(v.goal, v.met) for v in verdicts([ours, loop])] == [(goal, True)]


def test_peak_memory_is_compared_where_both_are_known():
    ours = row("selective scan", "forward", 1e-3) | {"peak_bytes": 100}
    lean, fat = (
        row("selective scan", "forward", 1e-3, name) | {"peak_bytes": held}
        for name, held in (("lean", 99), ("fat", 101))
    )
    assert [v.heavier for v in verdicts([ours, fat])] == [False]
    assert [v.heavier for v in verdicts([ours, fat, lean])] == [True]
    assert [v.heavier for v in verdicts([ours])] == [None]
    assert "Peak memory above the peer's in 1 of 1 rows." in markdown(verdicts([ours, lean]))
