r"""Zamba's layer: a Mamba that also hears an attention block whose weights many layers share.

    s = mlp(norm(attention(norm([x, x0]))))   x0: the embeddings, before the first layer
    y = x + mixer(norm(x + linear(s)))

One of `blocks` blocks serves each layer, in turn; what a layer has of its own is the mixer, its
norm, `linear`, and, in Zamba2, low-rank adapters on the block's first matrices. Nothing in the
block is summed past, and of it only what the mixer makes of it reaches y.
Sources: Glorioso et al. 2024 (arXiv 2405.16712), figure 2 and equation 6; Zamba2: arXiv 2411.15242.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssmlib.attention import KVCache
from ssmlib.layers import MLP, MixerConfig, MLPConfig, NormConfig, RMSNorm, hold, step_
from ssmlib.mixers.attention import Attention, AttentionConfig
from ssmlib.shapes import check, check_number

QKV = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class ZambaConfig:
    """A glyph of such layers. `attention` reads 2 d_model features; each has its own `mixer`.

    mlp: gated. blocks: that take turns; layer i of the glyph's uses block i modulo blocks.
    adapter_rank: of the adapters of the MLP's first matrices, and with attention_adapters of q, k
    and v as well; None for none, as in the first Zamba.
    """

    attention: AttentionConfig
    mlp: MLPConfig
    mixer: MixerConfig
    blocks: int = 1
    adapter_rank: int | None = None
    attention_adapters: bool = False

    def build(self, d_model: int) -> nn.Module:
        raise ValueError("legend: expected a model to build Zamba's layers, which share weights")

    def layers(self, d_model: int, count: int, norm: NormConfig) -> Iterator["ZambaLayer"]:
        check_number(low=1, whole=True, blocks=self.blocks)
        if self.adapter_rank is not None:
            check_number(low=1, whole=True, adapter_rank=self.adapter_rank)
        if self.attention_adapters and self.adapter_rank is None:
            raise ValueError("adapter_rank: expected a number for attention_adapters, got None")
        blocks: list[ZambaBlock] = []
        for i in range(count):
            if i < self.blocks:
                blocks.append(ZambaBlock(d_model, self, norm))
            yield ZambaLayer(d_model, self, norm, blocks[i % self.blocks])


class ZambaState(NamedTuple):
    """The cache of this layer's turn at the shared attention, and the state of its own mixer."""

    cache: KVCache
    mixer: Any


class Adapter(nn.Sequential):
    """Two thin matrices, (d, rank) and (rank, out): what a layer adds to a shared one."""

    def __init__(self, d: int, rank: int, out: int):
        super().__init__(nn.Linear(d, rank, bias=False), nn.Linear(rank, out, bias=False))


class ZambaBlock(nn.Module):
    """The weights that layers share: norms, attention from 2 d features to d, MLP."""

    def __init__(self, d: int, config: ZambaConfig, norm: NormConfig):
        super().__init__()
        self.input_layernorm, self.pre_ff_layernorm = norm.build(2 * d), norm.build(d)
        self.self_attn = Attention(2 * d, config.attention, d_out=d)
        self.feed_forward: MLP = config.mlp.build(d)
        if self.feed_forward.gate_proj is None:
            raise ValueError("mlp: expected a gated one in Zamba's block, got gated=False")


class ZambaLayer(nn.Module):
    """x (b t d), its state or None, and the embeddings `first` (b t d), to y and the next state."""

    reads_first = True

    def __init__(self, d: int, config: ZambaConfig, norm: NormConfig, block: ZambaBlock):
        super().__init__()
        self.shared_transformer = block
        self.norm: RMSNorm = norm.build(d)
        self.mixer = config.mixer.build(d)
        self.linear = nn.Linear(d, d, bias=False)
        attention, mlp, rank = block.self_attn, block.feed_forward, config.adapter_rank
        self.adapters = nn.ModuleDict()
        if rank is not None:
            self.adapters["gate_up_proj"] = Adapter(d, rank, 2 * mlp.up_proj.out_features)
        if config.attention_adapters:
            for name in QKV:
                out = getattr(attention, name).out_features
                self.adapters[name] = Adapter(2 * d, rank, out)

    def forward(
        self, x: Tensor, state: ZambaState | None, first: Tensor
    ) -> tuple[Tensor, ZambaState]:
        check(x=(x, "b t d"), first=(first, "b t d"))
        if state is not None and not isinstance(state, ZambaState):
            raise ValueError(f"state: expected a ZambaState or None, got {type(state).__name__}")
        attention = self.shared_transformer.self_attn
        cache, own = (None, None) if state is None else state
        told, cache = attention.attend(*self._ask(x, first), cache)
        y, own = self.mixer(self._told(x, told), own)
        return x + y, ZambaState(cache, own)

    def hold(self, state: ZambaState, room: int) -> ZambaState:
        cache = self.shared_transformer.self_attn.hold(state.cache, room)
        return ZambaState(cache, hold(self.mixer, state.mixer, room))

    def step_(self, x: Tensor, state: ZambaState, first: Tensor) -> Tensor:
        check(x=(x, "b 1 d"), first=(first, "b 1 d"))
        told = self.shared_transformer.self_attn.attend_(*self._ask(x, first), state.cache)
        return x + step_(self.mixer, self._told(x, told), state.mixer)

    def _ask(self, x: Tensor, first: Tensor) -> list[Tensor]:
        """q, k and v of the shared attention, as this layer adapts them."""
        block = self.shared_transformer
        seen = block.input_layernorm(torch.cat([x, first], dim=-1))
        return [self._adapt(n, getattr(block.self_attn, n)(seen), seen) for n in QKV]

    def _told(self, x: Tensor, y: Tensor) -> Tensor:
        """What the mixer reads: x, and what the shared MLP makes of the attention's y."""
        block = self.shared_transformer
        mlp, y = block.feed_forward, block.pre_ff_layernorm(y)
        made = torch.cat([mlp.gate_proj(y), mlp.up_proj(y)], dim=-1)
        gate, up = self._adapt("gate_up_proj", made, y).chunk(2, dim=-1)
        return self.norm(x + self.linear(mlp.down_proj(mlp.activation(gate) * up)))

    def _adapt(self, name: str, made: Tensor, x: Tensor) -> Tensor:
        """What a shared matrix made of x, and what this layer adds to it."""
        return made + self.adapters[name](x) if name in self.adapters else made
