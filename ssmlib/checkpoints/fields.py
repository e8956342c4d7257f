"""The entries of a config.json, each asked for by name and kind."""

from collections.abc import Mapping
from typing import Any

from ssmlib.attention import RopeScaling
from ssmlib.shapes import check_number

REQUIRED = object()
FLOATS = {"Infinity": float("inf"), "-Infinity": -float("inf"), "NaN": float("nan")}


class Fields:
    """Read-only access to a config; what is missing or of another kind is a ValueError.

    Where an entry is not there, its default counts: that of transformers, which leaves some out.
    """

    def __init__(self, config: Mapping[str, Any], file: str = "config.json"):
        self.config, self.file = config, file

    def __contains__(self, name: str) -> bool:
        return self.config.get(name) is not None

    def whole(self, name: str, default: Any = REQUIRED, low: int = 1) -> int:
        value = self._get(name, default)
        check_number(low=low, whole=True, **{f"{self.file}: {name}": value})
        return value

    def number(self, name: str, default: Any = REQUIRED) -> float:
        value = self._get(name, default)
        check_number(**{f"{self.file}: {name}": value})
        return float(value)

    def flag(self, name: str, default: Any = REQUIRED) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise ValueError(f"{self.file}: {name}: expected true or false, got {value!r}")
        return value

    def text(self, name: str, default: Any = REQUIRED) -> str:
        value = self._get(name, default)
        if not isinstance(value, str):
            raise ValueError(f"{self.file}: {name}: expected a string, got {value!r}")
        return value

    def several(self, name: str, default: Any = REQUIRED) -> list[Any]:
        value = self._get(name, default)
        if not isinstance(value, list | tuple):
            raise ValueError(f"{self.file}: {name}: expected a list, got {value!r}")
        return [_float(x) for x in value]

    def part(self, name: str) -> "Fields":
        """The entries of an object within; none where it is not there."""
        value = self._get(name, {})
        if not isinstance(value, dict):
            raise ValueError(f"{self.file}: {name}: expected an object, got {value!r}")
        return Fields(value, f"{self.file}: {name}")

    def only(self, **wanted: Any) -> None:
        """Refuse entries with which the model would compute something else than it does here."""
        for name, value in wanted.items():
            came = self._get(name, value)
            if came != value:
                raise ValueError(f"{self.file}: {name}: expected {value!r}, got {came!r}")

    def _get(self, name: str, default: Any) -> Any:
        value = self.config.get(name)
        if value is not None:
            return value
        if default is REQUIRED:
            raise ValueError(f"{self.file}: {name}: expected an entry, got none")
        return default


def rope(fields: Fields, share: float = 1.0) -> dict[str, Any]:
    """What `AttentionConfig` is told of a rotary embedding: base, rotated and scaling.

    Reads rope_parameters, and what stood in its place before transformers 5.
    """
    if "rope_parameters" in fields:
        own = fields.part("rope_parameters")
        base, scaled = own.number("rope_theta", 10000.0), own
    else:
        own, scaled = fields, fields.part("rope_scaling")
        base = fields.number("rope_theta", 10000.0)
    rotated = own.number("partial_rotary_factor", share)
    return {"base": base, "rotated": rotated, "scaling": _scaling(scaled)}


def _scaling(fields: Fields) -> RopeScaling | None:
    kind = fields.text("rope_type", fields.text("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", fields.number("factor"))
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            fields.number("factor"),
            fields.number("low_freq_factor"),
            fields.number("high_freq_factor"),
            fields.whole("original_max_position_embeddings"),
        )
    raise ValueError(f"{fields.file}: rope_type: expected default, linear or llama3, got {kind!r}")


def rope_entries(base: float, rotated: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """The entry that `rope` reads back."""
    entries: dict[str, Any] = {"rope_theta": base, "rope_type": "default"}
    if rotated != 1:
        entries["partial_rotary_factor"] = rotated
    if scaling is not None:
        entries |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling is not None and scaling.kind == "llama3":
        entries |= {
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": scaling.original,
        }
    return {"rope_parameters": entries}


def _float(x: Any) -> Any:
    """transformers writes what JSON has no number for as {"__float__": "Infinity"}."""
    return FLOATS.get(x.get("__float__"), x) if isinstance(x, dict) else x
