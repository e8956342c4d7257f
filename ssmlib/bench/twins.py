"""Language models of transformers on a CPU, and ours with their weights: one training step each."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmlib.model import LanguageModel, ModelConfig


def twin_of(theirs: nn.Module, config: ModelConfig) -> LanguageModel:
    """Our model, with their weights."""
    model = config.build()
    model.load_state_dict({ours_of(name): p for name, p in theirs.state_dict().items()})
    return model


def ours_of(name: str) -> str:
    """What transformers' parameter is called here."""
    return name.replace("backbone.embeddings.", "embedding.")


def gradients(
    model: nn.Module, logits: Callable[[Tensor], Tensor], tokens: Tensor
) -> dict[str, Tensor]:
    """Of the next token's cross-entropy, by parameter as it is called here."""
    named = dict(model.named_parameters())
    loss = F.cross_entropy(logits(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    found = torch.autograd.grad(loss, list(named.values()))
    return {ours_of(name): grad for name, grad in zip(named, found, strict=True)}


def random_tokens(b: int, t: int, vocab_size: int) -> Tensor:
    """(b t+1): the inputs, and each one's next."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (b, t + 1), generator=generator)
