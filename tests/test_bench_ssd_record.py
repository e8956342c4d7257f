"""The record `ssd`: what chapter 07 and the log say of it, to the digits that they give."""

from itertools import pairwise

import pytest

from ssmlib.bench.goals import verdicts
from ssmlib.bench.store import load_record

BOTH = "forward+backward"
OURS, PEER = {"provider": "ssmlib"}, {"provider": "mamba-ssm 2.3.2.post1, chunk 256"}
FIRST, NARROW, SHORT = {"b": 8, "n": 4096}, {"b": 8, "n": 2048}, {"b": 1, "n": 1024}


@pytest.fixture(scope="module")
def record():
    return load_record("ssd").rows


@pytest.fixture(scope="module")
def ms(record):
    """Milliseconds of the one row with these labels."""

    def of(experiment, which="forward", **labels):
        wanted = {"experiment": experiment, "pass": which, "status": "ok"} | labels
        (row,) = (row for row in record if wanted.items() <= row.items())
        return 1e3 * row["seconds"]

    return of


def test_the_log_tells_every_goal_that_was_missed(record):
    made = verdicts(record)
    missed = [v for v in made if v.met is False]
    reached = [
        (v.row["experiment"], v.row["pass"], v.row["b"], v.row["n"],
         round(v.times, 2) if v.aim.kind == "times" else round(v.share, 3))
        for v in missed
    ]  # fmt: skip
    assert reached == [
        ("ssd", "forward", 8, 4096, 2.75), ("ssd", BOTH, 8, 4096, 2.77),
        ("ssd", BOTH, 4, 8192, 2.45),
        ("ssd", "forward", 8, 2048, 2.17), ("ssd", BOTH, 8, 2048, 2.14),
        ("ssd decode", "step", 64, 1, 0.898), ("mamba-2 block", BOTH, 8, 4096, 1.28),
    ]  # fmt: skip
    assert sum(v.met for v in made if v.met is not None) == 8
    forward, both = missed[:2]
    assert (round(forward.memory, 2), round(both.memory, 2)) == (0.64, 1.01)
    assert round(both.row["peak_bytes"] / both.peers[1]["peak_bytes"], 2) == 0.61
    graphs = [v for v in made if v.row["experiment"] == "ssd graph"]
    assert [round(v.times, 2) for v in graphs[1:4]] == [2.76, 2.06, 2.41]
    blocks = [v for v in made if v.row["experiment"] == "mamba-2 block"]
    assert [round(v.times, 2) for v in blocks] == [1.24, 1.28]
    assert round(blocks[1].memory, 2) == 0.66
    steps = [v for v in made if v.row["experiment"] == "ssd decode"]
    assert [round(v.share, 2) for v in steps[1:]] == [0.90, 0.92, 0.94]
    late = [v.row["seconds"] - v.row["floor_seconds"] for v in steps]
    assert [round(1e6 * seconds) for seconds in late] == [6, 9, 11, 17]


@pytest.mark.parametrize(
    ("shape", "launched", "replayed"),
    [(FIRST, 1.74, 1.73), (NARROW, 1.59, 0.43), (SHORT, 1.73, 0.20)],
)
def test_the_log_tells_what_the_host_takes(ms, shape, launched, replayed):
    made = [ms(kind, BOTH, **OURS, **shape) for kind in ("ssd", "ssd graph")]
    assert [round(took, 2) for took in made] == [launched, replayed]


def test_the_log_tells_whose_host_is_slow_or_not_steady(ms):
    peer = [ms(kind, **PEER, **NARROW) for kind in ("ssd", "ssd graph")]
    assert [round(took, 2) for took in peer] == [0.60, 0.23]
    again = [ms("state size", BOTH, form="ssd", state_size=128)]
    again.append(ms("crossover", BOTH, form="ssd", **FIRST))
    assert [round(took, 2) for took in again] == [1.74, 2.36]


def test_the_log_tells_what_a_block_is_made_of(record, ms):
    d, e, n, h = 2048, 4096, 128, 64
    weights = d * (2 * e + 2 * n + h) + e * d
    products = 1e3 * 6 * 8 * 4096 * weights / record[0]["matmul_flops_per_s"]
    scan, whole = ms("ssd", BOTH, **OURS, **FIRST), ms("mamba-2 block", BOTH, **OURS)
    assert [round(took, 1) for took in (whole, products, scan)] == [10.7, 7.0, 1.7]
    assert round(whole - products - scan, 1) == 1.9
    assert round(ms("mamba block", BOTH) / whole, 2) == 1.34  # the chapter: three quarters


def test_chunks_are_ahead_of_the_matrix_but_where_the_host_is_slow(ms):
    for which, least in (("forward", 32), (BOTH, 128)):
        for t in (32, 128, 512, 2048):
            chunks, matrix = (ms("quadratic", which, form=f, n=t) for f in ("chunks", "masked"))
            assert (chunks < matrix) == (t >= least)
            assert which == "forward" or 1.7 < chunks < 2.3


@pytest.mark.parametrize("which", ["forward", BOTH])
def test_a_scan_pays_more_than_a_state_s_size_and_ssd_less(ms, which):
    scan = [ms("state size", which, form="selective scan", state_size=n) for n in (16, 64, 256)]
    chunks = [ms("state size", which, form="ssd", state_size=n) for n in (16, 128, 256)]
    assert all(wide > 4 * narrow for narrow, wide in pairwise(scan))
    assert chunks[1] < 2 * chunks[0]
    assert round(chunks[2] / chunks[1]) == {"forward": 7, BOTH: 4}[which]
    if which == BOTH:
        assert scan[2] > 2000
        assert chunks[1] < scan[0] / 3


def test_attention_of_equal_width_crosses_where_the_chapter_says(ms):
    ours, flash, cudnn = (
        [ms("crossover", BOTH, form=form, n=2**k) for k in range(10, 16)]
        for form in ("ssd", "flash", "cudnn")
    )
    assert all(mine < theirs for mine, theirs in zip(ours, flash, strict=True))
    assert [mine < theirs for mine, theirs in zip(ours, cudnn, strict=True)] == [False, *[True] * 5]
    assert round(cudnn[-1] / ours[-1]) == 16
    step = ms("crossover decode", "step", form="ssd")
    whole, few, many = (
        ms("crossover decode", form="cudnn", n=n, g=g) for n, g in ((512, 32), (512, 8), (2048, 8))
    )
    assert step == pytest.approx(whole, rel=0.05)
    assert few < step < many


def test_neither_forward_pass_is_bound_by_the_bus_alone(record, ms):
    half = record[0]["copy_bytes_per_s"] / 2
    for who, moved in ((OURS, 0.56e9), (PEER, 1.77e9)):  # as the chapter counts them
        assert moved / (ms("ssd", **who, **FIRST) / 1e3) < half
