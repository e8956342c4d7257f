"""Chapter 08: what a mix of layers keeps and does, and patterns as rows of coloured layers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ssmlib.costs import attention_layer_cost, kv_cache_bytes, mlp_cost, ssm_layer_cost
from ssmlib.costs.checks import find
from ssmlib.shapes import check_number
from ssmlib.viz.host import Figure
from ssmlib.viz.stills import COLOUR, SMALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Still

EVERY = (1, 2, 3, 4, 6, 8, 12, 16, 32, 0)  # as in hybrid_calculator.mjs
HUES = {"*": "attention", "M": "state", "R": "state", "Z": "hybrid", "H": "input"}
REST = "muted"  # what mixes no tokens
SPEED = {
    "transformer": ("attention", "o-"),
    "hybrid 1:7": ("hybrid", "o-"),
    "mamba-2": ("state", "o-"),
    "mamba": ("state", "o:"),
}


@dataclass(frozen=True)
class MixShape:
    """Layers of attention or Mamba, an MLP after each; attention in one of `every`, 0 for none."""

    name: str
    layers: int
    every: int
    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    state: int = 16
    conv: int = 4
    dt_rank: int = 256

    @property
    def attention(self) -> int:
        """How many layers attend: of each `every`, the one in the middle, as in Jamba."""
        return sum(self.every > 0 and i % self.every == self.every // 2 for i in range(self.layers))


SHAPES = {
    shape.name: shape
    for shape in (
        MixShape("7B, a key for every head", 32, 2, 4096, 32, 32, 128, 11_008),
        MixShape("Jamba v0.1, dense MLPs", 32, 8, 4096, 32, 8, 128, 14_336),
        MixShape("70B, eight key heads", 80, 8, 8192, 64, 8, 128, 28_672, dt_rank=512),
    )
}


def hybrid_calculator(
    shape: str = "7B, a key for every head", context: int = 100_000, requests: int = 1
) -> Figure:
    """Memory and work of a mix of attention and Mamba; the reader sets layers, ratio, key heads.

    shape: where it starts, a name in SHAPES. context: tokens of each request; requests: at once.
    Raises ValueError for an unknown shape and for numbers below 1.
    """
    chosen = find("shape", shape, SHAPES)
    check_number(low=1, whole=True, context=context, requests=requests)
    mixes = {
        "all attention": mix_costs(chosen, 1, context, requests),
        f"1 in {chosen.every}": mix_costs(chosen, chosen.every, context, requests),
        "all Mamba": mix_costs(chosen, 0, context, requests),
    }
    told = ", ".join(f"{name} {_gb(c['cache'] + c['state'])}" for name, c in mixes.items())
    return Figure(
        name="hybrid_calculator",
        data={
            "shapes": [asdict(s) for s in SHAPES.values()],
            "selected": shape,
            "every": chosen.every,
            "context": context,
            "requests": requests,
        },
        alt=(
            f"{shape}: {chosen.layers} layers, {chosen.attention} of them attention. Kept after"
            f" {context:,} tokens by each of {requests}: {told}."
        ),
        caption=(
            "Choose a model, then move the share of attention. Memory falls with the number of"
            " attention layers and with nothing else, until the states are what is left. Then drag"
            " the context: at a thousand tokens the work even rises a little, at a million it"
            " falls nearly as memory does. Set Jamba to 1 in 4, as one of our articles has it."
        ),
        draw=partial(_still, chosen, mixes),
    )


def mix_costs(s: MixShape, every: int, context: int, requests: int = 1) -> dict[str, Any]:
    """What a mix costs with attention in one layer of `every`; see `ssmlib.costs`.

    attention: how many layers attend. cache, state: bytes, two for a number of a cache and of what
    a convolution holds, which counts as state, and four for one of a state itself. token, prompt:
    FLOPs of one request's next token and of its whole context, without embeddings and logits.
    """
    if every not in EVERY:
        raise ValueError(f"every: expected one of {', '.join(map(str, EVERY))}, got {every!r}")
    n = MixShape(**asdict(s) | {"every": every}).attention
    scans = s.layers - n

    def flops(length: int, past: int) -> float:
        sizes = {"kv_heads": s.kv_heads, "head_dim": s.head_dim, "past": past}
        looks = attention_layer_cost(length, s.d_model, s.heads, **sizes)
        scan = ssm_layer_cost(length, s.d_model, state=s.state, conv=s.conv, dt_rank=s.dt_rank)
        return (n * looks + scans * scan + s.layers * mlp_cost(length, s.d_model, s.hidden)).flops

    cache = kv_cache_bytes(n, s.kv_heads, s.head_dim, context, requests) if n else 0
    kept = requests * scans * 2 * s.d_model * (4 * s.state + 2 * (s.conv - 1))  # eq-kept
    return {
        "attention": n,
        "cache": cache,
        "state": kept,
        "token": flops(1, context),
        "prompt": flops(context, 0),
    }


def draw_patterns(ax: "Axes", patterns: Mapping[str, str]) -> None:
    """A row of layers for each pattern, by name, its colours those of HUES; MLPs are low."""
    for row, (name, pattern) in enumerate(patterns.items()):
        wide = 1 / len(pattern)
        for i, glyph in enumerate(pattern):
            high = 0.62 if glyph in HUES else 0.3
            hue = COLOUR[HUES.get(glyph, REST)]
            ax.bar(i * wide, high, 0.82 * wide, row - high / 2, align="edge", color=hue)
        ax.text(-0.015, row, name, ha="right", va="center", fontsize=SMALL + 1)
        mixers = sum(glyph in HUES for glyph in pattern)
        ax.text(1.01, row, f"{mixers}", ha="left", va="center", fontsize=SMALL)
    ax.set(xlim=(-0.2, 1.05), ylim=(len(patterns) - 0.5, -0.5))
    ax.axis("off")


def draw_ratio(ax: "Axes", rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows of `ssmlib.bench.hybrid.best`: the mean loss by the number of attention layers.

    A mark for each place; no attention, and attention in every layer, have none.
    """
    rows = list(rows)
    most = max(row["attention"] for row in rows)
    for place, mark in (("spread", "o"), ("first", "v"), ("middle", "D"), ("last", "^")):
        own = [
            row
            for row in rows
            if (row["place"] == place or row["attention"] in (0, most))
            and row["positions"] == "none"
        ]
        if {row["attention"] for row in own} - {0, most}:
            points = [row["attention"] for row in own], [row["loss"] for row in own]
            ax.plot(*points, mark, ls=":", lw=1, color=COLOUR["hybrid"], label=place)
    for row in rows:
        if row["positions"] != "none":
            ax.plot(row["attention"], row["loss"], "s", color=COLOUR["attention"], label="rotary")
    ax.set_xticks(sorted({row["attention"] for row in rows}))
    ax.set(xlabel="attention layers", ylabel="mean loss")
    ax.legend(loc="lower right")


