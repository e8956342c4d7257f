"""Chapter 07: the matrix of state space duality in blocks, and its record beside attention."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ssmlib.shapes import check_number
from ssmlib.viz.host import Figure
from ssmlib.viz.stills import COLOUR, LARGE, SMALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Still

NUMBER = 2  # bytes of an input or output number
STATE = 4  # bytes of a number of a state or a masked block
KEY = {"masked": "attention", "low rank": "state", "x, across": "input", "y, down": "linear"}
CURVES = {"ssd": "state", "flash": "attention", "cudnn": "hybrid"}
BOTH = "forward+backward"
GRID = 64  # chunks up to which a picture shows single blocks


def ssd_blocks(
    length: int = 2048,
    state: int = 128,
    head_dim: int = 64,
    chunk: int = 256,
    block: tuple[int, int] = (6, 3),
) -> Figure:
    """One head's matrix from x to y, cut into blocks by a chunk size that the reader sets.

    length: tokens, a power of two from 2 on. state, head_dim: n and p. chunk: where the slider
    starts, a power of two up to length. block: the chunk of y that is written and the chunk of x
    that is read, counted from 1.
    Raises ValueError for other sizes and for a block above the diagonal.
    """
    check_number(low=2, whole=True, length=length)
    check_number(low=1, whole=True, state=state, head_dim=head_dim)
    sizes = [2**k for k in range(length.bit_length())]
    if sizes[-1] != length:
        raise ValueError(f"length: expected a power of two, got {length}")
    if chunk not in sizes:
        raise ValueError(f"chunk: expected a power of two from 1 to {length}, got {chunk!r}")
    count, (row, column) = length // chunk, block
    check_number(low=1, high=count, whole=True, **{"block[0]": row})
    check_number(low=1, high=row, whole=True, **{"block[1]": column})
    costs = {size: block_costs(length, state, head_dim, size) for size in sizes}
    return Figure(
        name="ssd_blocks",
        data={
            "length": length,
            "state": state,
            "head_dim": head_dim,
            "chunk": chunk,
            "block": [row, column],
            "costs": costs,
        },
        alt=(
            f"A lower triangle of {count} by {count} blocks, {chunk} tokens each: {count} masked"
            f" blocks on the diagonal, {count * (count - 1) // 2} of low rank below it. Marked is"
            f" the block from chunk {column} to chunk {row}, once as a product of two thin"
            " matrices, once as a state that is passed from chunk to chunk."
        ),
        caption=(
            "Drag the chunk size. At the left end there are only states, one for each token: the"
            " recurrence. At the right end there is only the masked matrix: attention. Then point"
            " at a block, or choose it by its row and column, and read it twice."
        ),
        draw=partial(_still, count, chunk, state, row - 1, column - 1),
    )


def block_costs(length: int, state: int, head_dim: int, chunk: int) -> dict[str, int]:
    """What one head of its own group costs, forward, in chunks of that size.

    steps: chunks that wait for one another. flops: of the matrix products, 2 for a multiply-add;
    masked entries are computed, too. masks, states: numbers in the masked blocks, and in the states
    at the chunks' starts. apart: bytes moved if each step is a pass of its own, so that blocks are
    written and read once, states twice, both in float32; x, B and C are read twice, y is written,
    read and written again, in two bytes. fused: bytes moved if blocks and states stay on chip.
    """
    chunks = length // chunk
    masks, states = length * chunk, chunks * state * head_dim
    within = 2 * masks * (state + head_dim)
    flops = within + 4 * length * state * head_dim + 2 * states
    heads, groups = NUMBER * length * head_dim, NUMBER * length * state
    return {
        "steps": chunks,
        "flops": flops,
        "masks": masks,
        "states": states,
        "apart": 5 * heads + 4 * groups + STATE * (2 * masks + 4 * states),
        "fused": 2 * heads + 2 * groups,
    }


def _still(count: int, chunk: int, state: int, row: int, column: int) -> "Still":
    from matplotlib.figure import Figure as Still

    still = Still(figsize=(6.6, 3.4), facecolor=COLOUR["paper"], layout="constrained")
    still.get_layout_engine().set(w_pad=0.15, h_pad=0.15)
    matrix, side = still.subplots(1, 2)
    _matrix(matrix, count, row, column)
    _readings(side, chunk, state, row, column)
    return still


def _matrix(ax: "Axes", count: int, row: int, column: int) -> None:
    from matplotlib.patches import Polygon, Rectangle

    corners = [(0, 0), (0, count), (count, count)]
    ax.add_patch(Polygon(corners, fc=COLOUR["state"], ec="none"))
    for k in range(count):
        ax.add_patch(Rectangle((k, k), 1, 1, fc=COLOUR["paper"], ec="none"))
        ax.add_patch(Polygon([(k, k), (k, k + 1), (k + 1, k + 1)], fc=COLOUR["attention"]))
    for k in range(1, count if count <= GRID else 1):
        style = {"color": COLOUR["paper"], "lw": 1}
        ax.plot([0, k], [k, k], **style)
        ax.plot([k, k], [k, count], **style)
    ax.add_patch(Rectangle((column, row), 1, 1, fill=False, ec=COLOUR["ink"], lw=3, zorder=3))
    ax.plot([column, column + 1], [-0.03 * count] * 2, color=COLOUR["input"], lw=5)
    ax.plot([-0.03 * count] * 2, [row, row + 1], color=COLOUR["linear"], lw=5)
    for k, (name, hue) in enumerate(KEY.items()):
        place = (0.98 * count, (0.06 + 0.08 * k) * count)
        ax.text(*place, name, ha="right", fontsize=SMALL, color=COLOUR[hue])
    ax.set(xlim=(-0.07 * count, 1.02 * count), ylim=(1.02 * count, -0.07 * count), aspect="equal")
    ax.axis("off")


def _readings(ax: "Axes", chunk: int, state: int, row: int, column: int) -> None:
    first, far = f"chunk {column + 1}", f"chunk {row + 1}"
    if row == column:
        told = [f"As a matrix: {chunk} × {chunk}, masked.", f"As states: {chunk} steps of the loop"]
    else:
        told = [
            f"As a matrix: ({chunk} × {state}) · ({state} × {chunk}),",
            f"of rank {min(chunk, state)} at most",
            "",
            f"As states: {first} is written,",
            f"passed over {row - column} boundar{'y' if row == column + 1 else 'ies'},",
            f"and read in {far}",
        ]
    lines = [(f"chunks of {chunk}: block ({row + 1}, {column + 1})", "ink", LARGE), ("", "ink", 1)]
    lines += [(line, "muted", SMALL) for line in told]
    for k, (line, hue, size) in enumerate(lines):
        ax.text(0.02, 0.85 - 0.1 * k, line, fontsize=size, color=COLOUR[hue])
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.axis("off")


def draw_crossover(axes: "Sequence[Axes]", rows: Iterable[Mapping[str, Any]]) -> None:
    """On two axes, from rows of the suite `ssd`: its time and attention's, by the length.

    Left, forward and backward over whole sequences. Right, one token after as many others, where
    SSD has one time for all lengths; dashed, query heads share keys and values.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    from ssmlib.plots import length_axis, seconds_label

    kinds = ("crossover", "crossover decode")
    rows = [r for r in rows if r["experiment"] in kinds and r["status"] == "ok"]
    training, writing = axes
    for row in rows:
        if row["experiment"] == "crossover decode" and row["form"] == "ssd":
            writing.axhline(row["seconds"], color=COLOUR["state"])
    for form, hue in CURVES.items():
        named = [row for row in rows if row["form"] == form]
        whole = [r for r in named if (r["experiment"], r["pass"]) == ("crossover", BOTH)]
        _curve(training, whole, "o-", hue, form)
        cached = [r for r in named if r["experiment"] == "crossover decode" and form != "ssd"]
        most = max((r["g"] for r in cached), default=0)
        for g in sorted({r["g"] for r in cached}):
            style = "o-" if g == most else "o--"
            _curve(writing, [r for r in cached if r["g"] == g], style, hue, None)
    for ax, title in zip(axes, ("training", "writing one token"), strict=True):
        lengths = sorted({n for line in ax.lines for n in line.get_xdata() if n > 1})
        length_axis(ax, lengths[::2], "tokens")
        ax.set(yscale="log", title=title)
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.yaxis.set_major_formatter(seconds_label)
    training.legend()


def _curve(
    ax: "Axes", rows: list[Mapping[str, Any]], style: str, hue: str, name: str | None
) -> None:
    if not rows:
        return
    lengths, seconds = [row["n"] for row in rows], [row["seconds"] for row in rows]
    ax.plot(lengths, seconds, style, color=COLOUR[hue], label=name)
