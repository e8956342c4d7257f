"""Prompts in, tokens out: reading in pieces, and the loop of one token a step."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ssmlib.generate.drawing import Drawing, pick, seeds_of, uniforms
from ssmlib.generate.step import make_step
from ssmlib.mixers.attention import Attention
from ssmlib.model import LanguageModel
from ssmlib.shapes import check, check_number

PIECE = 8192
FEW = 16  # new tokens, for which it does not pay to capture a graph


def generate(
    model: nn.Module,
    prompt: Tensor | Sequence[Tensor],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | Sequence[int] | None = None,
    stop: int | Sequence[int] = (),
    piece: int = PIECE,
    graph: bool | None = None,
) -> Tensor | list[Tensor]:
    """Continue prompt (b t) by up to max_new_tokens; return both, (b t+new).

    model: logits, state = model(tokens, state), logits (b t vocab_size). prompt may be a list of
    prompts (t,) of different lengths: each is continued as if it were alone, and a list comes back,
    each cut after its stop token. temperature, top_k, top_p: see `sample`; temperature 0 takes the
    likeliest token. seed: of the drawing, row i counts on from it, or one for each row; None goes
    on with torch's own random numbers. stop: tokens that end a row; it is filled with the one that
    did, and when all rows have ended, so does the call. piece: tokens of a prompt read at a time,
    which bounds the memory. graph: replay the step as a CUDA graph; None does so where that can be
    and pays. The model is used in evaluation mode, and left in the mode it was in.
    Raises ValueError for a prompt that the model refuses, a temperature < 0, a top_p that is not in
    (0, 1], stop tokens < 0, other numbers < 1, and graph=True where there can be none.
    """
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    settings |= {"stop": _stops(stop), "piece": piece, "graph": graph}
    if isinstance(prompt, Tensor):
        check(prompt=(prompt, "b t"))
        return torch.cat([prompt, _new(model, prompt, max_new_tokens, seed, **settings)], dim=1)
    rows = _rows(prompt)
    if isinstance(model, LanguageModel):
        new = list(_new(model, rows, max_new_tokens, seed, **settings))
    else:
        seeds = [None] * len(rows) if seed is None else seeds_of(seed, len(rows))
        each = zip(rows, seeds, strict=True)
        new = [_new(model, row[None], max_new_tokens, s, **settings)[0] for row, s in each]
    cut = (_cut(tokens, settings["stop"]) for tokens in new)
    return [torch.cat([row, tokens]) for row, tokens in zip(rows, cut, strict=True)]


def stream(
    model: nn.Module,
    prompt: Tensor,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | Sequence[int] | None = None,
    stop: int | Sequence[int] = (),
    piece: int = PIECE,
    graph: bool | None = None,
) -> Iterator[Tensor]:
    """Yield the tokens that `generate` would add to prompt (b t), each (b,), as they are drawn."""
    check(prompt=(prompt, "b t"))
    drawing = Drawing(temperature, top_k, top_p)
    yield from _steps(model, prompt, max_new_tokens, seed, drawing, _stops(stop), piece, graph)


@torch.no_grad()
def prefill(
    model: nn.Module, tokens: Tensor, state: Any = None, piece: int = PIECE
) -> tuple[Tensor, Any]:
    """Read tokens (b t) `piece` at a time; return the logits after the last, (b v), and the state.

    Working memory is that of one piece; what is kept is the state. Raises ValueError as the model
    does.
    """
    t = check(tokens=(tokens, "b t"))["t"]
    check_number(low=1, whole=True, piece=piece)
    last = {"keep": 1} if isinstance(model, LanguageModel) else {}
    for start in range(0, t, piece):
        logits, state = model(tokens[:, start : start + piece], state, **last)
    return logits[:, -1], state


def state_bytes(state: Any) -> int:
    """Bytes of all tensors in a state, however nested: what a model keeps between two tokens."""
    return sum(x.numel() * x.element_size() for x in tree_leaves(state) if isinstance(x, Tensor))


def _new(
    model: nn.Module,
    prompt: Tensor | list[Tensor],
    count: int,
    seed: int | Sequence[int] | None,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    **settings: Any,
) -> Tensor:
    """The tokens (b, new) that come after a prompt, or after each of several."""
    drawing = Drawing(temperature, top_k, top_p)
    return torch.stack(list(_steps(model, prompt, count, seed, drawing, **settings)), dim=1)


@torch.no_grad()
def _steps(
    model: nn.Module,
    prompt: Tensor | list[Tensor],
    count: int,
    seed: int | Sequence[int] | None,
    drawing: Drawing,
    stop: tuple[int, ...],
    piece: int,
    graph: bool | None,
) -> Iterator[Tensor]:
    """Yield a token of each row, `count` times or until each row had a stop."""
    check_number(low=1, whole=True, max_new_tokens=count, piece=piece)
    drawing.check()
    _check_room(model, max(len(row) for row in prompt), count)
    with _evaluating(model):
        logits, state = _read(model, prompt, count, piece)
        b, device = len(logits), logits.device
        greedy = drawing.temperature == 0
        numbers = logits.new_zeros(b, count) if greedy else uniforms(b, count, seed, device)
        stops = torch.tensor(stop, dtype=torch.long, device=device)
        over = torch.zeros(b, dtype=torch.bool, device=device)
        last = token = pick(logits, numbers[:, 0], *drawing)
        few = graph is None and count < FEW
        step = make_step(model, state, device, drawing, False if few else graph)
        for i in range(count):
            if stop:
                token = torch.where(over, last, token)
                over, last = over | torch.isin(token, stops), token
            yield token
            if i + 1 == count or (stop and over.all()):
                return
            token = step(token, numbers[:, i + 1])


def _read(
    model: nn.Module, prompt: Tensor | list[Tensor], count: int, piece: int
) -> tuple[Tensor, Any]:
    """The logits (b v) after the prompts, and a state with room for `count` more tokens.

    Prompts of several lengths are read one by one. Their places are of one size in the end, since
    the shorter ones have more room, and are joined to those of a batch.
    """
    if isinstance(prompt, Tensor):
        logits, state = prefill(model, prompt, piece=piece)
        return logits, model.hold(state, count) if isinstance(model, LanguageModel) else state
    most = max(len(row) for row in prompt)
    read = [prefill(model, row[None], piece=piece) for row in prompt]
    room = [count + most - len(row) for row in prompt]
    held = [model.hold(state, more) for (_, state), more in zip(read, room, strict=True)]
    joined = tree_map(lambda *x: torch.cat(x) if isinstance(x[0], Tensor) else x[0], *held)
    return torch.cat([logits for logits, _ in read]), joined


def _check_room(model: nn.Module, t: int, count: int) -> None:
    """Refuse more positions than an embedding is good for; a step on a GPU cannot."""
    lengths = [m.config.max_length for m in model.modules() if isinstance(m, Attention)]
    least = min((length for length in lengths if length is not None), default=None)
    if least is not None and t + count - 1 > least:
        told = f"at most max_length={least} tokens with those generated but the last"
        raise ValueError(f"prompt: expected {told}, got {t} + {count} - 1")


def _rows(prompt: Sequence[Tensor]) -> list[Tensor]:
    rows = list(prompt)
    if not rows:
        raise ValueError("prompt: expected at least one, got an empty list")
    for i, row in enumerate(rows):
        check(**{f"prompt[{i}]": (row, "t")})
    return rows


def _stops(stop: int | Sequence[int]) -> tuple[int, ...]:
    tokens = (stop,) if isinstance(stop, int) else tuple(stop)
    for token in tokens:
        check_number(low=0, whole=True, stop=token)
    return tokens


def _cut(tokens: Tensor, stop: tuple[int, ...]) -> Tensor:
    """Tokens (t,) up to the first that is a stop, which stays."""
    ends = [i for i, token in enumerate(tokens.tolist()) if token in stop]
    return tokens[: ends[0] + 1] if ends else tokens


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    mode = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(mode)
