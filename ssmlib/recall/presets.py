"""Published settings of the tasks, by name, and what a guess is worth in each.

`PRESETS["mqar/zoology-256"]` says what was trained on and what was tested, as arguments of the
task; `preset.draw(batch, seed)` draws from its hardest test. A grammar is drawn when it is used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ssmlib.recall.drawing import Batch, Device
from ssmlib.recall.kinds import TASKS
from ssmlib.recall.needles import CAPITALS
from ssmlib.recall.treecall import Grammar

Setting = Mapping[str, Any]


@dataclass(frozen=True)
class Preset:
    """One published setting: arguments of the task, without batch and seed.

    trained: what training mixes, or goes through in this order where `note` says so. tested: what
    is evaluated; the last is the hardest. source: a key of the book's references. note: what a
    reader of the source should know. written: how the grammar of all settings is drawn, if any.
    """

    task: str
    trained: tuple[Setting, ...]
    tested: tuple[Setting, ...]
    source: str
    note: str = ""
    written: Setting | None = None

    def draw(self, batch: int, seed: int, device: Device = "cpu") -> Batch:
        """A batch of the hardest test."""
        return TASKS[self.task].draw(batch=batch, seed=seed, device=device, **self.hardest)

    def chance(self) -> float:
        """What a blind guess scores in the hardest test."""
        return TASKS[self.task].chance(**self.hardest)

    def vocab(self) -> int | None:
        """How many tokens the hardest test has; None where inputs are numbers."""
        vocab = TASKS[self.task].vocab
        return None if vocab is None else vocab(**self.hardest)

    @cached_property
    def hardest(self) -> Setting:
        """The arguments of the hardest test, grammar included."""
        return {**self.tested[-1], **self.grammar}

    @cached_property
    def grammar(self) -> Setting:
        """The argument `grammar`, where there is one."""
        return {} if self.written is None else {"grammar": Grammar.random(**self.written)}


def _settings(names: str, rows: list[tuple], **common: Any) -> tuple[Setting, ...]:
    return tuple({**dict(zip(names.split(), row, strict=True)), **common} for row in rows)


def _alike(task: str, source: str, note: str = "", **setting: Any) -> Preset:
    """Tested as trained."""
    return Preset(task, (setting,), (setting,), source, note)


def _mqar() -> dict[str, Preset]:
    presets = {
        f"mqar/zoology-{length}": _alike(
            "mqar", "arora2023zoology", length=length, pairs=pairs, vocab=8192, filler="zero"
        )
        for length, pairs in [(64, 4), (128, 8), (256, 16), (512, 64)]
    }
    tests = [(64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256)]
    presets["mqar/based"] = Preset(
        "mqar",
        _settings("length pairs", [(64, 4), (128, 8), (256, 16), (256, 32), (256, 64)], vocab=8192),
        _settings("length pairs", tests, vocab=8192),
        "arora2024based",
        "100,000 examples of the first setting and 20,000 of each other; 1,000 of each test, whose"
        " accuracies are averaged",
    )
    for length in (256, 512, 1024):
        rows = [(length, length // share) for share in (32, 16, 8, 4)]
        presets[f"mqar/mamba2-{length}"] = Preset(
            "mqar",
            _settings("length pairs", rows, vocab=8192),
            _settings("length pairs", rows[-1:], vocab=8192),
            "dao2024transformers",
            "a curriculum: training goes through the settings in this order",
        )
    return presets


def _pairs() -> dict[str, Preset]:
    h3 = {
        name: _alike(
            "associative_recall",
            "fu2022hungry",
            "there the loss in training is over all tokens",
            pairs=pairs,
            keys=range(1, 1 + n),
            values=range(1 + n, 1 + 2 * n),
            repeated=True,
        )
        for name, pairs, n in [("associative/h3", 20, 9), ("associative/h3-small", 10, 4)]
    }
    return h3 | {
        "associative/mechanistic": _alike(
            "associative_recall",
            "arora2025mechanistic",
            "their configuration ar_32 counts tokens: 32 of them are 16 pairs",
            pairs=16,
            keys=range(1, 4097),
            values=range(4097, 8193),
        ),
        "joint/hax": _alike(
            "joint_recall", "zhan2025overcoming", contexts=(5, 16), keys=(5, 16), values=16
        ),
    }


def _copying() -> dict[str, Preset]:
    strings = [(50, 50), (100, 100), (200, 200), (400, 400), (1000, 1000)]
    presets = {
        "copying/repeat": Preset(
            "copying",
            ({"length": 220, "shortest": 5, "longest": 50, "packed": True},),
            tuple(
                {"length": 2 * longest + 3, "shortest": shortest, "longest": longest}
                for shortest, longest in strings
            ),
            "jelassi2024repeat",
            "the least length in training is not stated; the end of a string is not asked here",
        )
    }
    for kind in ("prefix", "suffix"):
        common = {"kind": kind, "given": 3, "answer": 5}
        presets[f"lookup/{kind}"] = Preset(
            "lookup",
            ({"length": 220, "shortest": 10, "longest": 30, "packed": True, **common},),
            tuple({"length": n + 12, "shortest": n, "longest": n, **common} for n in (30, 60, 100)),
            "jelassi2024repeat",
            "how many letters are given and how many are answered is not stated",
        )
    return presets


def _streams() -> dict[str, Preset]:
    return {
        "selective_copying/mamba": _alike(
            "selective_copying",
            "gu2023mamba",
            "whether their 4,096 count the order to repeat is not stated",
            length=4096,
            items=16,
            vocab=16,
        ),
        "induction/mamba": Preset(
            "induction",
            ({"length": 256, "vocab": 16},),
            tuple({"length": 2**k, "vocab": 16} for k in range(6, 21)),
            "gu2023mamba",
        ),
        "induction/h3": _alike("induction", "fu2022hungry", length=31, vocab=19),
        "needle/passkey": Preset(
            "needle",
            ({"length": 512},),
            tuple({"length": 512 * 2**k} for k in range(7)),
            "mohtashami2023landmark",
            "the text is as long as it is here by our choice; there, it is English",
        ),
        "needle/pineapple": _alike(
            "needle",
            "kamradt2023needle",
            "the secret is the same in every row: to show, not to train on",
            length=1024,
            symbols=9,
            alphabet=CAPITALS,
            secret="PINEAPPLE",
            depth=0.5,
        ),
        "needle/number": _alike(
            "needle",
            "mohtashami2023landmark",
            "ours: 20 digits, and 10,000 tokens before they are asked",
            length=10_041,
            symbols=20,
            depth=0.0,
        ),
    }


def _treecall() -> dict[str, Preset]:
    def preset(testing: bool = False, **written: Any) -> Preset:
        return Preset(
            "treecall",
            ({"length": 1024},),
            ({"length": 1024, "testing": testing},),
            "arora2025mechanistic",
            "their grammars were drawn from no stated seed; these are drawn from 0",
            {"seed": 0, **written},
        )

    return {
        "treecall/5-20": preset(symbols=5),
        "treecall/10-20": preset(symbols=10),
        "treecall/5-8192": preset(symbols=5, terminals=8192),
        "treecall/held-out": preset(symbols=5, held_out=0.2, testing=True),
    }


def _mad() -> dict[str, Preset]:
    fuzzy = {"length": 128, "vocab": 16}
    all_tokens = "there the loss in training is over all tokens"
    return {
        "repeats/mad": _alike("repeats", "poli2024mechanistic", all_tokens, length=127, vocab=16),
        "repeats/mad-noisy": _alike(
            "repeats",
            "poli2024mechanistic",
            all_tokens,
            length=127,
            vocab=32,
            noise=0.2,
            noise_vocab=16,
        ),
        "motifs/mad-fuzzy": Preset(
            "motifs",
            (fuzzy,),
            ({**fuzzy, "key_size": (3, 3)},),
            "poli2024mechanistic",
            all_tokens,
        ),
        "selective_copying/mad": _alike(
            "selective_copying",
            "poli2024mechanistic",
            "there the order to repeat is given once, and blanks follow it",
            length=256,
            items=16,
            vocab=16,
        ),
        "compression/mad": _alike("compression", "poli2024mechanistic", length=32, vocab=16),
        "memorization/mad": _alike("memorization", "poli2024mechanistic", length=32, vocab=256),
    }


PRESETS: dict[str, Preset] = {
    **_mqar(),
    **_pairs(),
    **_copying(),
    **_streams(),
    **_treecall(),
    "regression/garg": _alike(
        "regression", "garg2022can", "there x and y are tokens of their own", points=41, d=20
    ),
    **_mad(),
}
