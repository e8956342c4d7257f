r"""From $h' = A h + B x$ to $h_t = \bar A h_{t-1} + \bar B x_t$: what happens between two tokens.

The exact step is $\bar A = e^{\Delta A}$, and an integral of what the token poured in meanwhile.
Each rule answers that integral in its own way:

- `zoh`: the token is held still, and the answer is exact, also where A is singular.
- `exponential_euler`: exact decay, $\bar B = \Delta B$. What Mamba and Mamba-2 run.
- `bilinear`: the trapezoidal rule on the whole equation (Tustin). What S4 ran.
- `euler`: one straight line.
- `trapezoid`: exact decay, the integral from both ends. What Mamba-3 runs; reads two tokens.

`METHODS` names the four rules that read one token, `zoh_diagonal` is the zero-order hold of a
diagonal A, and `recurrence` and `kernel` are the two discrete views of a dense system.
The dense rules but Euler look at the values they are given, to scale them or to refuse them: they
wait for a GPU, and torch.compile does not trace them. `zoh_diagonal` does neither.
"""

import math
from collections.abc import Callable, Iterable
from functools import reduce
from itertools import repeat

import torch
from torch import Tensor

from ssmlib.shapes import check, check_broadcast, check_number

Pair = tuple[Tensor, Tensor]

LAST_SQUARINGS = 7  # what ends as e^-128, too small for float32, comes to them as 1/e


def phi1(z: Tensor) -> Tensor:
    """Return (e^z - 1) / z elementwise, real or complex, with its limit 1 at z = 0.

    Values and gradients keep full precision near 0, where the quotient's derivative would subtract
    two numbers of size 1/z: below |z| = 1/2 it is the Taylor series.
    """
    _check_numeric(z=z)
    near = z.abs() < 0.5
    far = torch.where(near, 1.0, z)  # each branch sees only what it can do, or 0 * inf is NaN
    z = torch.where(near, z, 0.0)
    series = torch.ones_like(z)
    for k in range(15, 1, -1):  # Horner; the first term left out is below 1e-17
        series = 1 + z * (1 / k) * series
    return torch.where(near, series, torch.expm1(far) / far)


def zoh_diagonal(a: Tensor, b: Tensor, dt: Tensor | float) -> Pair:
    """Zero-order hold of h' = a h + b x, elementwise: (e^(a dt), dt phi1(a dt) b).

    a, b (real or complex) and dt (a number or a tensor) broadcast; a_bar has the shape of a * dt,
    b_bar that of all three. Every one is differentiable, also at a = 0. dt may differ per step.
    Raises ValueError for shapes that do not broadcast, two devices, and a negative, infinite or NaN
    dt (of a tensor where its values can be read without waiting: on the CPU, not traced).
    """
    _check_numeric(a=a, b=b)
    _check_step(dt)
    check_broadcast(a=a, b=b, dt=dt)
    dt = dt if isinstance(dt, Tensor) else float(dt)
    z = a * dt
    return torch.exp(z), dt * phi1(z) * b


def zoh(A: Tensor, B: Tensor, dt: Tensor | float) -> Pair:
    """Zero-order hold: exact where x stands still during the step, for any A, up to rounding.

    A (n n), B (n m), real or complex. dt >= 0: a number, a 0-d tensor, or a tensor of steps, whose
    shape then stands in front of both results: dt (t,) gives A_bar (t n n) and B_bar (t n m).
    Both come from one exponential of [[A, B], [0, 0]] dt, so nothing is inverted (Van Loan 1978).
    Where A mixes fast and slow modes, rounding counts times the stiffness, their rates' quotient.
    Raises ValueError for a non-square A, a B that does not match, half precision, and a negative,
    infinite or NaN dt (as far as `zoh_diagonal` reads it).
    """
    A, B, dt = _prepare(A, B, dt)
    n, m = B.shape
    left = dt * A
    size = torch.exp2(_exponent(B) - 1)  # B scaled to 1, or it would coarsen the scaling of A
    top = torch.cat([left, (B / size).expand(*left.shape[:-2], n, m)], dim=-1)
    augmented = torch.cat([top, top.new_zeros(*top.shape[:-2], m, n + m)], dim=-2)
    exponential = _exponential(augmented)
    return exponential[..., :n, :n], size * (dt * exponential[..., :n, n:])


