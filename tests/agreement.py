"""What tests share: seeded data, and one measure of agreement, ‖out − ref‖ / ‖ref‖."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1e-2,
}


class Seeded:
    """Random tensors from one CPU generator: `seeded.normal(2, 3)`, `seeded.uniform(4)`."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64):
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=self.dtype)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=self.generator, dtype=self.dtype)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator)


def error(out: Tensor, ref: Tensor) -> float:
    """Relative error in the Euclidean norm, in float64; a NaN anywhere never passes."""
    assert out.shape == ref.shape, f"shape {tuple(out.shape)}, wanted {tuple(ref.shape)}"
    wide = torch.complex128 if ref.is_complex() or out.is_complex() else torch.float64
    out, ref = out.detach().to("cpu", wide), ref.detach().to("cpu", wide)
    return ((out - ref).norm() / ref.norm().clamp_min(1e-30)).item()


def assert_close(
    out: Tensor, ref: Tensor, tolerance: float | None = None, name: str = "out"
) -> None:
    tolerance = TOLERANCE[out.dtype] if tolerance is None else tolerance
    e = error(out, ref)
    assert e <= tolerance, f"{name}: error {e:.2e}, tolerance {tolerance:.0e}"


def tensors(result: object) -> list[Tensor]:
    """Every tensor of a nested result, in order."""
    if isinstance(result, Tensor):
        return [result]
    return [x for r in result for x in tensors(r)] if isinstance(result, tuple | list) else []


def assert_same(
    f: Callable,
    args: Sequence,
    *,
    backend: str,
    reference: str,
    tolerance: float | None = None,
    **kw,
) -> None:
    """Outputs, states and gradients of f under `backend` equal those under `reference`."""
    results = []
    for which in (backend, reference):
        leaves = [
            x.detach().clone().requires_grad_(x.is_floating_point()) if isinstance(x, Tensor) else x
            for x in args
        ]
        out = tensors(f(*leaves, backend=which, **kw))
        weights = torch.Generator().manual_seed(1)  # the same random cotangents for both
        loss = sum(
            (o * torch.randn(o.shape, generator=weights, dtype=torch.float64).to(o)).sum()
            for o in out
        )
        wanted = [x for x in leaves if isinstance(x, Tensor) and x.requires_grad]
        results.append((out, torch.autograd.grad(loss, wanted, allow_unused=True)))
    (out, grads), (ref, ref_grads) = results
    assert len(out) == len(ref)
    for i, (o, r) in enumerate(zip(out, ref, strict=True)):
        assert_close(o, r, tolerance, f"output {i}")
    for i, (o, r) in enumerate(zip(grads, ref_grads, strict=True)):
        assert (o is None) == (r is None), f"gradient {i}: one of the two is missing"
        if r is not None:
            assert_close(o, r, tolerance, f"gradient of input {i}")
