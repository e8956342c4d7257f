"""The suite `ssd_cpu`: a training step of a small Mamba-2 on two threads, against transformers'.

`cpu mamba-2`: loss and gradients of a language model of two layers, by transformers' model, in
chunks of 256 tokens (its default) and of 64, and by ours with its weights. The gradients must be
the same: errors are those from its default's.
"""

import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssmlib.bench.cell import TOLERANCE, relative_error
from ssmlib.bench.cpu import allocated_at_most, two_cores
from ssmlib.bench.table import Row, collect, number, table, text
from ssmlib.bench.timing import measure
from ssmlib.bench.twins import gradients, random_tokens, twin_of
from ssmlib.mixers.mamba2 import Mamba2Config
from ssmlib.model import ModelConfig

COLUMNS = (
    ("", 11, text("experiment")),
    ("provider", 30, text("provider")),
    ("", 13, text("pass")),
    ("d", 5, text("d")),
    ("t", 5, text("n")),
    ("ms", 9, number("seconds", 1e3)),
    ("peak MB", 9, number("peak_bytes", 1e-6, ".1f")),
    ("error", 7, number("error", form=".1e")),
    ("", 0, lambda row: "" if row["status"] == "ok" else str(row["status"])),
)
LAYERS, VOCABULARY = 2, 256
Logits = Callable[[Tensor], Tensor]


class Shape(NamedTuple):
    """Batch, features of a model, length, state size, channels of a head, transformers' chunks."""

    b: int
    d: int
    t: int
    n: int
    p: int
    chunks: tuple[int, ...]


FULL = Shape(b=1, d=768, t=512, n=128, p=64, chunks=(256, 64))
TINY = Shape(b=2, d=16, t=33, n=4, p=8, chunks=(16, 8))


def run(
    quick: bool = False,
    device: str | torch.device | None = None,
    progress: Callable[[str], None] | None = None,
    save: Callable[[Row], None] | None = None,
) -> list[dict[str, Any]]:
    """All rows, on the CPU; quick=True takes a tiny size. Without transformers, ours alone.

    progress is called with a line of text after each row, save with the row itself.
    """
    return collect(rows(quick), COLUMNS, progress, save)


def summary(rows: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    return table(rows, COLUMNS)


def rows(quick: bool = False) -> Iterator[dict[str, Any]]:
    """The rows one by one."""
    shape, (warmup_s, time_s) = (TINY, (0.0, 0.02)) if quick else (FULL, (0.5, 4.0))
    tokens, want = random_tokens(shape.b, shape.t, VOCABULARY), {}
    with two_cores():
        for provider, (model, logits) in models(shape).items():

            def step(model: nn.Module = model, logits: Logits = logits) -> dict[str, Tensor]:
                return gradients(model, logits, tokens)

            found = step()
            want = want or found
            error = relative_error([found[name] for name in want], list(want.values()))
            timing = measure(step, warmup_s=warmup_s, time_s=time_s, device="cpu")
            wrong = f"wrong: relative error {error:.1e}"
            yield _labels(provider, shape) | {
                "seconds": timing.median,
                "p20": timing.p20,
                "p80": timing.p80,
                "repeats": timing.repeats,
                "peak_bytes": allocated_at_most(step),
                "error": error,
                "status": "ok" if error <= TOLERANCE["float32"] else wrong,
            }


def models(shape: Shape) -> dict[str, tuple[nn.Module, Logits]]:
    """Every provider's model and its logits, all with the same weights; the default first."""
    legend = {"M": Mamba2Config(state_size=shape.n, head_dim=shape.p)}
    config = ModelConfig(VOCABULARY, shape.d, "M" * LAYERS, legend, tied=False)
    found, model = {}, config.build()
    if importlib.util.find_spec("transformers") is not None:
        version = importlib.metadata.version("transformers")
        for chunk in shape.chunks:
            theirs = published(shape, chunk)
            found[f"transformers {version}, chunk {chunk}"] = theirs, partial(_logits, theirs)
            model = twin_of(theirs, config)
    return found | {"ssmlib": (model, lambda ids: model(ids)[0])}


def published(shape: Shape, chunk: int) -> nn.Module:
    """transformers' model with random weights, the same for every chunk size."""
    import transformers

    torch.manual_seed(0)
    config = transformers.Mamba2Config(
        vocab_size=VOCABULARY,
        hidden_size=shape.d,
        state_size=shape.n,
        num_hidden_layers=LAYERS,
        num_heads=2 * shape.d // shape.p,
        head_dim=shape.p,
        n_groups=1,
        chunk_size=chunk,
        tie_word_embeddings=False,
        use_cache=False,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.Mamba2ForCausalLM(config).eval()


def _logits(theirs: nn.Module, ids: Tensor) -> Tensor:
    return theirs(ids, use_cache=False).logits


def _labels(provider: str, shape: Shape) -> dict[str, Any]:
    names = {"experiment": "cpu mamba-2", "provider": provider, "pass": "training step"}
    sizes = {"b": shape.b, "d": shape.d, "n": shape.t, "state_size": shape.n}
    return names | sizes | {"dtype": "float32", "threads": torch.get_num_threads()}
