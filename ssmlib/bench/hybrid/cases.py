"""What is trained: so many layers, some of them attention, in one place or another."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ssmlib.bench.hybrid.stream import Stream
from ssmlib.mixers.attention import AttentionConfig
from ssmlib.mixers.mamba2 import Mamba2Config
from ssmlib.model import MixerConfig, ModelConfig
from ssmlib.shapes import check_number

PLACES = ("spread", "first", "middle", "last")
ROTARY = 10000.0


@dataclass(frozen=True)
class Size:
    """How much of it, and how long.

    stream: what is learned. layers, d: of every model. counts: of attention layers, besides none
    and all. heads: of attention; head_dim, state, expand: of Mamba-2. dt_max, A_max: where its
    steps and rates start to end. lrs: each is tried with seed 0; the best one gets the other seeds.
    test_batches: of each kind, after training.
    """

    stream: Stream
    layers: int
    d: int
    counts: tuple[int, ...]
    heads: int
    head_dim: int
    state: int
    expand: int
    batch: int
    steps: int
    lrs: tuple[float, ...]
    seeds: int
    dt_max: float = 0.1
    A_max: float = 16.0
    test_batches: int = 8
    schedule: str = "cosine"

    @property
    def length(self) -> int:
        return self.stream.length

    @property
    def legend(self) -> dict[str, MixerConfig]:
        mamba = Mamba2Config(
            self.state, self.head_dim, self.expand, dt_max=self.dt_max, A_max=self.A_max
        )
        return {"M": mamba, "*": AttentionConfig(self.heads, base=None)}

    def model(self, pattern: str, **legend: MixerConfig) -> ModelConfig:
        """A model of these sizes; `legend` may bring glyphs that the size does not have."""
        known = self.legend | legend
        used = {glyph: known[glyph] for glyph in dict.fromkeys(pattern)}
        return ModelConfig(self.stream.vocab, self.d, pattern, used, tied=False)


SIZES = {
    "full": Size(
        Stream(length=128, vocab=64, pairs=16),
        layers=8,
        d=128,
        counts=(1, 2, 4),
        heads=4,
        head_dim=64,
        state=16,
        expand=2,
        batch=32,
        steps=1000,
        lrs=(3e-3, 1e-3),
        seeds=3,
    ),
    "small": Size(
        Stream(length=32, vocab=32, pairs=8, letters=8, kinds=("text", "recall")),
        layers=2,
        d=32,
        counts=(1,),
        heads=1,
        head_dim=32,
        state=4,
        expand=1,
        batch=32,
        steps=300,
        lrs=(5e-3, 1.5e-2),
        seeds=3,
        dt_max=0.03,
        A_max=1.0,
        test_batches=2,
    ),
    "tiny": Size(
        Stream(length=16, vocab=32, pairs=2, letters=4),
        layers=3,
        d=8,
        counts=(1,),
        heads=1,
        head_dim=8,
        state=4,
        expand=1,
        batch=2,
        steps=3,
        lrs=(1e-2, 1e-3),
        seeds=2,
        test_batches=1,
    ),
}
SIZES["long"] = replace(SIZES["full"], steps=3000, lrs=(2e-3, 7e-4))


@dataclass(frozen=True)
class Case:
    """A model, and its labels: how many layers attend, where, and whether they know positions."""

    attention: int
    place: str
    positions: str
    model: ModelConfig

    @property
    def name(self) -> tuple[int, str, str]:
        return self.attention, self.place, self.positions

    @property
    def labels(self) -> dict[str, str | int]:
        names = ("attention", "place", "positions")
        return dict(zip(names, self.name, strict=True)) | {"pattern": self.model.pattern}


def pattern_of(layers: int, attention: int, place: str) -> str:
    """So many layers as glyphs, `attention` of them "*" and the others "M".

    place: "first", "last" or "middle" (a sandwich), side by side; or "spread", each in the middle
    of an equal share of the layers.
    Raises ValueError for more attention than layers, or another place.
    """
    check_number(low=1, whole=True, layers=layers)
    check_number(low=0, high=layers, whole=True, attention=attention)
    if place not in PLACES:
        raise ValueError(f"place: expected one of {', '.join(PLACES)}, got {place!r}")
    before = (layers - attention + 1) // 2
    at = {
        "first": range(attention),
        "middle": range(before, before + attention),
        "last": range(layers - attention, layers),
        "spread": [(2 * i + 1) * layers // (2 * attention) for i in range(attention)],
    }[place]
    return "".join("*" if i in at else "M" for i in range(layers))


def cases_of(size: Size) -> Iterator[Case]:
    """None; some, at each place; all, without positions as in the others, and with rotary ones.

    Of places that come to the same pattern, the first.
    """
    made: set[str] = set()
    for attention in (0, *size.counts, size.layers):
        for place in PLACES:
            case = _case(size, attention, place)
            if case.model.pattern not in made:
                yield case
            made.add(case.model.pattern)
    turned = AttentionConfig(size.heads, base=ROTARY)
    model = size.model("*" * size.layers, **{"*": turned})
    yield Case(size.layers, "spread", "rotary", model)


def _case(size: Size, attention: int, place: str) -> Case:
    pattern = pattern_of(size.layers, attention, place)
    return Case(attention, place, "none", size.model(pattern))
