"""Mamba-2 of mamba-ssm's own layers and kernels: a step as it comes, and as a CUDA graph."""

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ssmlib.bench.model.decode import timed
from ssmlib.bench.model.shapes import Sizes
from ssmlib.bench.timing import Ceilings, release, working_dtype

NEEDED = ("mamba_ssm", "causal_conv1d")


def installed(device: torch.device) -> bool:
    return device.type == "cuda" and all(importlib.util.find_spec(name) for name in NEEDED)


class Peer(nn.Module):
    """Embedding, layers of a norm and a Mamba-2, a norm, and a head that is the embedding."""

    def __init__(self, s: Sizes):
        super().__init__()
        from mamba_ssm.modules.mamba2 import Mamba2
        from mamba_ssm.ops.triton.layer_norm import RMSNorm

        self.embedding = nn.Embedding(s.vocabulary, s.d)
        self.norms = nn.ModuleList(RMSNorm(s.d) for _ in range(s.layers + 1))
        self.mixers = nn.ModuleList(Mamba2(s.d, headdim=s.head_dim) for _ in range(s.layers))

    def places(self, b: int) -> list[tuple[Tensor, Tensor]]:
        """Empty states; those of the recurrence in float32, as ours are."""
        made = (mixer.allocate_inference_cache(b, 1) for mixer in self.mixers)
        return [(conv, ssm.float()) for conv, ssm in made]

    def step(self, token: Tensor, places: list[tuple[Tensor, Tensor]]) -> Tensor:
        residual = self.embedding(token[:, None])
        x = self.norms[0](residual)
        for mixer, norm, (conv, ssm) in zip(self.mixers, self.norms[1:], places, strict=True):
            y, _, _ = mixer.step(x, conv, ssm)
            x, residual = norm(y, residual=residual, prenorm=True)  # one kernel adds and scales
        return (x @ self.embedding.weight.t())[:, -1].argmax(-1)


def rows(
    s: Sizes, batches: Iterable[int], n: int, top: Ceilings, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Rows of "throughput", as `decode.batch_rows` has them, without the prompt of n tokens."""
    with device, torch.no_grad():
        model = Peer(s).to(working_dtype(device)).eval()
        for b in batches:
            for form in ("eager", "graph"):
                yield _row(model, b, n, form, top, device)


def _row(
    model: Peer, b: int, n: int, form: str, top: Ceilings, device: torch.device
) -> dict[str, Any]:
    held = list(model.parameters())
    moved = sum(p.numel() * p.element_size() for p in held)
    parameters = sum(p.numel() for p in held)
    row = {"experiment": "throughput", "provider": f"mamba-ssm mamba-2, {form}", "b": b}
    row |= {"n": n, "parameters": parameters}
    try:
        release(device)
        places = model.places(b)
        state = sum(x.numel() * x.element_size() for pair in places for x in pair)
        floor, bound = top.floor(2 * parameters * b, moved + 2 * state)
        row |= {"bytes": moved + 2 * state, "floor_seconds": floor, "bound": bound}
        token = torch.zeros(b, dtype=torch.long, device=device)
        call: Callable[[], Any] = lambda: model.step(token, places)  # noqa: E731
        if form == "graph":
            call = _captured(call)
        return row | {"state_bytes": state} | timed(call, b, device)
    except torch.OutOfMemoryError:
        return row | {"status": "out of memory"}


def _captured(call: Callable[[], Any]) -> Callable[[], Any]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
