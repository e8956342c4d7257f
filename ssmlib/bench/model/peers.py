"""Mamba-2's step by mamba-ssm's kernels, with our model's weights: as it comes, and as a graph."""

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ssmlib.bench.cell import relative_error
from ssmlib.bench.model.decode import timed
from ssmlib.bench.model.shapes import step_flops, weights
from ssmlib.bench.ssd import peers
from ssmlib.bench.timing import Ceilings, release
from ssmlib.generate import state_bytes
from ssmlib.model import LanguageModel

FORMS = ("eager", "graph")
ALIKE = 0.1  # what another order of sums makes of bfloat16 in 52 layers is a third of that
Places = list[tuple[Tensor, Tensor]]


def rows(
    model: LanguageModel, batches: Iterable[int], n: int, top: Ceilings, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Rows of "throughput" after n tokens, as `decode.batch_rows` has them, without the prompt.

    None where mamba-ssm or causal-conv1d is not installed. error: of the logits of a few steps,
    from those of our model.
    """
    name = peers.installed(device)
    if name is None or importlib.util.find_spec("causal_conv1d") is None:
        return
    for b in batches:
        for form in FORMS:
            row = {"experiment": "throughput", "provider": f"{name}, {form}", "b": b, "n": n}
            try:
                yield row | _measured(model, b, form, top, device)
            except (ImportError, RuntimeError) as error:  # a kernel that cannot run says it so
                yield row | {"status": f"unavailable: {str(error).splitlines()[0][:100]}"}


@torch.no_grad()
def _measured(
    model: LanguageModel, b: int, form: str, top: Ceilings, device: torch.device
) -> dict[str, Any]:
    release(device)
    parameters, moved = weights(model)
    error = _error(model, device)
    places = _places(model, b)
    moved += 2 * state_bytes(places)
    flops = step_flops(model, b, 0)
    floor, bound = top.floor(flops, moved)
    row = {"parameters": parameters, "flops": flops, "bytes": moved, "floor_seconds": floor}
    row |= {"bound": bound, "state_bytes": state_bytes(places), "error": error}
    if not error <= ALIKE:
        return row | {"status": f"wrong: relative error {error:.1e}"}
    token = torch.zeros(b, dtype=torch.long, device=device)

    def call() -> Tensor:
        return step(model, token, places).argmax(-1)

    return row | timed(call if form == "eager" else captured(call), b, device)


def step(model: LanguageModel, token: Tensor, places: Places) -> Tensor:
    """Logits (b v) of one token (b,) of each row; the places move on."""
    from causal_conv1d import causal_conv1d_update
    from mamba_ssm.ops.triton.layer_norm import rms_norm_fn
    from mamba_ssm.ops.triton.layernorm_gated import rmsnorm_fn

    layers = model.backbone.layers
    norms = [*(layer.norm for layer in layers[1:]), model.backbone.norm_f]
    residual = model.embedding(token)
    x = rms_norm_fn(residual, layers[0].norm.weight, None, eps=layers[0].norm.eps)
    for layer, norm, (conv, ssm) in zip(layers, norms, places, strict=True):
        m = layer.mixer
        z, mixed, dt = m.in_proj(x).split([m.parts[0], sum(m.parts), m.heads], dim=-1)
        taps = m.conv1d.weight.squeeze(1)
        mixed = causal_conv1d_update(mixed, conv, taps, m.conv1d.bias, "silu")
        x, B, C = mixed.split(m.parts, dim=-1)
        x = x.unflatten(1, (m.heads, -1))
        B, C = (v.unflatten(1, (m.config.groups, -1)) for v in (B, C))
        A = -torch.exp(m.A_log.float())
        y = peers.step(ssm, x, dt, A, B, C, m.D, m.dt_bias).flatten(1)
        how = {"z": z, "eps": m.norm.eps, "norm_before_gate": False}
        y = m.out_proj(rmsnorm_fn(y, m.norm.weight, None, **how))
        # one kernel adds what comes past and norms the sum
        x, residual = rms_norm_fn(
            y, norm.weight, None, residual=residual, eps=norm.eps, prenorm=True
        )
    return model.lm_head(x)


def captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call as a CUDA graph."""
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


def _places(model: LanguageModel, b: int) -> Places:
    """Empty states: convolutions' as their package lays them out, recurrences' in float32."""
    made = []
    for layer in model.backbone.layers:
        m, weight = layer.mixer, layer.mixer.conv1d.weight
        conv = weight.new_zeros(b, weight.shape[2], len(weight)).transpose(1, 2)
        size = (b, m.heads, m.config.head_dim, m.config.state_size)
        made.append((conv, weight.new_zeros(size, dtype=torch.float32)))
    return made


def _error(model: LanguageModel, device: torch.device) -> float:
    tokens = torch.arange(8, device=device).view(2, 4)
    places, state = _places(model, 2), None
    for i in range(4):
        got = step(model, tokens[:, i], places)
        want, state = model(tokens[:, i : i + 1], state)
    return relative_error([got], [want[:, -1]])
