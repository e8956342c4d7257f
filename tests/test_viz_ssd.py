"""The block picture of chapter 07: its counts against the listing's, its words, its refusals."""

import matplotlib as mpl
import pytest
import torch
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

from ssmlib import plots
from ssmlib.ssd import ssd_chunked
from ssmlib.viz import ssd_blocks
from ssmlib.viz.ssd import block_costs, draw_crossover


@pytest.mark.parametrize("chunk", [8, 32, 64])
def test_products_are_those_of_the_listing(chunk):
    t, n, p = 64, 16, 8
    x, B, C = torch.ones(1, t, 1, p), torch.ones(1, t, 1, n), torch.ones(1, t, 1, n)
    with FlopCounterMode(display=False) as counter:
        ssd_chunked(x, -torch.ones(1, t, 1), B, C, chunk_size=chunk)
    cost = block_costs(t, n, p, chunk)
    passed = 2 * cost["states"]  # step 3 multiplies numbers, which the counter does not count
    assert counter.get_total_flops() == cost["flops"] - passed


def test_ends_of_the_slider_are_the_recurrence_and_attention():
    t, n, p = 256, 16, 8
    loop, whole = block_costs(t, n, p, 1), block_costs(t, n, p, t)
    assert (loop["steps"], whole["steps"]) == (t, 1)
    assert loop["flops"] == t * (2 * (n + p) + 6 * n * p)
    assert whole["flops"] == 2 * t * t * (n + p) + 4 * t * n * p + 2 * n * p
    assert loop["states"] == t * n * p
    assert whole["masks"] == t * t
    assert loop["fused"] == whole["fused"] == 4 * t * (n + p)


def test_four_passes_move_least_in_the_middle():
    moved = {q: block_costs(4096, 128, 64, q)["apart"] for q in (16, 64, 128, 256, 1024)}
    assert min(moved, key=moved.get) == 128  # the root of 2 n p


def test_words_say_which_block():
    assert "8 by 8 blocks" in ssd_blocks().alt
    assert "28 of low rank" in ssd_blocks().alt
    assert "from chunk 3 to chunk 6" in ssd_blocks().alt
    one = ssd_blocks(length=64, chunk=64, block=(1, 1))
    assert "1 masked" in one.alt


@pytest.mark.parametrize("chunk", [1, 2, 128, 2048])
@pytest.mark.parametrize("on", [False, True])
def test_a_still_picture_of_any_size(chunk, on):
    count = 2048 // chunk
    with mpl.rc_context():
        plots.use_style()
        png = ssd_blocks(chunk=chunk, block=(count, count if on else 1)).png
    assert png.startswith(b"\x89PNG")


def crossing(n: int, form: str, g: int = 1, experiment: str = "crossover", **more) -> dict:
    row = {"experiment": experiment, "form": form, "pass": "forward+backward", "n": n, "g": g}
    return row | {"seconds": n * 1e-6, "status": "ok", **more}


def test_the_record_is_drawn_beside_attention():
    decode = "crossover decode"
    rows = [{"experiment": "ceilings", "status": "ok"}]
    rows += [crossing(n, form) for n in (512, 1024) for form in ("ssd", "flash")]
    rows += [crossing(1, "ssd", experiment=decode, **{"pass": "step"})]
    rows += [crossing(n, "flash", g, decode) for n in (128, 256) for g in (32, 8)]
    rows += [crossing(2048, "flash", status="out of memory", seconds=None)]
    axes = Figure().subplots(1, 2)
    draw_crossover(axes, rows)
    training, writing = ([line.get_xdata() for line in ax.lines] for ax in axes)
    assert [list(x) for x in training] == [[512, 1024], [512, 1024]]
    assert [list(x) for x in writing] == [[0, 1], [128, 256], [128, 256]]
    assert [line.get_linestyle() for line in axes[1].lines[1:]] == ["--", "-"]
    assert axes[1].lines[0].get_ydata()[0] == 1e-6


@pytest.mark.parametrize(
    ("kw", "message"),
    [
        ({"length": 1000}, "length: expected a power of two, got 1000"),
        ({"length": 1}, "length: expected a whole number >= 2"),
        ({"state": 0}, "state: expected a whole number >= 1"),
        ({"chunk": 48}, "chunk: expected a power of two from 1 to 2048, got 48"),
        ({"chunk": 4096}, "chunk: expected a power of two from 1 to 2048, got 4096"),
        ({"block": (9, 1)}, r"block\[0\]: expected a whole number >= 1 <= 8"),
        ({"block": (3, 4)}, r"block\[1\]: expected a whole number >= 1 <= 3"),
    ],
)
def test_bad_input_is_named(kw, message):
    with pytest.raises(ValueError, match=message):
        ssd_blocks(**kw)
