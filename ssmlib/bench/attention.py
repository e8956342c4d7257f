"""The suite `attention`: what the length costs.

`causal`: time and peak memory of causal attention, forward and with backward, against the length.
`decode`: one new token against a cache, as a step of generation does it.

Both run PyTorch's `scaled_dot_product_attention` held to one of its backends: "math" writes the
score matrix down, in float32; "flash" and "cudnn" never hold it whole.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ssmlib.bench.cell import Cell, Setting, ceiling_row, fill
from ssmlib.bench.table import Row, collect, number, table, text
from ssmlib.bench.timing import ceilings, default_device, working_dtype
from ssmlib.costs import TRAINING, attention_cost

BACKENDS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
PASSES = ("forward", "forward+backward")
FORMS = ("gqa", "grouped")
COLUMNS = (
    ("case", 6, text("experiment")),
    ("n", 7, text("n")),
    ("backend", 7, text("backend")),
    ("form, pass", 16, lambda row: str(row.get("form") or row.get("pass") or "")),
    ("ms", 9, number("seconds", 1e3)),
    ("floor ms", 9, number("floor_seconds", 1e3)),
    ("by", 5, text("bound")),
    ("peak MB", 9, number("peak_bytes", 1e-6, ".1f")),
    ("error", 7, number("error", form=".1e")),
    ("status", 0, lambda row: "" if row["status"] == "ok" else str(row["status"])),
)


class Shape(NamedTuple):
    """Batch, query heads, key-value heads and head dimension."""

    b: int
    h: int
    g: int
    k: int


LAYER = Shape(b=1, h=32, g=32, k=128)  # the heads of one layer of a 7B model
SERVING = Shape(b=8, h=32, g=8, k=128)  # one layer of an 8B model whose queries share keys by fours
LENGTHS = tuple(2**i for i in range(10, 18))
CACHE_LENGTHS = tuple(2**i for i in range(10, 21))


def run(
    quick: bool = False,
    device: str | torch.device | None = None,
    progress: Callable[[str], None] | None = None,
    save: Callable[[Row], None] | None = None,
) -> list[dict[str, Any]]:
    """All rows of the suite: the ceilings, `causal`, `decode`. quick=True takes tiny sizes.

    progress is called with a line of text after each row, save with the row itself.
    """
    device = default_device(device)
    backends = [name for name in BACKENDS if device.type == "cuda" or name != "cudnn"]
    if quick:
        setting = Setting(device, ceilings(device, time_s=0.02), warmup_s=0.0, time_s=0.02)
        parts = [causal(setting, Shape(1, 2, 2, 16), (64, 128), backends)]
        parts += [decode(setting, Shape(2, 4, 2, 16), (64, 128), backends)]
    else:
        setting = Setting(device, ceilings(device))
        parts = [causal(setting, LAYER, LENGTHS, backends)]
        parts += [decode(setting, SERVING, CACHE_LENGTHS, backends)]
    rows = itertools.chain([ceiling_row(setting.top)], *parts)
    return collect(rows, COLUMNS, progress, save)


def summary(rows: list[dict[str, Any]]) -> str:
    """The rows as a table, under the ceilings."""
    top, *others = rows
    copy, product = top["copy_bytes_per_s"] / 1e12, top["matmul_flops_per_s"] / 1e12
    head = f"copy {copy:.3f} TB/s, {top['dtype']} matrix product {product:.1f} TFLOP/s"
    return f"{head}\n{table(others, COLUMNS)}"


def causal(
    setting: Setting, shape: Shape, lengths: Iterable[int], backends: Iterable[str]
) -> Iterator[dict[str, Any]]:
    """Rows of causal attention: each length, backend and pass."""
    for n in lengths:
        for backend in backends:
            for which in PASSES:
                yield fill(causal_cell(shape, n, backend, which, setting.device), setting)


def decode(
    setting: Setting, shape: Shape, lengths: Iterable[int], backends: Iterable[str]
) -> Iterator[dict[str, Any]]:
    """Rows of one decoding step: each cache length, backend and form.

    "gqa" leaves it to the backend how query heads share keys and values; "grouped" hands it the
    queries that share them as so many positions of one head, so that the cache is read once.
    """
    for n in lengths:
        for backend in backends:
            for form in FORMS:
                yield fill(decode_cell(shape, n, backend, form, setting.device), setting)


def causal_cell(shape: Shape, n: int, backend: str, which: str, device: torch.device) -> Cell:
    """Causal attention over n tokens.

    Counted: `ssmlib.costs.attention_cost` forward, and twice as much backward, which makes four
    products for two and moves q, k, v, y, dy in and dq, dk, dv out for q, k, v in and y out. Flash
    attention makes the scores a second time backward; that is not counted.
    """
    b, h, g, k = shape
    dtype, backward = working_dtype(device), which != "forward"

    def draw(size: int) -> tuple[Tensor, ...]:
        rand = _random(device, dtype)
        leaves = [rand(b, heads, size, k).requires_grad_(backward) for heads in (h, g, g)]
        return (*leaves, rand(b, h, size, k)) if backward else tuple(leaves)

    size = _size(shape, dtype)
    cost = attention_cost(n, h, k, kv_heads=g, batch=b, dtype=size["dtype"])
    times = TRAINING if backward else 1
    return Cell(
        labels={"experiment": "causal", "backend": backend, "pass": which, "form": None, "n": n}
        | size,
        flops=times * cost.flops,
        n_bytes=times * cost.bytes,
        # the scores and their softmax, both in float32, are alive together
        needs=cost.bytes + (8 * b * h * n * n if backend == "math" else 0),
        n=n,
        check_at=min(n, 512),
        draw=draw,
        run=_attend(backend, is_causal=True, enable_gqa=h != g),
        truth=lambda *inputs: definition(*inputs, is_causal=True),
    )


def decode_cell(shape: Shape, n: int, backend: str, form: str, device: torch.device) -> Cell:
    """One token against n cached ones, its own key and value among them.

    Counted: `ssmlib.costs.attention_cost`, which moves the cache once.
    """
    b, h, g, k = shape
    dtype, gqa = working_dtype(device), form == "gqa"
    heads, positions = (h, 1) if gqa else (g, h // g)

    def draw(size: int) -> tuple[Tensor, ...]:
        rand = _random(device, dtype)
        return rand(b, heads, positions, k), rand(b, g, size, k), rand(b, g, size, k)

    size = _size(shape, dtype)
    cost = attention_cost(1, h, k, kv_heads=g, batch=b, past=n - 1, dtype=size["dtype"])
    repeated = cost.bytes * h // g if backend == "math" and gqa else 0  # the cache for each head
    return Cell(
        labels={"experiment": "decode", "backend": backend, "pass": "forward", "form": form, "n": n}
        | size,
        flops=cost.flops,
        n_bytes=cost.bytes,
        needs=cost.bytes + repeated,
        n=n,
        check_at=n,
        draw=draw,
        run=_attend(backend, enable_gqa=gqa),
        truth=definition,
    )


def definition(
    q: Tensor, k: Tensor, v: Tensor, dy: Tensor | None = None, is_causal: bool = False
) -> tuple[Tensor, ...]:
    """Attention as its equation says, and with dy its gradients: the truth for every backend.

    q: (b, h, t, k), k and v: (b, g, s, k), consecutive query heads sharing one of the g.
    """
    shared = q.unflatten(1, (k.shape[1], -1))  # (b, g, h/g, t, k)
    scores = torch.einsum("bgjtk,bgsk->bgjts", shared, k) / q.shape[-1] ** 0.5
    if is_causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    y = torch.einsum("bgjts,bgsk->bgjtk", scores.softmax(-1), v).flatten(1, 2)
    return (y,) if dy is None else (y, *torch.autograd.grad(y, (q, k, v), dy))


def _attend(backend: str, **options: bool) -> Callable[..., tuple[Tensor, ...]]:
    def run(q: Tensor, k: Tensor, v: Tensor, dy: Tensor | None = None) -> tuple[Tensor, ...]:
        with sdpa_kernel(BACKENDS[backend]):
            y = F.scaled_dot_product_attention(q, k, v, **options)
        return (y,) if dy is None else (y, *torch.autograd.grad(y, (q, k, v), dy))

    return run


def _random(device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, device=device, dtype=dtype)


def _size(shape: Shape, dtype: torch.dtype) -> dict[str, int | str]:
    return shape._asdict() | {"dtype": str(dtype).removeprefix("torch.")}
