"""The suite `scan_cpu`: the selective scan on two threads, against Python and public packages.

`cpu scan`: the scan alone, with softplus, bias, D and gate; forward, and with all gradients.
`one thread`: the same. Threads wait for each other, so on a busy machine these are the fair rows.
"python loop" makes exp(dt A) and dt B x of all tokens at once, (b t d n), and loops over them.
"mambapy" does the same with that package's parallel scan, where it is installed.
`cpu model`: loss and gradients of a language model of two Mamba layers, against transformers' own,
which must be the same: the error is that of the gradients. Theirs runs once, it takes long enough.
"""

import importlib.metadata
import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmlib.bench.cell import Cell, Setting, fill, relative_error
from ssmlib.bench.cpu import allocated_at_most, two_cores
from ssmlib.bench.table import Row, collect, number, table, text
from ssmlib.bench.timing import ceilings, measure
from ssmlib.bench.twins import gradients, random_tokens, twin_of
from ssmlib.mixers.mamba import MambaConfig
from ssmlib.model import LanguageModel, ModelConfig
from ssmlib.selective_scan import selective_scan

CPU = torch.device("cpu")
COLUMNS = (
    ("", 10, text("experiment")),
    ("provider", 20, text("provider")),
    ("", 16, text("pass")),
    ("d", 5, text("d")),
    ("t", 5, text("n")),
    ("ms", 9, number("seconds", 1e3)),
    ("floor ms", 9, number("floor_seconds", 1e3)),
    ("peak MB", 9, number("peak_bytes", 1e-6, ".1f")),
    ("error", 7, number("error", form=".1e")),
    ("", 0, lambda row: "" if row["status"] == "ok" else str(row["status"])),
)
PASSES = ("forward", "forward+backward")
LAYERS, VOCABULARY = 2, 256


class Shape(NamedTuple):
    """Batch, channels, length, state size."""

    b: int
    d: int
    t: int
    n: int


SCAN = Shape(b=1, d=768, t=1024, n=16)
MODEL = Shape(b=1, d=768, t=512, n=16)  # d: of the model; its scans have twice as many channels


def run(
    quick: bool = False,
    device: str | torch.device | None = None,
    progress: Callable[[str], None] | None = None,
    save: Callable[[Row], None] | None = None,
) -> list[dict[str, Any]]:
    """All rows, on the CPU; quick=True takes tiny sizes. Providers that are missing have none.

    progress is called with a line of text after each row, save with the row itself.
    """
    return collect(rows(quick), COLUMNS, progress, save)