def exponential_euler(A: Tensor, B: Tensor, dt: Tensor | float) -> Pair:
    """Exact decay, one-point input: (e^(dt A), dt B). Arguments and errors as in `zoh`."""
    A, B, dt = _prepare(A, B, dt)
    return _exponential(dt * A), dt * B


def bilinear(A: Tensor, B: Tensor, dt: Tensor | float) -> Pair:
    """Tustin: (I - dt/2 A)^-1 (I + dt/2 A) and (I - dt/2 A)^-1 dt B.

    Arguments and errors as in `zoh`; also refused is an I - dt/2 A that is singular to working
    precision, as it is where A has an eigenvalue at 2/dt. A stable A has none.
    """
    A, B, dt = _prepare(A, B, dt)
    identity = torch.eye(len(A), dtype=A.dtype, device=A.device)
    left = identity - dt / 2 * A
    _check_invertible(left.detach())
    both = torch.linalg.solve(left, torch.cat([identity + dt / 2 * A, dt * B], dim=-1))
    return both[..., : len(A)], both[..., len(A) :]


def euler(A: Tensor, B: Tensor, dt: Tensor | float) -> Pair:
    """Forward Euler: (I + dt A, dt B). Arguments and errors as in `zoh`."""
    A, B, dt = _prepare(A, B, dt)
    return torch.eye(len(A), dtype=A.dtype, device=A.device) + dt * A, dt * B


def trapezoid(A: Tensor, B: Tensor, dt: Tensor | float, weight: Tensor | float = 0.5) -> Pair:
    """Exponential-trapezoidal rule: exact decay, the input weighed at both ends of the step.

    h_t = A_bar h_{t-1} + (1 - weight) dt A_bar B x_{t-1} + weight dt B x_t,   A_bar = e^(dt A).
    Returns A_bar and B_bar (n 2m), which acts on the pairs (x_{t-1}, x_t) that `pairs(x)` makes.
    weight (a number or a tensor like dt, in [0, 1]) is the lambda of Lahoti et al. 2026 (Mamba-3),
    who learn it per token: 1/2 is second order, 1 is `exponential_euler`. Other arguments and
    errors as in `zoh`.
    """
    A, B, dt = _prepare(A, B, dt)
    _check_step(weight, "weight", high=1.0)
    weight = _column(weight, A)
    check_broadcast(dt=dt[..., 0, 0], weight=weight[..., 0, 0])
    A_bar, B_bar = _exponential(dt * A), dt * B
    before, now = (1 - weight) * (A_bar @ B_bar), weight * B_bar
    return A_bar, torch.cat(torch.broadcast_tensors(before, now), dim=-1)


def pairs(x: Tensor, before: Tensor | None = None) -> Tensor:
    """Join each token to the one before it: x (b t m), before (b m), zero if None, to (b t 2m)."""
    check(x=(x, "b t m"), before=(before, "b m"))
    first = torch.zeros_like(x[:, :1]) if before is None else before[:, None]
    return torch.cat([torch.cat([first, x[:, :-1]], dim=1), x], dim=-1)


METHODS: dict[str, Callable[..., Pair]] = {
    "euler": euler,
    "exponential_euler": exponential_euler,
    "bilinear": bilinear,
    "zoh": zoh,
}


def method(name: str) -> Callable[..., Pair]:
    """Return the rule in METHODS called `name`; raise ValueError, naming them all, for another."""
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]


