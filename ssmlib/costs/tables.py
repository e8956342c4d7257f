"""Facts published by others: how wide a dtype is, how fast a device, how a model is shaped."""

from dataclasses import dataclass, replace
from math import inf
from typing import ClassVar

from ssmlib.costs.checks import divides, find, whole

DTYPES: dict[str, int] = {  # bits per number; a quantized tensor's scales are not counted
    "float32": 32,
    "bfloat16": 16,
    "float16": 16,
    "float8": 8,
    "int8": 8,
    "int4": 4,
}


def dtype_bytes(values: int, dtype: str) -> int:
    """Bytes of that many numbers of a dtype, packed; half a byte counts as a whole one."""
    whole(low=0, values=values)
    return -(-values * find("dtype", dtype, DTYPES) // 8)


@dataclass(frozen=True)
class Device:
    """A device as its vendor states it: peaks that no program reaches.

    matmul: FLOP/s of dense (not sparse) 16-bit matrix products that accumulate in float32.
    bandwidth: bytes/s of its memory. memory: bytes, with the vendor's GB read as 10^9.
    reported: the names by which drivers call it, as `torch.cuda.get_device_name` gives them.
    """

    matmul: float
    bandwidth: float
    memory: float
    source: str
    reported: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("matmul", "bandwidth", "memory"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 < value < inf):
                raise ValueError(f"{name}: expected a finite number > 0, got {value!r}")


# Where the vendor prints a rate with 2:4 sparsity, matmul is half of it.
DEVICES: dict[str, Device] = {
    "B200": Device(
        2.25e15,
        7.7e12,
        180e9,
        "NVIDIA HGX Blackwell datasheet, one GPU of HGX B200: 4.5 PFLOPS BF16 with sparsity, "
        "https://www.nvidia.com/en-us/data-center/hgx/",
        ("NVIDIA B200",),
    ),
    "H200 SXM": Device(
        989.5e12,
        4.8e12,
        141e9,
        "NVIDIA H200 datasheet: 1,979 TFLOPS BF16 with sparsity, "
        "https://www.nvidia.com/en-us/data-center/h200/",
        ("NVIDIA H200",),
    ),
    "H100 SXM": Device(
        989.5e12,
        3.35e12,
        80e9,
        "NVIDIA H100 datasheet: 1,979 TFLOPS BF16 with sparsity, "
        "https://www.nvidia.com/en-us/data-center/h100/",
        ("NVIDIA H100 80GB HBM3",),
    ),
    "A100 80GB SXM": Device(
        312e12,
        2.039e12,
        80e9,
        "NVIDIA A100 datasheet, https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/"
        "a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf",
        ("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
    ),
    "A100 80GB PCIe": Device(
        312e12,
        1.935e12,
        80e9,
        "NVIDIA A100 datasheet, https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/"
        "a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf",
        ("NVIDIA A100 80GB PCIe",),
    ),
    "RTX 4090": Device(
        165.2e12,
        1.008e12,
        24e9,
        "NVIDIA Ada GPU architecture whitepaper: BF16 with FP32 accumulate, "
        "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf",
        ("NVIDIA GeForce RTX 4090",),
    ),
    "L4": Device(
        121e12,
        300e9,
        24e9,
        "NVIDIA L4 datasheet: 242 TFLOPS BF16 with sparsity, "
        "https://www.nvidia.com/en-us/data-center/l4/",
        ("NVIDIA L4",),
    ),
    "T4": Device(
        65e12,
        300e9,
        16e9,
        "NVIDIA T4 datasheet: FP16, as a T4 has no BF16, https://www.nvidia.com/content/dam/en-zz/"
        "Solutions/Data-Center/tesla-t4/t4-tensor-core-datasheet-951643.pdf",
        ("Tesla T4",),
    ),
}


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a language model, enough to count its weights, work and memory.

    pattern: one glyph per pre-norm residual sub-layer: * attention, M Mamba, - SwiGLU MLP, E a
    layer of `experts` such MLPs of which each token visits `active`. context: the longest sequence
    it was trained for. conv: taps of Mamba's convolution. mixer_norms: RMS norms with weights on
    Mamba's dt, B and C. tied: one matrix embeds and unembeds.
    Raises ValueError for sizes that are missing or do not fit.
    """

    pattern: str
    vocab_size: int
    d_model: int
    context: int
    source: str
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    hidden: int = 0
    experts: int = 0
    active: int = 0
    state: int = 0
    expand: int = 2
    conv: int = 4
    dt_rank: int = 0
    mixer_norms: bool = False
    tied: bool = False

    NEEDS: ClassVar[dict[str, tuple[str, ...]]] = {
        "*": ("heads", "kv_heads", "head_dim"),
        "M": ("state", "expand", "conv", "dt_rank"),
        "-": ("hidden",),
        "E": ("hidden", "experts", "active"),
    }

    def __post_init__(self) -> None:
        whole(vocab_size=self.vocab_size, d_model=self.d_model, context=self.context)
        if not self.pattern:
            raise ValueError("pattern: expected at least one glyph, got ''")
        for glyph in sorted(set(self.pattern)):
            for name in find("pattern", glyph, self.NEEDS):
                whole(**{name: getattr(self, name)})
        if "*" in self.pattern:
            divides("kv_heads", "heads", kv_heads=self.kv_heads, heads=self.heads)
        if self.active > self.experts:
            raise ValueError(f"active: expected at most experts={self.experts}, got {self.active}")

    @property
    def channels(self) -> int:
        """Channels of a Mamba layer's inner part."""
        return self.expand * self.d_model


LLAMA_2_7B = ModelShape(
    pattern="*-" * 32,
    vocab_size=32_000,
    d_model=4096,
    heads=32,
    kv_heads=32,
    head_dim=128,
    hidden=11_008,
    context=4096,
    source="config.json of https://huggingface.co/meta-llama/Llama-2-7b-hf; arXiv:2307.09288",
)
LLAMA_3_8B = ModelShape(
    pattern="*-" * 32,
    vocab_size=128_256,
    d_model=4096,
    heads=32,
    kv_heads=8,
    head_dim=128,
    hidden=14_336,
    context=8192,
    source="config.json of https://huggingface.co/meta-llama/Meta-Llama-3-8B; arXiv:2407.21783",
)
LLAMA_3_70B = replace(
    LLAMA_3_8B,
    pattern="*-" * 80,
    d_model=8192,
    heads=64,
    hidden=28_672,
    source="config.json of https://huggingface.co/meta-llama/Meta-Llama-3-70B; arXiv:2407.21783",
)
MAMBA_2_8B = ModelShape(
    pattern="M" * 64,
    vocab_size=50_280,
    d_model=2560,
    state=16,
    dt_rank=160,
    tied=True,
    context=2048,
    source="config.json of https://huggingface.co/state-spaces/mamba-2.8b-hf; arXiv:2312.00752",
)
FALCON_MAMBA_7B = ModelShape(  # its config.json says expand 16, and intermediate_size 8192, as here
    pattern="M" * 64,
    vocab_size=65_024,
    d_model=4096,
    state=16,
    dt_rank=256,
    context=8192,
    source="config.json of https://huggingface.co/tiiuae/falcon-mamba-7b; arXiv:2410.05355",
)
JAMBA = ModelShape(
    pattern="M-MEM-ME*-MEM-ME" * 4,
    vocab_size=65_536,
    d_model=4096,
    heads=32,
    kv_heads=8,
    head_dim=128,
    hidden=14_336,
    experts=16,
    active=2,
    state=16,
    dt_rank=256,
    mixer_norms=True,
    context=262_144,
    source="config.json of https://huggingface.co/ai21labs/Jamba-v0.1; arXiv:2403.19887",
)
MODELS: dict[str, ModelShape] = {
    "Llama-2-7B": LLAMA_2_7B,
    "Llama-3-8B": LLAMA_3_8B,
    "Llama-3-70B": LLAMA_3_70B,
    "Llama-3.1-8B": replace(  # 3.1 kept the shape of 3 and lengthened its context
        LLAMA_3_8B,
        context=131_072,
        source="config.json of https://huggingface.co/meta-llama/Llama-3.1-8B; arXiv:2407.21783",
    ),
    "Llama-3.1-70B": replace(
        LLAMA_3_70B,
        context=131_072,
        source="config.json of https://huggingface.co/meta-llama/Llama-3.1-70B; arXiv:2407.21783",
    ),
    "Mamba-2.8B": MAMBA_2_8B,
    "Falcon-Mamba-7B": FALCON_MAMBA_7B,
    "Jamba-v0.1": JAMBA,
}


def find_model(model: str | ModelShape) -> ModelShape:
    """Return the shape itself, or the one of that name."""
    return model if isinstance(model, ModelShape) else find("model", model, MODELS)


def find_device(device: str | Device) -> Device:
    """Return the device itself, or the one of that name."""
    return device if isinstance(device, Device) else find("device", device, DEVICES)


def device_named(reported: str) -> Device | None:
    """The device that a driver reports by exactly this name; None for one not in DEVICES.

    Exactly, because an H100 with another memory, or an L40S, is no H100 SXM and no L4.
    """
    return next((device for device in DEVICES.values() if reported in device.reported), None)
