"""`selective_scan`: the contract, its checks, and which form runs."""

from functools import partial

from torch import Tensor

from ssmlib.backends import resolve
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
    `ssmlib.selective_scan.tiles`; "triton" is the GPU's. The last two keep an h for every so many
    tokens only, and differentiate once. Dtypes may be mixed; half precision is computed in float32.
    y has the dtype of x, the state is float32, or float64 if anything is. Differentiable in every
    tensor but cu_seqlens. A NaN in one sequence leaves the other sequences alone.
    Raises ValueError for shapes that disagree, an empty sequence, dtypes that are not real floating
    point, a backend that is unknown or cannot run; on a CPU, and outside of torch.compile, also for
    values of A that are not below 0 and for cu_seqlens that does not cut up t.
    """
    B, C = check_inputs(x, dt, A, B, C, D, z, dt_bias, state, cu_seqlens)
    chosen = resolve(backend, x, default="torch", available=BACKENDS)
    return BACKENDS[chosen](x, dt, A, B, C, D, z, dt_bias, dt_softplus, state, cu_seqlens)


BACKENDS = {
    "reference": selective_scan_reference,
    "torch": partial(scan_by, "torch"),
    "triton": partial(scan_by, "triton"),
}
