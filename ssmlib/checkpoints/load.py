"""From a folder to a model: what is there against what is wanted, then the tensors into place."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssmlib.backends import default_device
from ssmlib.checkpoints.architecture import Architecture, settled
from ssmlib.checkpoints.architectures import ARCHITECTURES, STATE_SPACES
from ssmlib.checkpoints.fields import Fields
from ssmlib.checkpoints.folder import DTYPES, Tensors, read_json
from ssmlib.checkpoints.names import Source, fetch, names_of, sizes
from ssmlib.model import LanguageModel, ModelConfig

IGNORED = (".rotary_emb.inv_freq",)  # computed here, kept in folders of old


class Wanted(NamedTuple):
    """A parameter: the places in the model that it stands at, its shape, and what it is there."""

    places: list[str]
    shape: tuple[int, ...]
    sources: list[Source]


def from_pretrained(
    folder: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> LanguageModel:
    """Read a checkpoint that transformers or mamba_ssm wrote, from a local folder.

    folder: config.json, and model.safetensors or pytorch_model.bin, in one file or several; nothing
    is fetched, and no code of it runs. device: None for the CPU. dtype: of all parameters; None for
    the one that the tensors have. The model comes in evaluation mode.
    Raises FileNotFoundError for what is not there, and ValueError, with the name of what is wrong,
    for a device that there is not, an architecture that is not in `ARCHITECTURES`, a folder that
    asks for code of its own, quantised weights, a damaged file, entries of the config that cannot
    be computed here, tensors that are missing, left over, of another shape, or, without dtype, of
    more than one dtype.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder: expected a local folder, got {str(folder)!r}")
    architecture, config = read_config(folder)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype: expected a floating point dtype, got {dtype!r}")
    device = _device(device)
    with torch.device("meta"):
        model = config.build()
    tensors, wanted = Tensors(folder), parameters(model, architecture)
    chosen = _check(wanted, tensors, dtype)
    for place, source in zip(wanted, chosen, strict=True):
        x = fetch(source, tensors.__getitem__).to(device, dtype, copy=True)
        _put(model, place.places, x)
    _check_copies(wanted, chosen, tensors)
    return model.eval()


def _device(device: str | torch.device | None) -> torch.device:
    try:
        chosen = torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError):  # so torch refuses a name that it does not know
        raise ValueError(f"device: expected the name of a device, got {device!r}") from None
    return default_device(chosen) if chosen.type == "cuda" else chosen


def read_config(folder: Path) -> tuple[Architecture, ModelConfig]:
    """Which architecture a folder is of, and its sizes. Raises as `from_pretrained` does."""
    content = read_json(folder / "config.json")
    if "auto_map" in content:
        raise ValueError("config.json: auto_map: expected none, got one: no code of a folder runs")
    if content.get("quantization_config"):
        raise ValueError("config.json: quantization_config: expected none, got quantised weights")
    kind = content.get("model_type")
    if kind is None and {"d_model", "n_layer"} <= content.keys():
        architecture = STATE_SPACES
    elif kind in ARCHITECTURES:
        architecture = ARCHITECTURES[kind]
    else:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"config.json: model_type: expected one of {known}, got {kind!r}")
    return architecture, architecture.read(Fields(content))


def parameters(model: nn.Module, architecture: Architecture) -> list[Wanted]:
    """Every parameter of a model once, with all its places; ties and shared blocks have several."""
    config = settled(model.config)
    places: dict[int, list[str]] = {}
    named = dict(model.named_parameters(remove_duplicate=False))
    for name, x in named.items():
        places.setdefault(id(x), []).append(name)
    made = []
    for names in places.values():
        shape = tuple(named[names[0]].shape)
        ways = [architecture.table.sources(name, config, (*shape, 1)[0]) for name in names]
        made.append(Wanted(names, shape, [source for way in ways for source in way]))
    return made


def _check(wanted: list[Wanted], tensors: Tensors, dtype: torch.dtype | None) -> list[Source]:
    """The source of each parameter that is there; or all that is wrong, by name."""
    chosen = [
        next((s for s in w.sources if all(n in tensors for n in names_of(s))), w.sources[0])
        for w in wanted
    ]
    names = {n for source in chosen for n in names_of(source)}
    copies = {n for w in wanted for source in w.sources for n in names_of(source)}
    missing = sorted(n for n in names if n not in tensors)
    surplus = sorted(n for n in tensors if n not in copies and not n.endswith(IGNORED))
    if missing or surplus:
        told = [f"missing {_some(missing)}"] * bool(missing) + [
            f"left over {_some(surplus)}"
        ] * bool(surplus)
        raise ValueError(f"tensors: expected those of the config, got {'; '.join(told)}")
    kinds: dict[str, str] = {}
    for w, source in zip(wanted, chosen, strict=True):
        for name, size in sizes(source, w.shape).items():
            came, kind = tensors.header(name)
            if came != size:
                raise ValueError(f"{name}: expected shape {size}, as the config says, got {came}")
            kinds.setdefault(kind, name)
    _check_dtypes(kinds, dtype)
    return chosen


def _check_dtypes(kinds: dict[str, str], dtype: torch.dtype | None) -> None:
    """kinds: the dtypes, each with the first tensor that has it."""
    for kind, name in kinds.items():
        if kind not in DTYPES.values():
            raise ValueError(f"{name}: expected one of {', '.join(DTYPES.values())}, got {kind}")
    if dtype is None and len(kinds) > 1:
        (first, one), (second, other), *_ = kinds.items()
        told = f"dtype {first}, as {one} has, got {second} (dtype= makes all alike)"
        raise ValueError(f"{other}: expected {told}")


def _check_copies(wanted: list[Wanted], chosen: list[Source], tensors: Tensors) -> None:
    """A tensor that is there under several names must be the same under all of them."""
    for w, source in zip(wanted, chosen, strict=True):
        others = [s for s in w.sources if s != source and all(n in tensors for n in names_of(s))]
        for other in others:
            one, two = (fetch(s, tensors.__getitem__) for s in (source, other))
            if not torch.equal(one, two):
                told = f"what {names_of(source)[0]} holds, since the two are tied"
                raise ValueError(f"{names_of(other)[0]}: expected {told}, got other numbers")


def _put(model: nn.Module, places: list[str], x: Tensor) -> None:
    """One parameter, at all its places."""
    parameter = nn.Parameter(x)
    for place in places:
        owner, _, name = place.rpartition(".")
        setattr(model.get_submodule(owner), name, parameter)


def _some(names: list[Any]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