def draw_speed(axes: "Sequence[Axes]", rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows of the suite `model` on three axes: seconds of a prompt and of a token, and memory.

    Memory is the most that a prompt took above the weights, where that was measured, and else what
    is kept of it.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    from ssmlib.plots import bytes_label, length_axis, seconds_label

    rows = [row for row in rows if row["status"] == "ok"]
    prompts, tokens = (
        [row for row in rows if row["experiment"] == kind] for kind in ("prefill", "decode")
    )
    peak = all(row["peak_bytes"] is not None for row in prompts)
    panels = (
        ("reading a prompt", prompts, "seconds", seconds_label),
        ("one more token", tokens, "seconds", seconds_label),
        ("most memory" if peak else "kept", prompts, "peak_bytes" if peak else "state_bytes", None),
    )
    for ax, (title, found, key, label) in zip(axes, panels, strict=True):
        for name, (hue, style) in SPEED.items():
            own = [row for row in found if row["provider"] == name]
            points = [row["n"] for row in own], [row[key] for row in own]
            ax.plot(*points, style, color=COLOUR[hue], label=name)
        length_axis(ax, _apart({row["n"] for row in found}), "tokens")
        ax.set(yscale="log", title=title)
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.yaxis.set_major_formatter(label or bytes_label)
    axes[0].legend()


def _apart(lengths: Iterable[int]) -> list[int]:
    """Those that leave room for each other's label on a logarithmic axis, from the shortest on."""
    kept: list[int] = []
    for n in sorted(lengths):
        if not kept or n >= 4 * kept[-1]:
            kept.append(n)
    return kept


def draw_gates(
    axes: "Sequence[Axes]", history: Any, shares: Mapping[str, Any], asked: Iterable[int]
) -> None:
    """Left: history (updates, places) of gates. Right: shares of attention by token.

    shares: by kind, "recall" as bars and "text" as a line. asked: places that ask, from 0.
    """
    left, right = axes
    for place, hue in zip(range(history.shape[1]), ("state", "attention"), strict=True):
        left.plot(history[:, place], color=COLOUR[hue], label=f"place {place + 1}")
    left.set(xlabel="updates", ylabel="share of attention", ylim=(0, 1))
    left.set_title("a gate for each place")
    left.legend()
    asked, recall = list(asked), shares["recall"]
    tokens = range(1, len(recall) + 1)
    right.bar(tokens, recall, color=COLOUR["muted"], label="pairs")
    high = [recall[i] for i in asked]
    right.bar([i + 1 for i in asked], high, color=COLOUR["attention"], label="asked")
    right.plot(tokens, shares["text"], "o-", color=COLOUR["state"], ms=3, label="text")
    right.set(xlabel="token", ylim=(0, 1.3), title="a gate for each token")
    right.legend(ncols=3, loc="upper center")


def draw_budget(ax: "Axes", budget: Mapping[str, Mapping[str, float]], limit: float) -> None:
    """A bar for each entry, made of named bytes; dashed, how many there are room for."""
    hues = {"experts": "hybrid", "all else": "muted", "cache": "attention"}
    for row, parts in enumerate(budget.values()):
        left = 0.0
        for name, size in parts.items():
            label = None if row else name
            ax.barh(row, size / 1e9, 0.5, left, color=COLOUR[hues[name]], label=label)
            left += size / 1e9
        ax.text(left + limit / 8e10, row, f"{left:.0f} GB", va="center")
    ax.axvline(limit / 1e9, color=COLOUR["ink"], ls="--", lw=1)
    ax.set_yticks(range(len(budget)), budget)
    ax.set(xlabel="GB", xlim=(0, 1.5 * limit / 1e9), ylim=(len(budget) - 0.4, -0.6))
    ax.legend(loc="lower right")


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB"


def _still(shape: MixShape, mixes: Mapping[str, Mapping[str, Any]]) -> "Still":
    from matplotlib.figure import Figure as Still

    still = Still(figsize=(6.6, 2.6), facecolor=COLOUR["paper"], layout="constrained")
    still.get_layout_engine().set(w_pad=0.15, h_pad=0.15)
    layers, bars = still.subplots(2, 1, height_ratios=(1, 3))
    glyphs = "".join(
        "*" if i % shape.every == shape.every // 2 else "M" for i in range(shape.layers)
    )
    draw_patterns(layers, {"": glyphs})
    layers.set_xlim(0, 1)
    most = max(c["cache"] + c["state"] for c in mixes.values())
    for row, (name, c) in enumerate(mixes.items()):
        bars.barh(row, c["cache"], color=COLOUR["attention"], height=0.55)
        bars.barh(row, c["state"], left=c["cache"], color=COLOUR["state"], height=0.55)
        total = c["cache"] + c["state"]
        bars.text(total + most / 80, row, _gb(total), va="center", fontsize=SMALL)
        bars.text(-most / 80, row, name, va="center", ha="right", fontsize=SMALL)
    bars.set(xlim=(-0.22 * most, 1.15 * most), ylim=(len(mixes) - 0.5, -0.5))
    bars.axis("off")
    return still
