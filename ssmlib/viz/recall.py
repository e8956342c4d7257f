"""The figures of chapter 09: recall against bytes of state, and a needle by depth and length."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ssmlib.shapes import check_number
from ssmlib.viz.host import Figure
from ssmlib.viz.stills import COLOUR, SMALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Still

Row = Mapping[str, Any]
FAMILIES = {  # by key: a name, a colour, a marker as in recall_pareto.mjs
    "attention": ("attention", "attention", "circle"),
    "window": ("sliding window", "attention", "square"),
    "hybrid": ("hybrid", "hybrid", "circle"),
    "mamba2": ("Mamba-2", "state", "circle"),
    "mamba": ("Mamba", "state", "square"),
    "linear_attention": ("linear attention", "linear", "circle"),
    "h3": ("H3", "input", "circle"),
    "s4d": ("S4D", "input", "square"),
}
MARKERS = {"circle": "o", "square": "s"}


def recall_pareto(rows: Iterable[Row], test: int = 0, model: int = 0) -> Figure:
    """Share of right answers against bytes of state; point at a model, take families away.

    rows: of `ssmlib.bench.recall.best`, for one course: mixer, variant, d_model, test, tested,
    chance, state_bytes, accuracy, low, high (None for one seed), seeds, lr, lrs. test: the one
    shown first. model: the place of the one chosen first, models being in order of their bytes.
    Raises ValueError for no rows, a mixer of no family, models that were not asked all tests, and
    a test or a model that there is not.
    """
    models, tests = _models(rows)
    check_number(low=0, high=len(tests) - 1, whole=True, test=test)
    check_number(low=0, high=len(models) - 1, whole=True, model=model)
    families = [key for key in FAMILIES if any(m["family"] == key for m in models)]
    return Figure(
        name="recall_pareto",
        data={
            "tests": [{"name": name, "chance": chance} for name, chance in tests],
            "families": [[key, *FAMILIES[key]] for key in families],
            "models": models,
            "test": test,
            "model": model,
        },
        alt=(
            f"Right answers against bytes of state for {len(models)} models of {len(families)}"
            f" families ({', '.join(FAMILIES[key][0] for key in families)}), asked about"
            f" {tests[test][0]}; guessing gets {tests[test][1]:.1%}. A line joins the models that"
            " no smaller one beats."
        ),
        caption=(
            "Point at a model, or step through them by bytes: its state, its answers and their"
            " interval, over how many seeds, at which learning rate of how many tried. Take"
            " families away and see who then holds the front. Ask about fewer pairs, and smaller"
            " states suffice."
        ),
        draw=partial(_still, models, tests[test], test),
    )


def draw_depths(ax: "Axes", row: Row, lengths: Sequence[int], depths: Sequence[float]) -> Any:
    """The share of a needle that is found, as a heat map: depth down, length across.

    row: of `ssmlib.train`, tested by `ssmlib.recall.needle_grid` at the lengths and depths. Returns
    the image, for a colour bar. Raises ValueError for a test that the row does not have.
    """
    shares = [[_share(row, length, depth) for length in lengths] for depth in depths]
    image = ax.imshow(shares, vmin=0, vmax=1, aspect="auto")
    ax.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    ax.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    ax.grid(False)
    for y, some in enumerate(shares):
        for x, share in enumerate(some):
            ink = "white" if share < 0.6 else "black"
            style = {"ha": "center", "va": "center", "fontsize": SMALL, "color": ink}
            ax.text(x, y, f"{share:.0%}", **style)
    return image


def _share(row: Row, length: int, depth: float) -> float:
    key = f"{length}@{depth:g}_accuracy"
    if key not in row:
        raise ValueError(f"row: expected a test at length {length} and depth {depth:g}, got none")
    return row[key]


def _models(rows: Iterable[Row]) -> tuple[list[dict[str, Any]], list[tuple[str, float]]]:
    """The models in order of their bytes, and the tests: a name and what guessing gets."""
    found: dict[tuple, dict[int, Row]] = {}
    tests: dict[int, tuple[str, float]] = {}
    for row in rows:
        found.setdefault((row["mixer"], row["variant"], row["d_model"]), {})[row["test"]] = row
        tests.setdefault(row["test"], (_told(row["tested"]), row["chance"]))
    if not found:
        raise ValueError("rows: expected at least one, got none")
    for name, asked in found.items():
        if asked.keys() != tests.keys():
            raise ValueError(f"rows: expected {len(tests)} tests of {name}, got {len(asked)}")
    models = [_model([asked[test] for test in sorted(tests)]) for asked in found.values()]
    models.sort(key=lambda m: (m["bytes"], -m["accuracy"][0], m["family"], m["name"]))
    return models, [tests[test] for test in sorted(tests)]


def _model(asked: Sequence[Row]) -> dict[str, Any]:
    row = asked[0]
    family = "window" if "window=" in row["variant"] else row["mixer"]
    if family not in FAMILIES:
        raise ValueError(f"mixer: expected one of {', '.join(FAMILIES)}, got {family!r}")
    shares = {key: [_digits(r[key]) for r in asked] for key in ("accuracy", "low", "high")}
    size = f"d={row['d_model']}"
    return {
        "family": family,
        "name": f"{row['variant']} {size}".strip(),
        "bytes": row["state_bytes"],
        "seeds": row["seeds"],
        "lr": row["lr"],
        "lrs": row["lrs"],
        **shares,
    }


def _digits(share: float | None) -> float | None:
    return None if share is None else round(share, 4)


def _told(tested: str) -> str:
    """ "length=64 pairs=16 …" as "16 pairs in 64 tokens", and any other as it stands."""
    known = dict(part.partition("=")[::2] for part in tested.split())
    if {"length", "pairs"} <= known.keys():
        return f"{known['pairs']} pairs in {known['length']} tokens"
    return tested


def front(models: Sequence[Mapping[str, Any]], test: int) -> list[Mapping[str, Any]]:
    """Those, in order of their bytes, that no model of as many bytes or fewer beats."""
    best, kept = -math.inf, []
    for model in sorted(models, key=lambda m: (m["bytes"], -m["accuracy"][test])):
        if model["accuracy"][test] > best:
            best = model["accuracy"][test]
            kept.append(model)
    return kept


def _still(models: Sequence[Mapping[str, Any]], asked: tuple[str, float], test: int) -> "Still":
    from matplotlib.figure import Figure as Still

    from ssmlib.plots import bytes_label

    still = Still(figsize=(6.6, 3.8), facecolor=COLOUR["paper"], layout="constrained")
    ax = still.subplots()
    ahead = front(models, test)
    ax.step(
        [m["bytes"] for m in ahead],
        [m["accuracy"][test] for m in ahead],
        where="post",
        color=COLOUR["line"],
        lw=2,
    )
    for key, (name, hue, marker) in FAMILIES.items():
        own = [m for m in models if m["family"] == key]
        if own:
            places = [m["bytes"] for m in own], [m["accuracy"][test] for m in own]
            fill = COLOUR[hue] if marker == "circle" else COLOUR["paper"]
            style = {"mfc": fill, "mec": COLOUR[hue], "mew": 1.6, "ms": 6, "ls": ""}
            ax.plot(*places, MARKERS[marker], label=name, **style)
    ax.axhline(asked[1], color=COLOUR["muted"], ls="--", lw=1)
    ax.set(xscale="log", ylim=(-0.03, 1.05))
    ax.xaxis.set_major_formatter(bytes_label)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.set_xlabel("bytes of state for one sequence", fontsize=SMALL)
    ax.set_ylabel("right answers", fontsize=SMALL)
    ax.set_title(asked[0], fontsize=SMALL, loc="left", color=COLOUR["muted"])
    ax.legend(fontsize=SMALL - 1, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return still
