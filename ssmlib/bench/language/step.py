"""One training step of a Mamba language model, on our kernels and on mamba-ssm's.

The model is ours each time, with equal weights. A peer's layer does what mamba-ssm's own layer
does: projections that put time last, as its kernels want it, then its convolution and its scan
("kernels"), or all of that as the one function with which its layer trains ("fused"). A step is the
forward and the backward pass in bfloat16 autocast and an update by AdamW, called as it is, and
replayed as a CUDA graph, where launching kernels costs nothing.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ssmlib.bench.ledger import Row
from ssmlib.bench.timing import ceilings, measure, peak_memory, release
from ssmlib.costs import TRAINING, ModelShape, model_cost
from ssmlib.mixers.mamba import Mamba, MambaConfig, MambaState
from ssmlib.model import LanguageModel, ModelConfig
from ssmlib.train import TrainConfig
from ssmlib.train.step import make_optimizer, make_step

TOLERANCE = 2e-2  # of the loss, between providers


@dataclass(frozen=True)
class Size:
    """A model of `layers` of d features, and a batch of b sequences of t tokens."""

    d: int
    layers: int
    vocab_size: int
    b: int
    t: int


FULL = Size(768, 24, 50280, 8, 2048)  # the shape of mamba-130m
TINY = Size(16, 2, 50, 2, 16)


class Kernels(Mamba):
    """The layer by mamba-ssm's scan and causal-conv1d's convolution, time last."""

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, MambaState]:
        from ssmlib.bench.scan.peers import conv1d, mamba_scan

        x, z = _time_last(self.in_proj.weight, x).chunk(2, dim=1)
        x = conv1d(x, self.conv1d.weight.squeeze(1), self.conv1d.bias)
        dt, B, C = self.x_proj(x.mT).split(list(self.parts.values()), dim=-1)
        dt, A = _time_last(self.dt_proj.weight, dt), -torch.exp(self.A_log)
        B, C = B.mT.contiguous(), C.mT.contiguous()
        y = mamba_scan(x, dt, A, B, C, self.D, z, self.dt_proj.bias)
        return self.out_proj(y.mT), MambaState(None, None)


class Fused(Mamba):
    """The layer by mamba-ssm's one function for all of it behind the first projection."""

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, MambaState]:
        from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn

        y = mamba_inner_fn(
            _time_last(self.in_proj.weight, x),
            self.conv1d.weight,
            self.conv1d.bias,
            self.x_proj.weight,
            self.dt_proj.weight,
            self.out_proj.weight,
            None,
            -torch.exp(self.A_log),
            D=self.D,
            delta_bias=self.dt_proj.bias,
        )
        return y, MambaState(None, None)


@dataclass(frozen=True)
class ByConfig(MambaConfig):
    """A Mamba whose layer is of the class `layer`."""

    layer: type[Mamba] = Mamba

    def build(self, d_model: int) -> Mamba:
        return self.layer(d_model, self)


def _time_last(weight: Tensor, x: Tensor) -> Tensor:
    """(b t d) to (b e t) by one product, its last axis contiguous: nothing is copied."""
    return (weight @ x.flatten(0, 1).mT).unflatten(1, x.shape[:2]).transpose(0, 1)


def step_rows(device: torch.device, quick: bool = False) -> Iterator[Row]:
    """A row per provider, plain and captured: seconds, their floor, bytes at the peak, tokens/s.

    Peers are there where they are installed. The floor is the model's FLOPs, three times those of a
    forward pass, over the measured rate of matrix products; the optimizer is not in it.
    """
    size, on_gpu = TINY if quick else FULL, device.type == "cuda"
    shape = ModelShape(
        "M" * size.layers,
        size.vocab_size,
        size.d,
        size.t,
        "the sizes of state-spaces/mamba-130m",
        state=16,
        dt_rank=-(-size.d // 16),
        tied=True,
    )
    flops = TRAINING * model_cost(shape, size.t, batch=size.b).flops
    floor = flops / ceilings(device, time_s=0.05 if quick else 0.3).matmul_flops_per_s
    expected: float | None = None
    for provider, layer in _providers(device).items():
        for captured in (False, True) if on_gpu else (False,):
            release(device)
            labels = {"row": "step", "provider": provider, "captured": captured, **asdict(size)}
            try:
                measured = _measure(layer, size, device, captured, quick)
            except RuntimeError as error:  # no memory, or a peer that does not run here
                status = f"unavailable: {str(error).strip().splitlines()[0][:100]}"
                yield labels | {"flops": flops, "floor_seconds": floor, "status": status}
                continue
            expected = measured["loss"] if expected is None else expected
            status = "ok"
            if not abs(measured["loss"] - expected) <= TOLERANCE * expected:
                status = f"wrong: loss {measured['loss']:.3f}, expected {expected:.3f}"
            yield labels | measured | {"flops": flops, "floor_seconds": floor, "status": status}


def _providers(device: torch.device) -> dict[str, type[Mamba]]:
    found: dict[str, type[Mamba]] = {"ssmlib": Mamba}
    if device.type == "cuda":
        from ssmlib.bench.scan.peers import installed

        peers = installed(device)
        if len(peers) == 2:
            both = " + ".join(peers)
            found |= {f"{both}, kernels": Kernels, f"{both}, fused": Fused}
    return found


def build(layer: type[Mamba], size: Size) -> LanguageModel:
    """The model whose Mambas are of the class `layer`; equal weights for every class."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        legend = {"M": ByConfig(layer=layer)}
        return ModelConfig(size.vocab_size, size.d, "M" * size.layers, legend).build()


def _measure(
    layer: type[Mamba], size: Size, device: torch.device, captured: bool, quick: bool
) -> Row:
    model = build(layer, size).to(device)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(size.vocab_size, (size.b, size.t + 1), generator=generator).to(device)
    batch = (tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    precision = "bfloat16" if device.type == "cuda" else "float32"
    config = TrainConfig(steps=1, lr=1e-6, precision=precision, captured=captured)
    step = make_step(model, make_optimizer(model, config), config)
    value = step(*batch).item()
    timing = measure(
        step,
        warmup_s=0.0 if quick else 0.5,
        time_s=0.01 if quick else 1.0,
        device=device,
        inputs=[batch],
    )
    peak = None if captured else peak_memory(lambda: step(*batch), device=device)
    return {
        "loss": value,
        "seconds": timing.median,
        "p20": timing.p20,
        "p80": timing.p80,
        "repeats": timing.repeats,
        "tokens_per_s": size.b * size.t / timing.median,
        "peak_bytes": peak,
    }
