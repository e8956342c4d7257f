"""`ssd`: the contract, its checks, and which form runs."""

from functools import partial

import torch
from torch import Tensor

from ssmlib.backends import resolve
from ssmlib.recurrence import working_dtype
from ssmlib.ssd.checks import check_chunk_size, check_inputs
from ssmlib.ssd.forms import ssd_recurrent
from ssmlib.ssd.operator import ssd_by


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    chunk_size: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Run h heads of state space duality over x; return y (b t h p) and the last state.

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_tᵀ;  y_t = (h_t C_t + D x_t) silu(z_t), without what is
    None. dt_t is softplus(dt + dt_bias) with dt_softplus, dt + dt_bias without.

    x, z (b t h p): heads of p channels. dt (b t h). A (h,), at most 0: a head with A = 0 forgets
    nothing, which is linear attention. B, C (b t g n): head i of h reads group i // (h / g), and g
    divides h. D (h,) or (h p), dt_bias (h,). state (b h p n), float32 or float64, is the h before
    the first token; zero if None. cu_seqlens (s+1,), int32 or int64, increases from 0 to t: then
    b = 1, s sequences stand one after the other, and state is (s h p n), in and out. dt_t is meant
    to be >= 0, which is not checked.

    chunk_size: the tokens that are one masked matrix, a power of two from 16 to 256; None for what
    suits the form. It changes speed and memory, not the result.

    backend "reference" is the definition, a loop over time; "torch" goes by chunks of matrix
    products, see `ssmlib.ssd.chunks`; "triton" is the GPU's, for p and n up to 256. The last two
    keep a state for every so many tokens only, and differentiate once. "auto" takes "triton" for
    CUDA tensors that it can do, else "torch". Dtypes may be mixed; half precision computes in
    float32, but for what the matrix products of "triton" read: that has 16 bits if x, B and C have
    them, and a state beyond the range of float16 is infinite to it. y has the dtype of x, the state
    is float32, or float64 if anything is. Differentiable in every tensor but cu_seqlens. A NaN in
    one sequence leaves the other sequences alone.
    Raises ValueError for shapes that disagree, an empty sequence, dtypes that are not real floating
    point, another chunk_size, a backend that is unknown or cannot run; on a CPU, and outside of
    torch.compile, also for values of A that are not at most 0 and for cu_seqlens that does not cut
    up t.
    """
    check_inputs(x, dt, A, B, C, D, z, dt_bias, state, cu_seqlens)
    check_chunk_size(chunk_size)
    run = BACKENDS[choose(backend, x, dt, A, B, C, D, z, dt_bias, state)]
    return run(x, dt, A, B, C, D, z, dt_bias, dt_softplus, state, cu_seqlens, chunk_size)


def choose(backend: str, *tensors: Tensor | None) -> str:
    """The form that runs for the arguments x, dt, A, B, C, D, z, dt_bias and state.

    The kernels have room for MOST channels and states, and compute in float32: what they cannot do,
    "auto" leaves to "torch", and "triton" refuses.
    """
    x, _, _, B, *_ = tensors
    p, n = x.shape[-1], B.shape[-1]
    reason = None
    if working_dtype(*tensors) == torch.float64:
        reason = "computes in float32, got float64 inputs"
    elif max(p, n) > MOST:
        reason = f"takes p and n <= {MOST}, got p={p} (from x) and n={n} (from B)"
    if backend == "auto" and reason is not None:
        return "torch"
    chosen = resolve(backend, x, default="torch", available=BACKENDS)
    if chosen == "triton" and reason is not None:
        raise ValueError(f"backend: 'triton' {reason}; 'torch' runs on any device")
    return chosen


def _recurrent(*inputs: Tensor | bool | int | None) -> tuple[Tensor, Tensor]:
    *inputs, _ = inputs  # the definition has no chunks
    return ssd_recurrent(*inputs)


MOST = 256
BACKENDS = {
    "reference": _recurrent,
    "torch": partial(ssd_by, "torch"),
    "triton": partial(ssd_by, "triton"),
}
