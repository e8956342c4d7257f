"""Generation: read the prompt once, then one token a step, from the state that the model keeps.

For a state space model a step's work and memory do not depend on how much was read before; for
attention both grow with it. `state_bytes` says how much is kept.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ssmlib.shapes import check, check_number


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: Tensor,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int | None = None,
) -> Tensor:
    """Continue prompt (b t) by max_new_tokens; return both, (b t+new).

    model: logits, state = model(tokens, state), logits (b t vocab_size). temperature: of the
    distribution that is drawn from; 0 takes the likeliest token. top_k: draw from so many of the
    likeliest alone. seed: of the drawing; None goes on with torch's own random numbers. The model
    is used in evaluation mode, and left in the mode it was in.
    Raises ValueError for a prompt that the model refuses, a temperature < 0, and numbers < 1.
    """
    check(prompt=(prompt, "b t"))
    check_number(low=1, whole=True, max_new_tokens=max_new_tokens)
    _check_drawing(temperature, top_k)
    generator = None if seed is None else torch.Generator(prompt.device).manual_seed(seed)
    tokens, state, mode = [prompt], None, model.training
    model.eval()
    try:
        for _ in range(max_new_tokens):
            logits, state = model(tokens[-1], state)
            tokens.append(sample(logits[:, -1], temperature, top_k, generator)[:, None])
    finally:
        model.train(mode)
    return torch.cat(tokens, dim=1)


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw tokens (b,) from softmax(logits / temperature), logits (b v), as `generate` does."""
    v = check(logits=(logits, "b v"))["v"]
    _check_drawing(temperature, top_k)
    if temperature == 0:
        return logits.argmax(-1)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    likeliest, which = wide.topk(v if top_k is None else min(top_k, v))
    share = torch.softmax((likeliest - likeliest[:, :1]) / temperature, dim=-1)
    return which.gather(1, torch.multinomial(share, 1, generator=generator))[:, 0]


def state_bytes(state: Any) -> int:
    """Bytes of all tensors in a state, however nested: what a model keeps between two tokens."""
    return sum(x.numel() * x.element_size() for x in tree_leaves(state) if isinstance(x, Tensor))


def _check_drawing(temperature: float, top_k: int | None) -> None:
    check_number(low=0, temperature=temperature)
    if top_k is not None:
        check_number(low=1, whole=True, top_k=top_k)
