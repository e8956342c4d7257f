"""The suite `model_cpu`: a Mamba of 130 million parameters makes tokens on two threads.

`cpu generation`: the likeliest tokens after a prompt, by transformers' `generate` and by ours with
its weights, which must be the same tokens. Without transformers, ours alone.
"""

import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssmlib.bench.cpu import two_cores
from ssmlib.bench.table import Row, collect, number, table, text
from ssmlib.bench.timing import measure
from ssmlib.bench.twins import twin_of
from ssmlib.generate import generate
from ssmlib.mixers.mamba import MambaConfig
from ssmlib.model import LanguageModel, ModelConfig

COLUMNS = (
    ("", 14, text("experiment")),
    ("provider", 24, text("provider")),
    ("d", 5, text("d")),
    ("prompt", 6, text("n")),
    ("new", 5, text("new")),
    ("s", 8, number("seconds")),
    ("tokens/s", 9, number("tokens_per_s")),
    ("", 0, lambda row: "" if row["status"] == "ok" else str(row["status"])),
)


class Shape(NamedTuple):
    """Features, layers and vocabulary of the model, tokens of the prompt, new ones."""

    d: int
    layers: int
    vocabulary: int
    prompt: int
    new: int


FULL = Shape(d=768, layers=24, vocabulary=50280, prompt=32, new=64)
TINY = Shape(d=16, layers=2, vocabulary=64, prompt=4, new=6)


def run(
    quick: bool = False,
    device: str | torch.device | None = None,
    progress: Callable[[str], None] | None = None,
    save: Callable[[Row], None] | None = None,
) -> list[dict[str, Any]]:
    """All rows, on the CPU; quick=True takes a tiny size.

    progress is called with a line of text after each row, save with the row itself.
    """
    return collect(rows(quick), COLUMNS, progress, save)


def summary(rows: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    return table(rows, COLUMNS)


def rows(quick: bool = False) -> Iterator[dict[str, Any]]:
    """The rows one by one; the first one's tokens are those that are wanted."""
    shape = TINY if quick else FULL
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(shape.vocabulary, (1, shape.prompt), generator=generator)
    want: Tensor | None = None
    with two_cores():
        for provider, make in makers(shape).items():
            got = make(prompt)
            want = got if want is None else want
            same = torch.equal(got, want)
            timing = measure(
                lambda make=make: make(prompt),
                warmup_s=0.0,
                time_s=0.01 if quick else 8.0,
                device="cpu",
            )
            yield {
                "experiment": "cpu generation",
                "provider": provider,
                "pass": "greedy",
                "b": 1,
                **{"d": shape.d, "layers": shape.layers, "n": shape.prompt, "new": shape.new},
                "threads": torch.get_num_threads(),
                "dtype": "float32",
                "seconds": timing.median,
                "p20": timing.p20,
                "p80": timing.p80,
                "repeats": timing.repeats,
                "tokens_per_s": shape.new / timing.median,
                "status": "ok" if same else "wrong: other tokens",
            }


def makers(shape: Shape) -> dict[str, Callable[[Tensor], Tensor]]:
    """Every provider's function from a prompt to the whole, all of one model's weights."""
    torch.manual_seed(0)
    config = ModelConfig(shape.vocabulary, shape.d, "M" * shape.layers, {"M": MambaConfig()})
    if importlib.util.find_spec("transformers") is None:
        return {"ssmlib": _ours(config.build().eval(), shape)}
    import transformers

    sizes = {"vocab_size": shape.vocabulary, "hidden_size": shape.d}
    sizes |= {"num_hidden_layers": shape.layers}
    theirs = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes)).eval()
    settings = {"max_new_tokens": shape.new, "do_sample": False, "pad_token_id": 0}
    settings["eos_token_id"] = None

    def make(prompt: Tensor) -> Tensor:
        return theirs.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)

    version = importlib.metadata.version("transformers")
    ours = _ours(twin_of(theirs, config).eval(), shape)
    return {f"transformers {version}": make, "ssmlib": ours}


def _ours(model: LanguageModel, shape: Shape) -> Callable[[Tensor], Tensor]:
    return lambda prompt: generate(model, prompt, shape.new)
