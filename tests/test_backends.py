import pytest
import torch
from agreement import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from ssmlib import backends
from ssmlib.backends import call, differentiable, resolve
from ssmlib.convolution import causal_conv1d
from ssmlib.scan import scan

ON_CPU = torch.zeros(1)
ALL = {"reference": None, "torch": None, "triton": None}


class OnGpu:
    is_cuda, device = True, "cuda:0"


def test_auto_is_torch_on_a_cpu_and_triton_on_a_gpu(monkeypatch):
    monkeypatch.setattr(backends, "HAS_TRITON", True)
    assert resolve("auto", ON_CPU, available=ALL) == "torch"
    assert resolve("auto", OnGpu(), available=ALL) == "triton"
    assert resolve("auto", OnGpu(), available=["reference", "torch"]) == "torch"
    assert resolve("auto", OnGpu(), ON_CPU, available=ALL) == "torch"


def test_auto_without_triton_is_the_default(monkeypatch):
    monkeypatch.setattr(backends, "HAS_TRITON", False)
    assert resolve("auto", OnGpu(), available=ALL, default="reference") == "reference"
    with pytest.raises(ValueError, match=r"needs the triton package: pip install 'ssmlib\[gpu\]'"):
        resolve("triton", OnGpu(), available=ALL)


def test_an_explicit_name_never_falls_back(monkeypatch):
    assert resolve("reference", OnGpu(), available=ALL) == "reference"
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(backends, "HAS_TRITON", True)
    with pytest.raises(ValueError, match=r"backend: 'triton' needs CUDA tensors, got device cpu"):
        resolve("triton", ON_CPU, available=ALL)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert resolve("triton", ON_CPU, available=ALL) == "triton"


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match="backend: expected one of auto, reference, torch, triton, got 'cuda'"
    ):
        resolve("cuda", ON_CPU, available=ALL)


def test_an_operator_is_called_as_its_function_where_nobody_looks_on():
    seen = []

    class Operator:
        def __call__(self, x):
            seen.append("operator")
            return x

        def _init_fn(self, x):
            seen.append("function")
            return x

    operator, x = Operator(), torch.zeros(2)
    call(operator, x)
    with torch.no_grad():
        call(operator, x)
        call(operator, x.as_subclass(type("Other", (torch.Tensor,), {})))
        torch.func.vmap(lambda row: call(operator, row))(x)
        with TorchDispatchMode():
            call(operator, x)
    assert seen == ["operator", "function", "operator", "operator", "operator"]


def names_of(run):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    return {event.key for event in profile.key_averages()}


def test_an_operator_with_a_gradient_is_left_out_where_nobody_looks_on(seeded):
    @torch.library.custom_op("ssmlib_tests::tenfold", mutates_args=())
    def tenfold(x: torch.Tensor, factor: float) -> torch.Tensor:
        return factor * x

    def keep(ctx, inputs, output):
        _, ctx.factor = inputs

    tenfold.register_fake(lambda x, factor: torch.empty_like(x))
    differentiable(tenfold, lambda ctx, dy: (call(tenfold, dy, ctx.factor), None), keep)
    x = seeded.normal(3).requires_grad_()
    ways = {"operator": tenfold, "function": lambda *args: call(tenfold, *args)}
    for name, run in ways.items():
        y = run(x, 10.0)
        (found,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(found, torch.full_like(x, 10.0))
        assert torch.equal(y, 10 * x)
        told = names_of(lambda run=run: run(x, 10.0))
        assert ("ssmlib_tests::tenfold" in told) == (name == "operator")
        compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
        assert torch.equal(torch.autograd.grad(compiled(x, 10.0).sum(), x)[0], found)


def test_an_operator_is_not_left_out_on_the_meta_device(seeded):
    @torch.library.custom_op("ssmlib_tests::halved", mutates_args=())
    def halved(x: torch.Tensor) -> torch.Tensor:
        return x / 2 if x.sum() > 0 else x / -2  # reads a value, as launching a kernel would

    halved.register_fake(torch.empty_like)
    differentiable(halved, lambda ctx, dy: dy / 2, lambda ctx, inputs, output: None)
    for x in (torch.ones(3, device="meta"), torch.ones(3, device="meta", requires_grad=True)):
        assert call(halved, x).is_meta


def test_many_gradients_in_one_backward_pass(seeded):
    a, x, w = seeded.uniform(1, 5, 2), seeded.normal(1, 5, 2), seeded.normal(2, 4)
    a.requires_grad_(True)
    for y, leaf in ((scan(a, x)[0], a), (causal_conv1d(a, w)[0], a)):
        dy = seeded.normal(3, *y.shape)
        (found,) = torch.autograd.grad(y, leaf, dy, is_grads_batched=True, retain_graph=True)
        alone = [torch.autograd.grad(y, leaf, one, retain_graph=True)[0] for one in dy]
        assert_close(found, torch.stack(alone))


def test_forward_mode_is_refused_where_an_operator_would_lose_its_tangent(seeded):
    a, x = seeded.uniform(1, 3, 2), seeded.normal(1, 3, 2)

    def of(form):
        return lambda x: scan(a, x, backend=form)[0]

    assert torch.func.jvp(of("reference"), (x,), (x,))[1].abs().sum() > 0
    told = "ssmlib::scan: expected gradients by reverse mode, got forward mode"
    for run in (of("torch"), torch.func.vmap(lambda row: of("torch")(row[None]))):
        with pytest.raises(NotImplementedError, match=told):
            torch.func.jvp(run, (x,), (x,))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        of("torch")(torch.autograd.forward_ad.make_dual(x, x))
