"""The look of the plots: legible colours, transparent pictures, labels that say the value."""

import base64
import io
import math

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from ssmlib import plots
from ssmlib.bench import Record
from ssmlib.palette import PALETTE


@pytest.fixture
def style():
    with mpl.rc_context():
        mpl.use("agg")
        plots.use_style()
        yield
        plt.close("all")


def _luminance(colour: str) -> float:
    def linear(channel: float) -> float:
        return channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4

    r, g, b = (linear(int(colour[i : i + 2], 16) / 255) for i in (1, 3, 5))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", [*plots.HUES, "ink"])
def test_every_hue_stands_out_from_its_page(name, dark):
    assert _contrast(plots.color(name, dark), plots.color("paper", dark)) >= 4.5


def test_an_unknown_colour_is_refused_with_the_names():
    with pytest.raises(ValueError, match=r"name: expected one of attention, linear.*, got 'red'"):
        plots.color("red")


def test_lines_take_the_hues_in_order(style):
    _, ax = plt.subplots()
    drawn = [ax.plot([0, 1], [i, i])[0].get_color() for i in range(len(plots.HUES))]
    assert drawn == [PALETTE[name][0] for name in plots.HUES]


def _picture(file) -> np.ndarray:
    image = plt.imread(file)
    assert image.shape[2] == 4
    return image


def test_saved_pictures_are_transparent(style):
    figure, ax = plt.subplots()
    ax.plot([1, 2], [1, 2])
    file = io.BytesIO()
    figure.savefig(file)
    file.seek(0)
    image = _picture(file)
    assert image.shape[1] == int(6.4 * 144)
    assert (image[0, :, 3] == 0).all()  # outside the axes
    assert (image[..., 3] == 0).mean() > 0.8  # and inside


def test_pictures_in_a_notebook_are_transparent(style):
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    try:
        plots.use_style()
        figure, ax = plt.subplots()
        ax.plot([1, 2], [1, 2])
        formatted, _ = shell.display_formatter.format(figure, include=["image/png"])
        png = formatted["image/png"]
        image = _picture(io.BytesIO(base64.b64decode(png) if isinstance(png, str) else png))
        assert (image[0, :, 3] == 0).all()
        assert (image[..., 3] == 0).mean() > 0.8
    finally:
        InteractiveShell.clear_instance()


def test_using_the_style_prints_nothing(style, capsys):
    plots.use_style()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("power", [-1.0, 0.0, 1.0, 2.0])
def test_the_slope_of_a_power_law_is_its_power(power):
    x = [2.0**i for i in range(10, 18)]
    assert plots.fit_slope(x, [3e-9 * v**power for v in x]) == pytest.approx(power, abs=1e-12)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([1], [1]),
        ([2, 2], [1, 3]),
        ([1, 2], [1]),
        ([1, 2], [0, 1]),
        ([-1, 2], [1, 1]),
        ([1, 2], [1, math.nan]),
    ],
)
def test_a_slope_that_cannot_be_is_refused(x, y):
    with pytest.raises(ValueError, match="x, y: expected"):
        plots.fit_slope(x, y)


@pytest.mark.parametrize(
    ("label", "value", "text"),
    [
        (plots.bytes_label, 0, "0 B"),
        (plots.bytes_label, 512, "512 B"),
        (plots.bytes_label, 999.9, "1 KB"),
        (plots.bytes_label, 1.5e9, "1.5 GB"),
        (plots.bytes_label, 34.36e9, "34.4 GB"),
        (plots.bytes_label, 176e12, "176 TB"),
        (plots.seconds_label, 2e-5, "20 µs"),
        (plots.seconds_label, 0.9999, "1 s"),
        (plots.seconds_label, 3600, "3600 s"),
        (plots.seconds_label, 4e-10, "0.4 ns"),
        (plots.length_label, 131072, "128K"),
        (plots.length_label, 2**20, "1M"),
        (plots.length_label, 1500, "1,500"),
        (plots.length_label, 8, "8"),
        (plots.bytes_label, math.nan, "nan B"),
        (plots.bytes_label, -math.inf, "-inf B"),
        (plots.seconds_label, math.inf, "inf s"),
        (plots.length_label, math.nan, "nan"),
        (plots.length_label, math.inf, "inf"),
    ],
)
def test_labels(label, value, text):
    assert label(value) == text
    assert label(value, 0) == text  # as a tick formatter is called


def test_ticks_stand_at_the_lengths(style):
    figure, ax = plt.subplots()
    ax.plot([1024, 4096], [1, 2])
    plots.length_axis(ax, [1024, 2048, 4096])
    ax.yaxis.set_major_formatter(plots.seconds_label)
    figure.canvas.draw()
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1K", "2K", "4K"]
    assert ax.get_xlabel() == "length n (tokens)"


def test_provenance_stands_inside_the_figure_below_the_axes(style):
    source = dict.fromkeys(("driver", "triton", "commit", "dirty", "ssmlib", "python"), "1.0")
    source |= {"device": "a GPU", "torch": "2", "date": "2026-11-23", "command": "python " * 20}
    figure, ax = plt.subplots()
    ax.set_xlabel("n")
    plots.annotate_provenance(figure, Record("x", [], source))
    figure.canvas.draw()
    line = figure.get_supxlabel()
    assert line.split("\n")[0].startswith("a GPU · driver 1.0 · torch 2")
    box = figure._supxlabel.get_window_extent()
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= figure.bbox.width
    assert box.y1 <= ax.xaxis.label.get_window_extent().y0


def test_a_diagram_has_its_boxes_its_arrows_and_what_flows(style):
    figure, ax = plt.subplots()
    plots.diagram(
        ax,
        {"a": (0, 0, "state"), "b": (2, 1, "input")},
        [("a", "b"), ("a", "b", "Δ")],
    )
    figure.canvas.draw()
    written = [text.get_text() for text in ax.texts]
    assert written[:2] == ["a", "b"]
    assert "Δ" in written
    assert (
        sum(text.arrow_patch is not None for text in ax.texts if hasattr(text, "arrow_patch")) == 2
    )
    with pytest.raises(ValueError, match="arrows: expected one of a, b, got 'c'"):
        plots.diagram(ax, {"a": (0, 0, "state"), "b": (1, 0, "state")}, [("a", "c")])