def recurrence(
    A_bar: Tensor,
    B_bar: Tensor,
    C: Tensor,
    D: Tensor | None,
    x: Tensor,
    state: Tensor | None = None,
) -> Pair:
    """Run h_t = A_bar h_{t-1} + B_bar x_t, y_t = C h_t + D x_t: the definition, one step per token.

    A_bar (n n) or one per step (t n n), B_bar (n m) or (t n m), C (p n) with p outputs, D (p m) or
    None, x (b t m), state (b n), the h before the first token; zero if None. C = I returns every h.
    Returns y (b t p) and the last h, the `state` of the next piece; the state is at least float32,
    and a complex one makes y complex. Raises ValueError on shapes.
    """
    stepped = {"A_bar": (A_bar, _per_step(A_bar, "n n")), "B_bar": (B_bar, _per_step(B_bar, "n m"))}
    check(x=(x, "b t m"), **stepped, C=(C, "p n"), D=(D, "p m"), state=(state, "b n"))
    widening = state if state is not None and state.is_complex() else None
    narrow, wide = _dtypes(A_bar, B_bar, C, D, x, widening)
    A_bar, B_bar, C, x = (z.to(wide) for z in (A_bar, B_bar, C, x))
    h = x.new_zeros(len(x), C.shape[1]) if state is None else state.to(wide)
    steps = x.shape[1]
    outputs = []
    for A_t, B_t, x_t in zip(_each(A_bar, steps), _each(B_bar, steps), x.unbind(1), strict=True):
        h = h @ A_t.mT + x_t @ B_t.mT
        outputs.append(h @ C.mT)
    y = torch.stack(outputs, dim=1)
    return (y if D is None else y + x @ D.to(wide).mT).to(narrow), h


def kernel(A_bar: Tensor, B_bar: Tensor, C: Tensor, length: int) -> Tensor:
    """Return K_i = C A_bar^i B_bar, (length p m): what a token leaves in the output i steps later.

    A_bar (n n), B_bar (n m), C (p n), the same at every step; multiplied in float32 or wider.
    Raises ValueError on shapes and for a length that is not a whole number >= 1.
    """
    check(A_bar=(A_bar, "n n"), B_bar=(B_bar, "n m"), C=(C, "p n"))
    check_number(length=length, low=1, whole=True)
    narrow, wide = _dtypes(A_bar, B_bar, C)
    A_bar, B_bar, left = (z.to(wide) for z in (A_bar, B_bar, C))
    taps = []
    for _ in range(length):
        taps.append(left @ B_bar)
        left = left @ A_bar
    return torch.stack(taps).to(narrow)


def _exponential(M: Tensor) -> Tensor:
    """e^M for M (... n n): Taylor series of M / 2^s, with norm below 1/2, squared s times.

    All but the last squarings act on e^M - I, where a slow mode beside fast ones keeps its digits;
    the last ones on e^M itself, where a mode that has almost faded does. Of a diagonal M both hold.
    Not torch.linalg.matrix_exp, whose degree-8 branch has had a wrong coefficient: reported for
    torch 2.14 with errors of 2e-5 in float32 and 8e-11 in float64 (pytorch/pytorch issue 196592).
    """
    s = (_exponent(M) + 1).clamp_min(0)[..., None, None]
    M = M * torch.exp2(-s)
    less = torch.zeros_like(M)  # e^M - I
    for k in range(15, 0, -1):  # Horner; the first term left out is below 1e-18
        less = M / k + M / k @ less
    count = int(s.max())  # at most 130 in float32 and 1026 in float64
    for i in range(count - LAST_SQUARINGS):
        less = torch.where(i < s - LAST_SQUARINGS, 2 * less + less @ less, less)
    identity = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
    out = identity + less
    for i in range(min(count, LAST_SQUARINGS)):
        out = out @ torch.where(i < s, out, identity)
    return out


