"""What is trained: the models of experiments 5 and 6, in the order of their importance.

selective_copying   three systems in three wrappers, and Mamba with its pieces left out
induction           Mamba against attention, and what each needs for it
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from torch import Tensor

from ssmlib.bench.selection.wrappers import (
    LongConvSystem,
    S4DSystem,
    S6System,
    SystemConfig,
    WrapperConfig,
)
from ssmlib.mixers.attention import AttentionConfig
from ssmlib.mixers.mamba import SELECTIVE, MambaConfig
from ssmlib.model import MixerConfig, ModelConfig
from ssmlib.recall import induction, selective_copying

LAYERS = 2
EXPERIMENTS = ("selective_copying", "induction")


@dataclass(frozen=True)
class Size:
    """How much of it, and how long.

    length: of the sequences trained on; tested: the lengths asked for afterwards, on at most
    `sequences` each. items, vocab: of the task (`ssmlib.recall`). d, d_attention: channels of a
    model, without attention and with. n, m: numbers of state per channel, of a time-invariant
    system and of a selective one; dt_max: where their time steps end as drawn. lrs: tried in this
    order, with seed 0, until one solves the task, which is to reach `solved`. seeds: in all, at the
    best of them. pieces: how many of the ways to leave one out, see below.
    """

    length: int
    tested: tuple[int, ...]
    vocab: int
    batch: int
    steps: int
    lrs: tuple[float, ...]
    seeds: int
    solved: float
    schedule: str
    d: int = 64
    d_attention: int = 128
    items: int = 16
    n: int = 64
    m: int = 16
    dt_max: float = 0.1
    sequences: int = 512
    pieces: int = 9

    def draw(
        self, experiment: str, batch: int, length: int, seed: int, device: str
    ) -> tuple[Tensor, Tensor]:
        """A batch of the experiment's task."""
        if experiment == "induction":
            return induction(batch, length, self.vocab, seed, device)
        return selective_copying(batch, length, self.items, self.vocab, seed, device)


SIZES = {
    "selective_copying": {
        "full": Size(
            length=512,
            tested=(512, 4096),
            vocab=16,
            items=16,
            batch=16,
            steps=60000,
            lrs=(1e-3, 3e-3, 3e-4),
            seeds=3,
            solved=0.97,
            schedule="cosine",
            pieces=4,
        ),
        "small": Size(
            length=64,
            tested=(64, 256),
            vocab=8,
            items=3,
            batch=16,
            steps=1200,
            lrs=(2e-3, 5e-3, 1e-3),
            seeds=1,
            solved=0.97,
            schedule="cosine",
            d=48,
            n=32,
            m=8,
            dt_max=1.0,
            pieces=3,
        ),
        "tiny": Size(
            length=12,
            tested=(12, 20),
            vocab=5,
            items=2,
            batch=4,
            steps=4,
            lrs=(1e-2, 1e-3),
            seeds=2,
            solved=1.1,
            schedule="cosine",
            d=8,
            n=4,
            m=2,
        ),
    },
    "induction": {
        "full": Size(
            length=256,
            tested=tuple(2**k for k in range(6, 21)),
            vocab=16,
            batch=8,
            steps=204800,
            lrs=(1e-3, 2e-4),
            seeds=3,
            solved=0.99,
            schedule="constant",
        ),
        "small": Size(
            length=32,
            tested=tuple(2**k for k in range(4, 11)),
            sequences=64,
            vocab=8,
            batch=32,
            steps=300,
            lrs=(3e-3, 1e-3),
            seeds=3,
            solved=0.99,
            schedule="constant",
            d=32,
            d_attention=64,
            m=8,
        ),
        "tiny": Size(
            length=12,
            tested=(8, 12, 20),
            vocab=5,
            batch=4,
            steps=4,
            lrs=(1e-2,),
            seeds=1,
            solved=1.1,
            schedule="constant",
            d=8,
            d_attention=16,
            m=2,
        ),
    },
}


@dataclass(frozen=True)
class Case:
    """A model and its labels: part "grid" or "pieces", layer, and what is special about it.

    longest: the longest sequence that it is asked about. in_pieces: whether it keeps a state.
    """

    experiment: str
    part: str
    layer: str
    variant: str
    model: ModelConfig
    longest: int = 2**20
    in_pieces: bool = False

    @property
    def name(self) -> tuple[str, ...]:
        return tuple(self.labels.values())

    @property
    def labels(self) -> dict[str, str]:
        return {
            "experiment": self.experiment,
            "part": self.part,
            "layer": self.layer,
            "variant": self.variant,
        }


def cases_of(experiment: str, size: Size) -> Iterator[Case]:
    """The experiment's cases at this size."""
    yield from (_heads if experiment == "induction" else _copying)(size)


def _copying(size: Size) -> Iterator[Case]:
    mamba = MambaConfig(size.m, dt_max=size.dt_max)
    systems: dict[str, SystemConfig] = {
        "s6": S6System(size.m, dt_max=size.dt_max),
        "s4d": S4DSystem(size.n, dt_max=size.dt_max),
        "long_conv": LongConvSystem(size.length),
    }
    for (layer, system), wrapper in product(systems.items(), ("mamba", "plain", "h3")):
        glyph: MixerConfig = WrapperConfig(system, wrapper)
        if (layer, wrapper) == ("s6", "mamba"):
            glyph = mamba  # the same layer, as tests/test_selection.py asserts
        yield _case("selective_copying", "grid", layer, wrapper, glyph, size)
    for variant, glyph in list(pieces(mamba).items())[: size.pieces]:
        yield _case("selective_copying", "pieces", "s6", variant, glyph, size)


def pieces(whole: MambaConfig) -> dict[str, MambaConfig]:
    """It without one thing, or with one selection alone, or with all but one, or with none."""
    variants = {
        "no selection": replace(whole, selective=()),
        "no conv": replace(whole, conv_width=None),
        "no gate": replace(whole, gated=False),
    }
    for name in SELECTIVE:
        others = tuple(other for other in SELECTIVE if other != name)
        variants[f"{name} alone"] = replace(whole, selective=(name,))
        variants[f"{name} fixed"] = replace(whole, selective=others)
    return variants


def _heads(size: Size) -> Iterator[Case]:
    mamba = MambaConfig(size.m, dt_max=size.dt_max)
    yield _case("induction", "grid", "mamba", "", mamba, size, in_pieces=True)
    for variant, base in (("rotary", 10000.0), ("no positions", None)):
        glyph = AttentionConfig(heads=8, base=base)
        yield _case("induction", "grid", "attention", variant, glyph, size, size.d_attention, 2**14)
    for variant, glyph in pieces(mamba).items():
        if variant in ("no conv", "no selection"):
            yield _case(
                "induction", "pieces", "mamba", variant, glyph, size, longest=2**14, in_pieces=True
            )


def _case(
    experiment: str,
    part: str,
    layer: str,
    variant: str,
    glyph: MixerConfig,
    size: Size,
    d: int | None = None,
    longest: int = 2**20,
    in_pieces: bool = False,
) -> Case:
    model = ModelConfig(size.vocab, size.d if d is None else d, "x" * LAYERS, {"x": glyph})
    return Case(experiment, part, layer, variant, model, longest, in_pieces)
