"""Experiments 3 and 4: the same wrapper around different layers, each at its best learning rate.

    digits    S4D from five starts, S4 from HiPPO-LegS, A, B and dt frozen or learned, on 784 pixels
    listops   S4D against attention, both causal, both from scratch, on short lists

Every layer is trained at each learning rate with seed 0, and at the best of them with the other
seeds: so what fails has failed at all of them.
"""

import math
import time
from collections.abc import Callable, Container, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from ssmlib.bench.ledger import Ledger, Row
from ssmlib.layers import MLPConfig
from ssmlib.mixers.attention import AttentionConfig
from ssmlib.mixers.s4 import S4Config, S4DConfig
from ssmlib.model import SequenceConfig
from ssmlib.tasks import digits, listops
from ssmlib.tasks.lists import PADDING, VOCAB_SIZE
from ssmlib.train import Task, TrainConfig, train

TESTED = 4096  # examples, of which the evaluation of a short run draws fewer
MEMORY = ("A", "B", "dt")  # what "frozen" keeps as it was drawn
STARTS = ("random", "gaussian", "real", "inv", "lin", "legs")


@dataclass(frozen=True)
class Size:
    """t steps (of digits, a square), d channels, n numbers of state, layers; how long to train."""

    t: int
    d: int
    n: int
    layers: int
    batch: int
    steps: int
    lrs: tuple[float, ...]
    seeds: int
    shortest: int = 0
    pool: int = 0


SIZES = {
    "digits": {
        "full": Size(784, 64, 64, 2, 64, 1500, (3e-3, 1e-2, 3e-2), 3),
        "small": Size(196, 32, 32, 2, 16, 600, (2e-2,), 1),
        "tiny": Size(64, 4, 4, 1, 4, 4, (1e-2,), 1),
    },
    "listops": {
        "full": Size(128, 128, 64, 4, 128, 4000, (3e-4, 1e-3, 3e-3, 1e-2), 3, 32, 2**18),
        "small": Size(32, 48, 16, 2, 32, 1000, (2e-3, 5e-3), 1, 8, 2**14),
        "tiny": Size(16, 8, 4, 1, 4, 4, (1e-2,), 1, 4, 64),
    },
}
Build = Callable[[], nn.Module]


def digit_models(size: Size) -> Iterator[tuple[dict[str, str], Build]]:
    """Every start, frozen and learned; and S4 itself beside its diagonal part."""
    for layer, start in [("s4d", name) for name in STARTS] + [("s4", "legs")]:
        for memory, freeze in (("frozen", MEMORY), ("learned", ())):
            make = S4DConfig if layer == "s4d" else S4Config
            frozen = (*freeze, "P") if layer == "s4" and freeze else freeze
            init = "random" if start == "gaussian" else start
            glyph = make(state_size=size.n, init=init, freeze=frozen)
            labels = {"layer": layer, "init": start, "memory": memory}
            yield labels, partial(_digit_model, glyph, size, start == "gaussian")


def _digit_model(glyph: S4DConfig | S4Config, size: Size, gaussian: bool) -> nn.Module:
    config = SequenceConfig(
        d_output=10,
        d_model=size.d,
        pattern="S" * size.layers,
        legend={"S": glyph},
        d_input=1,
        pooling="mean",
    )
    model = config.build()
    if gaussian:
        for layer in model.backbone.layers:
            _set_poles(layer.mixer.kernel, gaussian_poles(size.n))
    return model


