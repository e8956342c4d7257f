"""`selective_scan`: the contract, its checks, and which form runs."""

from functools import partial

import torch
from torch import Tensor

from ssmlib.backends import resolve
from ssmlib.recurrence import working_dtype
from ssmlib.selective_scan.checks import check_inputs
from ssmlib.selective_scan.operator import scan_by
from ssmlib.selective_scan.reference import selective_scan_reference


def selective_scan(
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
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Run the selective scan over x; return y (b t d) and the last h, the state of the next piece.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t;  y_t = (C_t · h_t + D x_t) silu(z_t), without what is
    None. dt_t is softplus(dt + dt_bias) with dt_softplus, dt + dt_bias without.

    x, dt, z (b t d). A (d n), below 0. B, C (b t n), or (b t g n): channel i of d reads group
    i // (d / g), and g divides d. D, dt_bias (d,). state (b d n), float32 or float64, is the h
    before the first token; zero if None. cu_seqlens (s+1,), int32 or int64, increases from 0 to t:
    then b = 1, s sequences stand one after the other, and state is (s d n), in and out. dt_t is
    meant to be >= 0, which is not checked.

    backend "reference" is the definition, a loop over time; "torch" goes by chunks and tiles, see
    `ssmlib.selective_scan.tiles`; "triton" is the GPU's, in float32, for n up to 256. The last two
    keep an h for every so many tokens only, and differentiate once. "auto" takes "triton" for CUDA
    tensors that it can do, else "torch". Dtypes may be mixed; half precision computes in float32.
    y has the dtype of x, the state is float32, or float64 if anything is. Differentiable in every
    tensor but cu_seqlens. A NaN in one sequence leaves the other sequences alone.
    Raises ValueError for shapes that disagree, an empty sequence, dtypes that are not real floating
    point, a backend that is unknown or cannot run; on a CPU, and outside of torch.compile, also for
    values of A that are not below 0 and for cu_seqlens that does not cut up t.
    """
    B, C = check_inputs(x, dt, A, B, C, D, z, dt_bias, state, cu_seqlens)
    chosen = choose(backend, x, dt, A, B, C, D, z, dt_bias, state)
    return BACKENDS[chosen](x, dt, A, B, C, D, z, dt_bias, dt_softplus, state, cu_seqlens)


def choose(backend: str, *tensors: Tensor | None) -> str:
    """The form that runs for the arguments x, dt, A, B, C, D, z, dt_bias and state.

    The kernels have registers for MOST_STATES, and compute in float32: what they cannot do, "auto"
    leaves to "torch", and "triton" refuses.
    """
    x, _, A, *_ = tensors
    reason = None
    if working_dtype(*tensors) == torch.float64:
        reason = "computes in float32, got float64 inputs"
    elif A.shape[1] > MOST_STATES:
        reason = f"takes n <= {MOST_STATES}, got n={A.shape[1]} (from A)"
    if backend == "auto" and reason is not None:
        return "torch"
    chosen = resolve(backend, x, default="torch", available=BACKENDS)
    if chosen == "triton" and reason is not None:
        raise ValueError(f"backend: 'triton' {reason}; 'torch' runs on any device")
    return chosen


MOST_STATES = 256
BACKENDS = {
    "reference": selective_scan_reference,
    "torch": partial(scan_by, "torch"),
    "triton": partial(scan_by, "triton"),
}
