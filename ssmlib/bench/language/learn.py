"""Byte-level language models of equal size on one text: with selection, without, and attention.

    mamba       the layer as published
    constant    the same layer with constants for dt, B and C: linear and time invariant
    s4d         S4D in Mamba's place: time invariant too, with a B and a C for every channel
    attention   attention with rotary positions, and SwiGLU, two of each for four Mambas

Every model is trained at each learning rate and for each number of steps with seed 0, and at the
best of them with the other seeds: on a text as short as this one all of them overfit, each after
its own number of steps. The best is chosen on the held-out text, for all models alike.
"""

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ssmlib.bench.ledger import Ledger, Row
from ssmlib.bench.selection.wrappers import S4DSystem, WrapperConfig
from ssmlib.generate import generate
from ssmlib.layers import MLPConfig
from ssmlib.mixers.attention import AttentionConfig
from ssmlib.mixers.mamba import MambaConfig
from ssmlib.model import MixerConfig, ModelConfig
from ssmlib.tasks.text import VOCAB_SIZE, bits_per_byte, corpus, frequency_bits, text_task
from ssmlib.train import TrainConfig, train

PROMPT = "The assignment statement"
SAMPLED = 400  # bytes


@dataclass(frozen=True)
class Size:
    """layers, an even number, of d features; batch sequences of t bytes; rows of a curve.

    read: how many bytes of the held-out text are read at the end, None for all.
    """

    d: int
    layers: int
    heads: int
    t: int
    batch: int
    steps: tuple[int, ...]
    lrs: tuple[float, ...]
    seeds: int
    rows: int
    read: int | None = None


FULL = Size(256, 4, 4, 1024, 16, (100, 200, 400), (5e-4, 1e-3, 2e-3), 3, 12)
TINY = Size(8, 2, 2, 32, 2, (2, 4), (1e-3, 2e-3), 2, 2, 200)


def models(size: Size) -> dict[str, ModelConfig]:
    """The four models, by name; attention's MLPs are as wide as makes the parameters equal."""
    glyphs: dict[str, dict[str, MixerConfig]] = {
        "mamba": {"M": MambaConfig()},
        "constant": {"M": MambaConfig(selective=())},
        "s4d": {"M": WrapperConfig(S4DSystem(n=16), "mamba")},
        "attention": {"*": AttentionConfig(heads=size.heads), "-": MLPConfig(_hidden(size))},
    }
    patterns = dict.fromkeys(glyphs, "M" * size.layers)
    patterns["attention"] = "*-" * (size.layers // 2)
    return {
        name: ModelConfig(VOCAB_SIZE, size.d, patterns[name], legend)
        for name, legend in glyphs.items()
    }


def learn_rows(size: Size, ledger: Ledger, device: torch.device) -> Iterator[Row]:
    """The rows of every run: its "curve" and its "held_out" bits; once, a "sample" of Mamba's."""
    texts, labels = corpus(), {"experiment": "text", "edition": corpus().edition}
    simple = {"row": "frequencies", "bits": frequency_bits(texts.train, texts.held_out)}
    yield from ledger.fill(labels | {"model": "frequencies"}, lambda: [simple | {"status": "ok"}])
    for name, config in models(size).items():

        def cell(
            how: tuple[float, int], seed: int, name: str = name, config: ModelConfig = config
        ) -> list[Row]:
            here = labels | {"model": name, "lr": how[0], "steps": how[1], "seed": seed}
            sampled = name == "mamba" and seed == 1
            return ledger.fill(here, lambda: _run(config, size, *how, seed, device, sampled))

        swept = {how: cell(how, 0) for how in itertools.product(size.lrs, size.steps)}
        for found in swept.values():
            yield from found
        best = min(swept, key=lambda how: _bits(swept[how]))
        for seed in range(1, size.seeds):
            yield from cell(best, seed)


def chosen(rows: list[Row]) -> dict[str, list[Row]]:
    """By model: the held-out rows of its seeds, at the rate and steps that were best for seed 0."""
    held_out = [row for row in rows if row["row"] == "held_out"]
    made = {}
    for name in dict.fromkeys(row["model"] for row in held_out):
        mine = [row for row in held_out if row["model"] == name]
        best = min((row for row in mine if row["seed"] == 0), key=lambda row: _bits([row]))
        how = (best["lr"], best["steps"])
        made[name] = [row for row in mine if (row["lr"], row["steps"]) == how]
    return made


def _bits(rows: list[Row]) -> float:
    held_out = next(row for row in rows if row["row"] == "held_out")
    return math.inf if held_out["bits"] is None else held_out["bits"]


def _run(
    config: ModelConfig,
    size: Size,
    lr: float,
    steps: int,
    seed: int,
    device: torch.device,
    sampled: bool,
) -> Iterator[Row]:
    """Train one model, and read the held-out text with it."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([]):  # drawn on the CPU, so that every device trains the same one
        torch.manual_seed(seed)
        model = config.build().to(device)
    how = TrainConfig(
        steps=steps,
        lr=lr,
        weight_decay=0.1,
        betas=(0.9, 0.95),
        warmup=steps // 10,
        seed=seed,
        precision="bfloat16" if on_gpu else "float32",
        evaluate_every=-(-steps // size.rows),
        test_batches=2,
        captured=on_gpu,
    )
    began = time.monotonic()
    curve = train(model, text_task(size.batch, size.t, device), how)
    seconds = time.monotonic() - began
    for row in curve:
        bits = {"train_bits": _in_bits(row["loss"]), "bits": _in_bits(row["test_loss"])}
        yield {"row": "curve", "step": row["step"], **bits, "status": row["status"]}
    carries = config.pattern.startswith("M") and isinstance(config.legend["M"], MambaConfig)
    last: Row = {
        "row": "held_out",
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_bits": _in_bits(curve[-1]["loss"]),
        "bits": _held_out(model, size),
        "carried_bits": _held_out(model, size, carried=True) if carries else None,
        "seconds": seconds,
        "status": curve[-1]["status"],
    }
    yield last
    if sampled:
        prompt = torch.tensor([list(PROMPT.encode())], device=device)
        tokens = generate(model, prompt, SAMPLED, temperature=0.8, seed=0)[0]
        said = bytes(tokens.tolist()).decode(errors="replace")
        yield {"row": "sample", "text": said, "status": "ok"}


def _held_out(model: nn.Module, size: Size, carried: bool = False) -> float | None:
    device = next(model.parameters()).device
    text = corpus().held_out[: size.read].to(device)
    bits = bits_per_byte(model.eval(), text, size.t, carried)
    return bits if math.isfinite(bits) else None


def _in_bits(nats: float | None) -> float | None:
    return None if nats is None else nats / math.log(2)


def _hidden(size: Size) -> int:
    """The width of two MLPs with which two attentions weigh as much as four Mambas do."""
    mamba, attention = (
        sum(p.numel() for p in glyph.build(size.d).parameters())
        for glyph in (MambaConfig(), AttentionConfig(heads=size.heads))
    )
    return max(1, round((2 * mamba - attention) / (3 * size.d)))
