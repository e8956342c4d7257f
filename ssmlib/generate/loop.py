"""Prompts in, tokens out: reading in pieces, and the loop of one token a step."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ssmlib.generate.drawing import Drawing, pick, uniforms
from ssmlib.generate.step import make_step
from ssmlib.model import LanguageModel
from ssmlib.shapes import check, check_number

PIECE = 2048


class Read(NamedTuple):
    """Rows that were read as far as the batch can: the logits (b v) after that, and the state.

    ahead: how many tokens each row still has to say itself; forced (b, most of them): which.
    """

    logits: Tensor
    state: Any
    ahead: Tensor
    forced: Tensor


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
    which bounds the memory. graph: replay the step as a CUDA graph; None does where it can. The
    model is used in evaluation mode, and left in the mode it was in.
    Raises ValueError for a prompt that the model refuses, a temperature < 0, a top_p that is not in
    (0, 1], stop tokens < 0, other numbers < 1, and graph=True where there can be none.
    """
    rows = _rows(prompt)
    drawing, ends = Drawing(temperature, top_k, top_p), _stops(stop)
    with _evaluating(model):
        read = _read(model, rows, piece)
        new = torch.stack(list(_steps(model, read, max_new_tokens, drawing, seed, ends, graph)), 1)
    if isinstance(prompt, Tensor):
        return torch.cat([prompt, new], dim=1)
    shifts = read.ahead.tolist()
    own = [new[i, shift : shift + max_new_tokens] for i, shift in enumerate(shifts)]
    return [torch.cat([row, _cut(x, ends)]) for row, x in zip(rows, own, strict=True)]


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
    drawing, ends = Drawing(temperature, top_k, top_p), _stops(stop)
    with _evaluating(model):
        read = _read(model, list(prompt), piece)
        yield from _steps(model, read, max_new_tokens, drawing, seed, ends, graph)


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


@torch.no_grad()
def _steps(
    model: nn.Module,
    read: Read,
    count: int,
    drawing: Drawing,
    seed: int | Sequence[int] | None,
    stop: tuple[int, ...],
    graph: bool | None,
) -> Iterator[Tensor]:
    """Yield a token of each row, until each has `count` of its own beyond its prompt, or a stop."""
    check_number(low=1, whole=True, max_new_tokens=count)
    drawing.check()
    b, device, extra = len(read.logits), read.logits.device, read.forced.shape[1]
    numbers = torch.zeros(b, extra + count, device=device)
    at = read.ahead[:, None] + torch.arange(count, device=device)
    if drawing.temperature > 0:
        numbers.scatter_(1, at, uniforms(b, count, seed, device))
    stops = torch.tensor(stop, dtype=torch.long, device=device)
    over = torch.zeros(b, dtype=torch.bool, device=device)
    token = pick(read.logits, numbers[:, 0], *drawing)
    step = make_step(model, read.state, token, extra + count, drawing, graph)
    last = token
    for i in range(extra + count):
        if i < extra:
            token = torch.where(i < read.ahead, read.forced[:, i], token)
        if stop:
            token = torch.where(over, last, token)
            over = over | (torch.isin(token, stops) & (i >= read.ahead))
            last = token
        yield token
        if i + 1 == extra + count or (stop and (over | (i + 1 >= read.ahead + count)).all()):
            return
        token = step(token, numbers[:, i + 1])


@torch.no_grad()
def _read(model: nn.Module, rows: list[Tensor], piece: int) -> Read:
    """Rows of one length at once. Others alone, where their states then fit together.

    Where they do not, because a cache is as long as what was read, all rows are read as far as the
    shortest goes, and the longer ones say the rest of their own one token a step.
    """
    device, lengths = rows[0].device, [len(row) for row in rows]
    none = torch.zeros(len(rows), dtype=torch.long, device=device)
    empty = none.new_zeros(len(rows), 0)
    if len(set(lengths)) == 1:
        return Read(*prefill(model, torch.stack(rows), piece=piece), none, empty)
    if _keeps_no_length(model, device):
        each = [prefill(model, row[None], piece=piece) for row in rows]
        joined = tree_map(lambda *x: _join(x), *(state for _, state in each))
        return Read(torch.cat([logits for logits, _ in each]), joined, none, empty)
    first = min(lengths)
    logits, state = prefill(model, torch.stack([row[:first] for row in rows]), piece=piece)
    forced = none.new_zeros(len(rows), max(lengths) - first)
    for i, row in enumerate(rows):
        forced[i, : len(row) - first] = row[first:]
    return Read(logits, state, torch.tensor(lengths, device=device) - first, forced)


def _keeps_no_length(model: nn.Module, device: torch.device) -> bool:
    """Whether states look alike after one token and after two: no cache, and no position."""
    one, two = (
        tree_leaves(model(torch.zeros(1, t, dtype=torch.long, device=device))[1]) for t in (1, 2)
    )
    return len(one) == len(two) and all(_alike(x, y) for x, y in zip(one, two, strict=True))


def _alike(x: Any, y: Any) -> bool:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return x.ndim > 0 and x.shape == y.shape
    return type(x) is type(y) and x == y


def _join(parts: tuple[Any, ...]) -> Any:
    return torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0]


def _rows(prompt: Tensor | Sequence[Tensor]) -> list[Tensor]:
    if isinstance(prompt, Tensor):
        check(prompt=(prompt, "b t"))
        return list(prompt)
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
