"""From a model to a folder: the architecture that has words for all of it, and the tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssmlib.checkpoints.architecture import Architecture, difference, settled
from ssmlib.checkpoints.architectures import ARCHITECTURES
from ssmlib.checkpoints.fields import Fields
from ssmlib.checkpoints.load import parameters
from ssmlib.checkpoints.names import spread
from ssmlib.checkpoints.write import SHARD_BYTES, write_folder
from ssmlib.model import LanguageModel, ModelConfig

SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def save(
    model: LanguageModel,
    folder: str | Path,
    entries: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model as a folder that transformers' AutoModelForCausalLM and `from_pretrained` read.

    entries: more of config.json, such as eos_token_id. shard_bytes: of a file of tensors. The
    folder appears whole or not at all, and takes no other's place.
    Raises ValueError for a model that none of `ARCHITECTURES` computes, saying where the nearest
    one differs; FileExistsError where something is already; OSError for what cannot be written.
    """
    if not isinstance(model, LanguageModel):
        raise ValueError(f"model: expected a LanguageModel, got {type(model).__name__}")
    architecture, config = _written(settled(model.config))
    sources = {
        wanted.sources[0]: model.get_parameter(wanted.places[0]).detach()
        for wanted in parameters(model, architecture)
    }
    dtypes = {str(x.dtype).removeprefix("torch.") for x in sources.values()}
    config = {
        "architectures": [architecture.name],
        "dtype": dtypes.pop() if len(dtypes) == 1 else "float32",
        **dict.fromkeys(SPECIAL),
        **config,
        **(entries or {}),
    }
    tensors = {name: x.contiguous() for name, x in spread(sources).items()}
    write_folder(Path(folder), config, tensors, shard_bytes)


def _written(config: ModelConfig) -> tuple[Architecture, dict[str, Any]]:
    """The first architecture that says all of a config, and how it says it."""
    failed: list[str] = []
    for kind, architecture in ARCHITECTURES.items():
        try:
            entries = architecture.write(config)
            came = settled(architecture.read(Fields(entries)))
        except (ValueError, KeyError, AttributeError, TypeError, IndexError):
            continue  # another kind of model
        if entries["model_type"] != kind:
            continue
        apart = difference(config, came)
        if apart is None:
            return architecture, entries
        failed.append(f"{kind} differs in {apart}")
    told = f"a model that one of {', '.join(ARCHITECTURES)} computes"
    raise ValueError(f"model: expected {told}; {'; '.join(failed) or 'none is made of its layers'}")
