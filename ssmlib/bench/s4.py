"""The suite `s4`: what a linear time-invariant layer costs, and when to run it in which form.

`layer`: an S4D layer, by the walk of `ssmlib.kernels.s4d`, in chunks and by the FFT, against the
same layer with the plain kernel, an einsum over all powers of all poles; beside them the FFT
convolution alone, with its kernel given.
`kernel`: the kernel alone, on the GPU and on two cores of the CPU.
`form`: one system, forward, against the length: recurrence, direct sum, FFT, chunks, walk.

"plain" computes phases in float32, as the public minimal S4D does; its error is in the row.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssmlib.bench.cell import Cell, Setting, ceiling_row, fill
from ssmlib.bench.cpu import allocated_at_most, two_cores
from ssmlib.bench.s4_plain import apply, parameters_of, parts_of, plain_kernel, plain_system
from ssmlib.bench.table import Row, collect, number, table, text
from ssmlib.bench.timing import Ceilings, ceilings, default_device
from ssmlib.convolution import direct_conv, fft_conv
from ssmlib.mixers.s4 import S4DConfig, S4Layer
from ssmlib.s4 import kernel_diagonal, s4d

PASSES = ("forward", "forward+backward")
NAMES = {"recurrence": "reference", "fft": "fft", "chunks": "torch", "walk": "triton"}
WALKED = {"forward": 6, "forward+backward": 24}  # instructions of a lane per pole and token
COLUMNS = (
    ("", 6, text("experiment")),
    ("on", 4, text("on")),
    ("n", 6, text("n")),
    ("backend", 10, text("backend")),
    ("", 16, text("pass")),
    ("ms", 9, number("seconds", 1e3)),
    ("floor ms", 9, number("floor_seconds", 1e3)),
    ("by", 5, text("bound")),
    ("peak MB", 9, number("peak_bytes", 1e-6, ".1f")),
    ("error", 7, number("error", form=".1e")),
    ("", 0, lambda row: "" if row["status"] == "ok" else str(row["status"])),
)


class Shape(NamedTuple):
    """Batch, channels, state size and length."""

    b: int
    d: int
    n: int
    t: int


LAYER = Shape(b=8, d=1024, n=64, t=16384)
KERNEL = Shape(b=1, d=256, n=64, t=4096)
FORM = Shape(b=8, d=256, n=64, t=16384)  # t: the longest
LONGEST = {"recurrence": 4096, "direct": 4096, "fft": FORM.t, "chunks": FORM.t, "walk": FORM.t}


def run(
    quick: bool = False,
    device: str | torch.device | None = None,
    progress: Callable[[str], None] | None = None,
    save: Callable[[Row], None] | None = None,
) -> list[dict[str, Any]]:
    """All rows: the ceilings, then `layer`, `kernel`, `form`. quick=True takes tiny sizes.

    progress is called with a line of text after each row, save with the row itself.
    """
    device = default_device(device)
    seconds = (0.0, 0.02) if quick else (0.1, 0.5)
    setting = Setting(device, _ceilings(device, seconds[1]), *seconds)
    rows = itertools.chain([ceiling_row(setting.top)], _rows(setting, quick, seconds))
    return collect(rows, COLUMNS, progress, save)


def summary(rows: list[dict[str, Any]]) -> str:
    """The rows as a table, under the ceilings."""
    top, *others = rows
    copy, product = top["copy_bytes_per_s"] / 1e12, top["matmul_flops_per_s"] / 1e12
    head = f"copy {copy:.3f} TB/s, {top['dtype']} matrix product {product:.1f} TFLOP/s"
    return f"{head}\n{table(others, COLUMNS)}"


def _rows(setting: Setting, quick: bool, seconds: tuple[float, float]) -> Iterator[dict[str, Any]]:
    layer, kernel, form = LAYER, KERNEL, FORM
    if quick:
        layer, kernel, form = Shape(2, 8, 8, 128), Shape(1, 8, 8, 128), Shape(2, 8, 8, 64)
    on_gpu = setting.device.type == "cuda"
    for backend in ("plain", "fft", "chunks", *(["walk"] * on_gpu), "fft alone"):
        for which in PASSES:
            yield fill(layer_cell(layer, backend, which, setting.device), setting)
    yield from kernels(setting, kernel)
    if on_gpu:
        cpu = torch.device("cpu")
        with two_cores():
            yield from kernels(Setting(cpu, ceilings(cpu, time_s=seconds[1]), *seconds), kernel)
    t = 16
    while t <= form.t:
        for backend in (name for name, longest in LONGEST.items() if t <= longest):
            if backend == "walk" and not on_gpu:
                continue
            yield fill(form_cell(form._replace(t=t), backend, setting.device), setting)
        t *= 4


def kernels(setting: Setting, shape: Shape) -> Iterator[dict[str, Any]]:
    """Rows of `kernel` on one device; on a CPU the peak is that of its allocator."""
    on_gpu = setting.device.type == "cuda"
    for backend in ("plain", "torch", *(["triton"] * on_gpu)):
        for which in PASSES:
            cell = kernel_cell(shape, backend, which, setting.device)
            row = fill(cell, setting)
            if not on_gpu and row["status"] == "ok":
                inputs = cell.draw(cell.n)
                row["peak_bytes"] = allocated_at_most(lambda c=cell, i=inputs: c.run(*i))
            yield row


def layer_cell(shape: Shape, backend: str, which: str, device: torch.device) -> Cell:
    """An S4D layer (system, skip, GELU, gated mix of channels) on bfloat16 under autocast.

    Counted: the mix of channels, 2 real multiply-adds per pole and step of the kernel, 5/2 N log2 N
    per transform of length N = 2t (2 b d + d of them), three times all that with gradients; x, y
    and their gradients moved once, the spectra not at all. The walk has no kernel and no transform,
    but instructions for each pole and token: see WALKED.
    """
    b, d, n, t = shape
    backward = which != "forward"
    layer = _layer(shape, device, NAMES.get(backend, "auto"))
    kernel = torch.randn(d, t, device=device) / t**0.5
    alone, walked = backend == "fft alone", backend == "walk"
    work = 0 if walked else (2 * b + 1) * d * 2.5 * 2 * t * math.log2(2 * t)
    work += 0 if alone else 4 * b * t * d * d + (0 if walked else 2 * n * d * t)

    def forward(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        if alone:
            taps = kernel[:, : x.shape[1]].detach().requires_grad_(backward)
            return fft_conv(x, taps), [taps]
        system = plain_system if backend == "plain" else _fast_system
        bf16 = x.dtype == torch.bfloat16
        with torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext():
            return apply(layer, system, x), list(layer.parameters())

    def truth(x: Tensor, dy: Tensor | None = None) -> tuple[Tensor, ...]:
        if alone:
            y = direct_conv(x, kernel[:, : x.shape[1]].double())
        else:
            y = apply(_layer(shape, device).double(), plain_system, x)
        return (y,) if dy is None else (y, torch.autograd.grad(y, x, dy)[0])

    return Cell(
        labels=_labels("layer", backend, which, shape, device, torch.bfloat16),
        flops=int(work * (3 if backward else 1)),
        n_bytes=2 * b * t * d * (5 if backward else 2),
        needs=40 * d * n * t if backend == "plain" else 40 * b * d * t,
        n=t,
        check_at=min(t, 512),
        draw=_draw(shape, backward, device, torch.bfloat16),
        run=_with_gradients(forward),
        truth=truth,
        lanes=WALKED[which] * b * d * (n // 2) * t * walked,
    )


def kernel_cell(shape: Shape, backend: str, which: str, device: torch.device) -> Cell:
    """The kernel (d t) of an S4D system from dt, A, B and C, and their gradients.

    Counted: 2 real multiply-adds per pole and step, three times that with gradients; the kernel
    and its gradient moved once.
    """
    _, d, n, t = shape
    backward = which != "forward"
    values = parameters_of(_layer(shape, device).kernel)

    def draw(size: int) -> tuple[Tensor, ...]:
        leaves = [value.clone().requires_grad_(backward) for value in values]
        generator = torch.Generator(device).manual_seed(1)
        dK = torch.randn(d, size, generator=generator, device=device)
        return (*leaves, dK) if backward else tuple(leaves)

    def made(*inputs: Tensor, how: str) -> tuple[Tensor, ...]:
        leaves, dK = (inputs[:-1], inputs[-1]) if backward else (inputs, None)
        dt, A, B, C = parts_of(*leaves)
        plain = how == "plain"
        K = plain_kernel(dt, A, B, C, t) if plain else kernel_diagonal(dt, A, B, C, t, backend=how)
        return (K, *torch.autograd.grad(K, leaves, dK)) if backward else (K,)

    return Cell(
        labels=_labels("kernel", backend, which, shape, device, torch.float32),
        flops=2 * n * d * t * (3 if backward else 1),
        n_bytes=4 * d * t * (2 if backward else 1),
        needs=8 * d * n * t if backend == "plain" else 16 * d * t,
        n=t,
        check_at=t,
        draw=draw,
        run=lambda *inputs: made(*inputs, how=backend),
        truth=lambda *inputs: made(*inputs, how="reference"),
    )


def form_cell(shape: Shape, backend: str, device: torch.device) -> Cell:
    """One S4D system, forward in float32, by a form of LONGEST; "recurrence" is Python's.

    Counted: transforms, t^2/2 products, or, for the others, 2 real multiply-adds per entry of the
    state and token; x and y moved once.
    """
    b, d, n, t = shape
    values = parameters_of(_layer(shape, device).kernel)
    parts = parts_of(*values)

    def run(x: Tensor) -> tuple[Tensor, ...]:
        if backend == "direct":
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                return (direct_conv(x, kernel_diagonal(*parts, x.shape[1])),)
        return (s4d(x, *parts, backend=NAMES[backend])[0],)

    wide = parts_of(*(value.double() for value in values))
    transforms = (2 * b + 1) * d * 2.5 * 2 * t * math.log2(2 * t)
    work = {"recurrence": 4 * b * d * n * t, "direct": b * d * t * (t + 1), "fft": int(transforms)}
    return Cell(
        labels=_labels("form", backend, "forward", shape, device, torch.float32),
        flops=work.get(backend, work["recurrence"]),
        n_bytes=8 * b * d * t,
        needs=40 * b * d * t,
        n=t,
        check_at=min(t, 512),
        draw=_draw(shape, False, device, torch.float32),
        run=run,
        truth=lambda x: (direct_conv(x, plain_kernel(*wide, x.shape[1])),),
        lanes=WALKED["forward"] * b * d * (n // 2) * t * (backend == "walk"),
    )


def _ceilings(device: torch.device, seconds: float) -> Ceilings:
    """With the rate of plain instructions on a GPU, which binds the walk."""
    top = ceilings(device, time_s=seconds)
    if device.type != "cuda":
        return top
    from ssmlib.bench.rates import with_rates  # a Triton kernel

    return with_rates(top, device, seconds)


def _layer(shape: Shape, device: torch.device, backend: str = "auto") -> S4Layer:
    torch.manual_seed(0)
    config = S4DConfig(state_size=shape.n, init="lin", backend=backend)
    return config.build(shape.d).to(device)


def _fast_system(layer: S4Layer, x: Tensor) -> Tensor:
    return layer.kernel(x, layer.D, None)[0]


def _draw(shape: Shape, backward: bool, device: torch.device, dtype: torch.dtype) -> Callable:
    def draw(size: int) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        x, dy = (
            torch.randn(shape.b, size, shape.d, generator=generator, device=device).to(dtype)
            for _ in range(2)
        )
        return (x.requires_grad_(), dy) if backward else (x,)

    return draw


def _with_gradients(forward: Callable[[Tensor], tuple[Tensor, list[Tensor]]]) -> Callable:
    """forward(x) with parameters, to a call that also makes all gradients and returns that by x."""

    def run(x: Tensor, dy: Tensor | None = None) -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(dy is not None):
            y, parameters = forward(x)
        return (y,) if dy is None else (y, torch.autograd.grad(y, [x, *parameters], dy)[0])

    return run


def _labels(
    experiment: str,
    backend: str,
    which: str,
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Any]:
    names = {"experiment": experiment, "on": device.type, "backend": backend, "pass": which}
    sizes = {"n": shape.t, "b": shape.b, "d": shape.d, "state_size": shape.n}
    return names | sizes | {"dtype": str(dtype).removeprefix("torch.")}