def gaussian_poles(n: int) -> Tensor:
    """The upper eigenvalues of a random normal matrix whose disk of them lies left of zero: (n/2,).

    Real ones, which come unpaired, count as pairs of equals. The initialisation that HiPPO's was
    first compared with, made stable.
    """
    values = torch.linalg.eigvals(torch.randn(n, n, dtype=torch.float64) / math.sqrt(n)) - 1
    upper = values[values.imag.argsort(descending=True)][: n // 2]
    return torch.complex(upper.real.clamp(max=-1e-3), upper.imag.clamp(min=0.0))


@torch.no_grad()
def _set_poles(system: nn.Module, poles: Tensor) -> None:
    system.log_A_real.copy_((-poles.real).log().expand_as(system.log_A_real))
    system.A_imag.copy_(poles.imag.expand_as(system.A_imag))


def listops_models(size: Size) -> Iterator[tuple[dict[str, str], Build]]:
    """S4D, its time scales from that of one list to that of the sequence, and attention."""
    glyphs = {
        "s4d": S4DConfig(state_size=size.n, init="lin", dt_min=1 / size.t, dt_max=0.5),
        "attention": AttentionConfig(heads=max(size.d // 32, 2)),
    }
    for layer, glyph in glyphs.items():
        config = SequenceConfig(
            d_output=10,
            d_model=size.d,
            pattern="x-" * size.layers,
            legend={"x": glyph, "-": MLPConfig()},
            vocab_size=VOCAB_SIZE,
            pooling="mean",
            padding=PADDING,
        )
        yield {"layer": layer}, config.build


def digit_task(size: Size, device: torch.device) -> Task:
    """Fresh drawings for every batch."""
    return Task(lambda seed: digits(size.batch, seed, math.isqrt(size.t), device=device))


def listops_task(size: Size, device: torch.device) -> Task:
    """Batches from a pool of trees, and from another for the tests: short trees are thrown away."""
    make = partial(listops, length=size.t, shortest=size.shortest, device=device)
    pools = [make(size.pool, seed=0), make(size.pool // 8, seed=1)]

    def draw(seed: int, pool: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        generator = torch.Generator(device).manual_seed(seed)
        which = torch.randint(len(pool[0]), (size.batch,), generator=generator, device=device)
        return pool[0][which], pool[1][which]

    return Task(partial(draw, pool=pools[0]), {"test": partial(draw, pool=pools[1])})


EXPERIMENTS = {"digits": (digit_models, digit_task), "listops": (listops_models, listops_task)}


def rows(
    experiment: str,
    size: Size,
    ledger: Ledger,
    device: torch.device,
    only: Container[tuple[str, ...]] | None = None,
) -> Iterator[Row]:
    """One row for each layer, learning rate and seed that was trained.

    only: the layers wanted, by the values of their labels, ("s4d", "lin", "frozen") or ("s4d",).
    """
    models, make_task = EXPERIMENTS[experiment]
    task = make_task(size, device)
    common = {"experiment": experiment, **asdict(size)}
    del common["lrs"], common["seeds"]
    for names, build in models(size):
        if only is not None and tuple(names.values()) not in only:
            continue
        labels = common | names

        def cell(lr: float, seed: int, labels: dict = labels, build: Build = build) -> list[Row]:
            make = partial(_train, experiment, size, build, task, lr, seed, device)
            return ledger.fill(labels | {"row": "trained", "lr": lr, "seed": seed}, make)

        swept = [row for lr in size.lrs for row in cell(lr, 0)]
        yield from swept
        best = max(swept, key=lambda row: row["test_accuracy"] or 0.0)["lr"]
        for seed in range(1, size.seeds):
            yield from cell(best, seed)


def _train(
    experiment: str,
    size: Size,
    build: Build,
    task: Task,
    lr: float,
    seed: int,
    device: torch.device,
) -> list[Row]:
    on_gpu = device.type == "cuda"
    config = TrainConfig(
        steps=size.steps,
        lr=lr,
        weight_decay=0.01,
        warmup=size.steps // 20,
        seed=seed,
        precision="bfloat16" if on_gpu and experiment == "listops" else "float32",
        test_batches=min(-(-TESTED // size.batch), size.steps),
        captured=on_gpu,
    )
    began = time.monotonic()
    try:
        row = train(model := _built(build, seed, device), task, config)[-1]
    except RuntimeError:  # what cannot be captured says so this way
        if not config.captured:
            raise
        torch.cuda.synchronize()
        config, began = replace(config, captured=False), time.monotonic()
        row = train(model := _built(build, seed, device), task, config)[-1]
    seconds = time.monotonic() - began
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    kept = {key: row[key] for key in ("loss", "test_loss", "test_accuracy", "status")}
    return [{"parameters": parameters, "captured": config.captured, "seconds": seconds} | kept]


def _built(build: Build, seed: int, device: torch.device) -> nn.Module:
    """The model as this seed draws it, on the CPU, so that every device trains the same one."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return build().to(device)