def _exponent(matrix: Tensor) -> Tensor:
    """The whole k, as a real tensor, with 2^(k-1) <= |matrix|_1 < 2^k; 0 for zero, inf and NaN."""
    norm = torch.linalg.matrix_norm(matrix.detach(), ord=1)
    return torch.frexp(norm.nan_to_num(0, 0)).exponent.to(norm.dtype)


def _prepare(A: Tensor, B: Tensor, dt: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Check a dense system and bring it to one dtype, dt with two axes to broadcast against A."""
    _check_numeric(A=A, B=B)
    if A.ndim == 2 and A.shape[0] != A.shape[1]:
        raise ValueError(f"A: expected a square matrix (n, n), got shape {tuple(A.shape)}")
    check(A=(A, "n n"), B=(B, "n m"))
    _check_step(dt)
    dtype = torch.promote_types(A.dtype, B.dtype)
    if torch.finfo(dtype).bits < 32:
        raise ValueError(f"A: expected at least float32, got dtype {dtype}")
    A, B = A.to(dtype), B.to(dtype)
    return A, B, _column(dt, A)


def _column(number: Tensor | float, A: Tensor) -> Tensor:
    number = number if isinstance(number, Tensor) else float(number)
    real = torch.finfo(A.dtype).dtype
    return torch.as_tensor(number, dtype=getattr(torch, real), device=A.device)[..., None, None]


def _dtypes(*tensors: Tensor | None) -> tuple[torch.dtype, torch.dtype]:
    """The dtype of the answer, and the one to compute in: half precision would lose tokens."""
    narrow = reduce(torch.promote_types, (z.dtype for z in tensors if z is not None))
    return narrow, torch.promote_types(narrow, torch.float32)


def _check_numeric(**named: Tensor) -> None:
    for name, x in named.items():
        if not isinstance(x, Tensor):
            raise ValueError(f"{name}: expected a tensor, got {type(x).__name__}")
        if not (x.is_floating_point() or x.is_complex()):
            wanted = "real or complex floating point"
            raise ValueError(f"{name}: expected {wanted}, got dtype {x.dtype}")


def _check_invertible(left: Tensor) -> None:
    """Refuse a singular left = I - dt/2 A; how large its rows are does not matter to a solver."""
    wrong = ~left.isfinite()
    if wrong.any():
        raise ValueError(f"A: expected finite values of dt A, got {-left[wrong][0].item():g}")
    row = left.abs().amax(-1, keepdim=True)
    condition = torch.linalg.cond(left / row.where(row > 0, 1), p=1).max().item()
    if not condition < 1 / torch.finfo(left.dtype).eps:
        raise ValueError(
            "A: expected I - dt/2 A to be invertible, got one that is singular to working precision"
            f" (condition number {condition:.1e})"
        )


def _check_step(value: Tensor | float, name: str = "dt", high: float = math.inf) -> None:
    """Refuse a step below 0, above `high`, infinite or NaN."""
    if not isinstance(value, Tensor):
        check_number(low=0.0, high=high, **{name: value})
        return
    if value.is_complex() or value.numel() == 0:
        came = f"dtype {value.dtype}, shape {tuple(value.shape)}"
        raise ValueError(f"{name}: expected real values, got {came}")
    if value.device.type != "cpu" or torch.compiler.is_compiling():
        return  # zoh_diagonal neither waits for a device nor breaks a graph
    value = value.detach()
    wrong = ~(value.isfinite() & (value >= 0) & (value <= high))
    if wrong.any():
        bounds = ">= 0" if high == math.inf else f"in [0, {high:g}]"
        raise ValueError(f"{name}: expected finite values {bounds}, got {value[wrong][0].item():g}")


def _per_step(matrix: Tensor, axes: str) -> str:
    return f"t {axes}" if isinstance(matrix, Tensor) and matrix.ndim == 3 else axes


def _each(matrix: Tensor, length: int) -> Iterable[Tensor]:
    return matrix.unbind(0) if matrix.ndim == 3 else repeat(matrix, length)
