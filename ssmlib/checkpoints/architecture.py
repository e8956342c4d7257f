"""What is known of one kind of checkpoint, and models in the form that it is written in."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple

from ssmlib.checkpoints.fields import Fields
from ssmlib.checkpoints.names import Table
from ssmlib.layers import MLPConfig, MoEConfig
from ssmlib.layers.mlp import usual_width
from ssmlib.mixers.attention import AttentionConfig
from ssmlib.mixers.mamba import MambaConfig
from ssmlib.mixers.mamba2 import Mamba2Config
from ssmlib.mixers.rglru import RGLRUConfig
from ssmlib.mixers.zamba import ZambaConfig
from ssmlib.model import ModelConfig


class Architecture(NamedTuple):
    """name: of the class there. read: a config's entries to a model's; write: the way back.

    write may fail on a model of another kind, and may lose what this kind has no word for: whoever
    writes reads back, and compares. None where nothing is written.
    """

    name: str
    table: Table
    read: Callable[[Fields], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]] | None


GLYPHS: dict[type, str] = {
    MambaConfig: "M",
    Mamba2Config: "M",
    RGLRUConfig: "R",
    AttentionConfig: "*",
    ZambaConfig: "Z",
    MLPConfig: "-",
    MoEConfig: "E",
}
STARTS = {"dt_min", "dt_max", "A_min", "A_max", "a_min", "a_max"}  # where parameters begin
SPEEDS = {"backend", "chunk_size", "capacity"}  # how it is computed; capacity: while training


def settled(config: ModelConfig) -> ModelConfig:
    """The same function of the same parameters, said in one way alone.

    Glyphs are those of the tables, sizes that were left open are written out, and what only matters
    before or while training is as it comes. Raises ValueError for a layer that no table has, and
    for two layers of a kind that differ.
    """
    letters: dict[str, str] = {}
    legend: dict[str, Any] = {}
    for glyph in dict.fromkeys(config.pattern):
        own = config.legend[glyph]
        if type(own) not in GLYPHS:
            raise ValueError(f"{type(own).__name__}: expected a layer that a checkpoint can hold")
        letter, mixer = GLYPHS[type(own)], _settled(own, config.d_model)
        if legend.setdefault(letter, mixer) != mixer:
            raise ValueError(f"{type(own).__name__}: expected all of its layers alike")
        letters[glyph] = letter
    pattern = "".join(letters[glyph] for glyph in config.pattern)
    return replace(config, pattern=pattern, legend=legend)


def _settled(c: Any, d: int) -> Any:
    if isinstance(c, ZambaConfig):
        inner = {"attention": 2 * d, "mlp": d, "mixer": d}
        return replace(
            c, **{name: _settled(getattr(c, name), size) for name, size in inner.items()}
        )
    plain = type(c)()
    names = {f.name for f in fields(c)} & (STARTS | SPEEDS)
    c = replace(c, **{name: getattr(plain, name) for name in names})
    return replace(c, **_sizes(c, d))


def _sizes(c: Any, d: int) -> dict[str, Any]:
    """What a config leaves to be worked out."""
    if isinstance(c, MambaConfig):
        return {"dt_rank": c.dt_rank or -(-d // 16), "norm_eps": c.norm_eps if c.norms else 1e-6}
    if isinstance(c, AttentionConfig):
        size = c.head_dim or d // c.heads
        sizes = {
            "head_dim": size,
            "kv_heads": c.kv_heads or c.heads,
            "scale": c.scale or size**-0.5,
        }
        return sizes if c.base else sizes | {"rotated": 1.0, "scaling": None, "max_length": None}
    if isinstance(c, MLPConfig):
        name = c.activation or ("silu" if c.gated else "gelu")
        return {"hidden": c.hidden or usual_width(d, c.gated), "activation": name}
    if isinstance(c, MoEConfig):
        return {"hidden": c.hidden or usual_width(d, gated=True)}
    return {"width": c.width or d} if isinstance(c, RGLRUConfig) else {}


def difference(wanted: Any, came: Any, path: str = "") -> str | None:
    """The first field in which two configs differ, and both values; None if they are equal."""
    if wanted == came:
        return None
    if is_dataclass(wanted) and type(wanted) is type(came):
        pairs = [(f.name, getattr(wanted, f.name), getattr(came, f.name)) for f in fields(wanted)]
    elif isinstance(wanted, dict) and isinstance(came, dict) and wanted.keys() == came.keys():
        pairs = [(key, wanted[key], came[key]) for key in wanted]
    else:
        return f"{path or 'model'}: {wanted!r}, not {came!r}"
    inner = (difference(x, y, f"{path}.{name}".lstrip(".")) for name, x, y in pairs)
    return next(filter(None, inner))