def summary(rows: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    return table(rows, COLUMNS)


def rows(quick: bool = False) -> Iterator[dict[str, Any]]:
    """The rows one by one."""
    scan, model = (Shape(1, 16, 33, 4),) * 2 if quick else (SCAN, MODEL)
    seconds = (0.0, 0.02) if quick else (0.2, 2.0)
    with two_cores():
        yield from scan_rows("cpu scan", scan, seconds)
        torch.set_num_threads(1)
        yield from scan_rows("one thread", scan, seconds)
        torch.set_num_threads(2)
        if importlib.util.find_spec("transformers") is not None:
            yield from model_rows(model, seconds)


def scan_rows(
    experiment: str, shape: Shape, seconds: tuple[float, float]
) -> Iterator[dict[str, Any]]:
    """Every provider's two passes, on as many threads as PyTorch has."""
    setting = Setting(CPU, ceilings(CPU, time_s=seconds[1]), *seconds)
    for provider, form in scans().items():
        for which in PASSES:
            cell = scan_cell(experiment, shape, provider, form, which)
            row = fill(cell, setting)
            if row["status"] == "ok":  # what operations hold inside counts here
                inputs = cell.draw(cell.n)
                row["peak_bytes"] = allocated_at_most(lambda c=cell, i=inputs: c.run(*i))
            yield row


def scans() -> dict[str, Callable[..., Tensor]]:
    """The scan by each provider that is here: y of x, dt, A, B, C, D, z, bias."""
    found = {"ssmlib": ours, "python loop": python_loop}
    if importlib.util.find_spec("mambapy") is not None:
        found[f"mambapy {importlib.metadata.version('mambapy')}"] = mambapy
    return found


def ours(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> Tensor:
    return selective_scan(x, dt, A, B, C, D, z, bias, dt_softplus=True, backend="torch")[0]


def python_loop(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> Tensor:
    decay, fed = _per_state(x, dt, A, B, bias)
    h, outputs = torch.zeros_like(fed[:, 0]), []
    for a, u, c in zip(*(v.unbind(1) for v in (decay, fed, C)), strict=True):
        h = a * h + u
        outputs.append((h @ c.unsqueeze(-1)).squeeze(-1))
    return (torch.stack(outputs, 1) + D * x) * F.silu(z)


def mambapy(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> Tensor:
    from mambapy.pscan import pscan

    h = pscan(*_per_state(x, dt, A, B, bias))
    return ((h @ C.unsqueeze(-1)).squeeze(-1) + D * x) * F.silu(z)


def scan_cell(
    experiment: str, shape: Shape, provider: str, form: Callable[..., Tensor], which: str
) -> Cell:
    """Counted: 6 or 18 FLOPs per state and token; what enters and leaves, moved once."""
    b, d, t, n = shape
    backward, e = which != "forward", b * d * t
    torch.manual_seed(0)
    A, D, bias = -torch.arange(1.0, n + 1).repeat(d, 1), torch.ones(d), torch.randn(d) - 4

    def draw(size: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        widths = (d, d, n, n, d, d)
        drawn = [torch.randn(b, size, width, generator=generator) for width in widths]
        return (*(x.requires_grad_(backward) for x in drawn[:5]), *drawn[5:][: int(backward)])

    def run(*inputs: Tensor, by: Callable[..., Tensor] = form) -> tuple[Tensor, ...]:
        x, dt, B, C, z, *dy = inputs
        weights = [p.to(x.dtype).requires_grad_(backward) for p in (A.clone(), D, bias)]
        with torch.set_grad_enabled(backward):
            y = by(x, dt, weights[0], B, C, weights[1], z, weights[2])
        return (y, *torch.autograd.grad(y, [x, dt, B, C, z, *weights], dy)[:5]) if dy else (y,)

    return Cell(
        labels=_labels(experiment, provider, which, shape),
        flops=e * n * (18 if backward else 6),
        n_bytes=4 * (11 if backward else 4) * e + 4 * (6 if backward else 2) * b * t * n,
        needs=40 * e * n,
        n=t,
        check_at=t,
        draw=draw,
        run=run,
        truth=lambda *inputs: run(*inputs, by=python_loop),
    )


def model_rows(shape: Shape, seconds: tuple[float, float]) -> Iterator[dict[str, Any]]:
    """Loss and gradients of one batch, by transformers' model and by ours with its weights."""
    theirs, model = twins(shape)
    tokens = random_tokens(shape.b, shape.t, VOCABULARY)
    began = time.perf_counter()
    want = gradients(theirs, lambda ids: theirs(ids, use_cache=False).logits, tokens)
    took = time.perf_counter() - began
    version = importlib.metadata.version("transformers")
    labels = _labels("cpu model", f"transformers {version}", "training step", shape)
    yield labels | {"seconds": took, "repeats": 1, "error": None, "status": "ok"}

    found = gradients(model, lambda ids: model(ids)[0], tokens)
    warmup_s, time_s = seconds
    timing = measure(
        lambda: gradients(model, lambda ids: model(ids)[0], tokens),
        warmup_s=warmup_s,
        time_s=time_s,
        device=CPU,
    )
    yield _labels("cpu model", "ssmlib", "training step", shape) | {
        "seconds": timing.median,
        "p20": timing.p20,
        "p80": timing.p80,
        "repeats": timing.repeats,
        "error": relative_error([found[name] for name in want], list(want.values())),
        "status": "ok",
    }


def twins(shape: Shape) -> tuple[nn.Module, LanguageModel]:
    """transformers' Mamba with random weights, and ours with the same."""
    import transformers

    torch.manual_seed(0)
    config = transformers.MambaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.d,
        state_size=shape.n,
        num_hidden_layers=LAYERS,
        use_cache=False,
    )
    theirs = transformers.MambaForCausalLM(config)
    legend = {"M": MambaConfig(state_size=shape.n)}
    return theirs, twin_of(theirs, ModelConfig(VOCABULARY, shape.d, "M" * LAYERS, legend))


def _per_state(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """exp(dt A) and dt B x, (b t d n)."""
    dt = F.softplus(dt + bias)
    return torch.exp(dt.unsqueeze(-1) * A), (dt * x).unsqueeze(-1) * B.unsqueeze(2)


def _labels(experiment: str, provider: str, which: str, shape: Shape) -> dict[str, Any]:
    names = {"experiment": experiment, "provider": provider, "pass": which}
    sizes = {"b": shape.b, "d": shape.d, "n": shape.t, "state_size": shape.n}
    return names | sizes | {"dtype": "float32", "threads": torch.get_num_threads()}
