"""What a parameter is called there: a table of prefixes for each kind of layer.

Here a layer is one glyph of the pattern; there it may be several, with a norm before each. `Table`
says which glyph is the last of a layer, and how the names begin within it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ssmlib.model import ModelConfig


@dataclass(frozen=True)
class Pieces:
    """A tensor that is in pieces there: those of a row are joined, the rows are stacked."""

    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Part:
    """Chunk `index` of `count`, along the first axis, of a tensor that is larger there."""

    name: str
    index: int
    count: int


Source = str | Pieces | Part


@dataclass(frozen=True)
class Table:
    """outside: prefixes of what stands in no layer. layer: the prefix of one, {} is its number.

    inside: for each glyph, the prefixes within its layer. last: the glyphs that end one. special:
    from a name there, and the tensor's first size here, how it is kept where it is not as it is.
    """

    outside: Mapping[str, str]
    layer: str
    inside: Mapping[str, Mapping[str, str]]
    last: str
    special: Callable[[str, int], Source] = field(default=lambda name, size: name)

    def sources(self, name: str, config: ModelConfig, size: int) -> list[Source]:
        """What the parameter `name` of a model is there: any of these, the first by rights.

        config: in the form of `settled`. size: of the parameter's first axis.
        """
        start = "backbone.layers."
        if not name.startswith(start):
            return [renamed(name, self.outside)]
        number, _, rest = name.removeprefix(start).partition(".")
        at, pattern = int(number), config.pattern
        prefix = self.layer.format(sum(glyph in self.last for glyph in pattern[:at]))
        return [self.special(prefix + renamed(rest, self.inside[pattern[at]]), size)]


def renamed(name: str, prefixes: Mapping[str, str]) -> str:
    """The name with the longest of the prefixes that it has replaced."""
    ours = max((p for p in prefixes if name.startswith(p)), key=len, default=None)
    assert ours is not None, f"{name} is in no table"
    return prefixes[ours] + name.removeprefix(ours)


def names_of(source: Source) -> list[str]:
    """The tensors there that a parameter is made of."""
    if isinstance(source, Pieces):
        return [name for row in source.rows for name in row]
    return [source.name if isinstance(source, Part) else source]


def fetch(source: Source, get: Callable[[str], Tensor]) -> Tensor:
    """The parameter, from the tensors there."""
    if isinstance(source, Pieces):
        return torch.stack([torch.cat([get(name) for name in row]) for row in source.rows])
    if isinstance(source, Part):
        return get(source.name).chunk(source.count)[source.index]
    return get(source)


def spread(parameters: Mapping[Source, Tensor]) -> dict[str, Tensor]:
    """The tensors there, from the parameters."""
    tensors: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for source, x in parameters.items():
        if isinstance(source, Part):
            parts.setdefault(source.name, {})[source.index] = x
        elif isinstance(source, Pieces):
            for row, own in zip(source.rows, x, strict=True):
                tensors |= zip(row, own.chunk(len(row)), strict=True)
        else:
            tensors[source] = x
    return tensors | {n: torch.cat([own[i] for i in sorted(own)]) for n, own in parts.items()}


def sizes(source: Source, size: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors there, from the parameter's."""
    if isinstance(source, Pieces):
        return {n: (size[1] // len(row), *size[2:]) for row in source.rows for n in row}
    if isinstance(source, Part):
        return {source.name: (size[0] * source.count, *size[1:])}
    return {source: size}
