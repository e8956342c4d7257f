"""ssmlib.layers.rows and ssmlib.kernels.rows: a product and what stands around it in one launch."""

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from agreement import TOLERANCE, assert_close
from torch import nn
from uninterpreted import uninterpreted

from ssmlib.layers import MLPConfig, NormConfig, Residual, RMSNorm, residual, rows
from ssmlib.layers.rows import Convolution, by_kernel, by_kernel_, few, product, project
from ssmlib.mixers.attention import AttentionConfig
from ssmlib.mixers.mamba import MambaConfig
from ssmlib.mixers.mamba2 import Mamba2Config

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COMPILE = """
import sys, torch
from ssmlib.bench.assembly import compiled
from ssmlib.kernels import rows
rows.starts_early = lambda device: sys.argv[1] == "90"
def zeros(*size):
    return torch.zeros(*size, dtype=torch.bfloat16)
x, norm = zeros(2, 1024), zeros(1024)
def enter():
    taps = zeros(2304, 4), zeros(2304), zeros(2, 2304, 3)
    rows.forward(x, zeros(4384, 1024), None, norm, 1e-5, 0.0, None, *taps, 2048, True)
def leave():
    rows.forward(zeros(2, 2048), zeros(1024, 2048), None, zeros(2048), 1e-5, 0.0, x)
for made in (kernel for call in (enter, leave) for kernel in compiled(call, int(sys.argv[1]))):
    print(made.name, made.spills)
"""
MIXERS = {
    "mamba": MambaConfig(4),
    "mamba without a convolution": MambaConfig(4, conv_width=None),
    "mamba without a gate": MambaConfig(4, gated=False, bias=True),
    "mamba-2": Mamba2Config(8, 4),
    "mamba-2 in groups": Mamba2Config(8, 4, groups=2, bias=True),
    "mamba-2 gated after its norm": Mamba2Config(8, 4, norm_before_gate=True, dt_limit=(0.01, 1)),
    "mamba-2 with a wide skip": Mamba2Config(8, 4, wide_skip=True, conv_bias=False, conv_width=3),
    "attention": AttentionConfig(4, 2),
    "window": AttentionConfig(2, window=3, bias=True, out_bias=True),
    "mlp": MLPConfig(),
    "plain mlp": MLPConfig(gated=False, bias=True),
}


def made(seeded, b, i, o, bias, norm, past):
    """In float64: x, the matrix, the norm, what comes past."""
    linear = nn.Linear(i, o, bias=bias).double()
    for p in linear.parameters():
        p.data = seeded.normal(*p.shape)
    scale = RMSNorm(i, 1e-3, 1.0).double() if norm else None
    if norm:
        scale.weight.data = seeded.normal(i)
    return seeded.normal(b, i), linear, scale, seeded.normal(b, o) if past else None


def to(dtype, *things):
    return [None if v is None else copy.deepcopy(v).to(DEVICE, dtype) for v in things]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("around", [(0, 0, 0), (1, 1, 1), (0, 1, 0), (1, 0, 1)])
@pytest.mark.parametrize(("b", "i", "o"), [(1, 1, 1), (2, 7, 33), (4, 64, 16), (3, 24, 50)])
def test_it_is_the_product(b, i, o, around, dtype, seeded):
    x, linear, norm, past = made(seeded, b, i, o, *around)
    want = linear(x if norm is None else norm(x)) + (0 if past is None else past)
    for backend in ("torch", "triton"):
        got = project(*to(dtype, x, linear, norm, past), backend=backend)
        assert got.dtype == dtype
        assert_close(got, want, 4 * TOLERANCE[dtype])


@torch.no_grad()
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("first", "channels", "width"), [(0, 40, 4), (3, 20, 2), (30, 10, 5)])
def test_some_outputs_are_convolved(first, channels, width, dtype, backend, seeded):
    x, linear, norm, _ = made(seeded, 6, 12, 40, True, True, False)
    taps, bias = seeded.normal(channels, width), seeded.normal(channels)
    state = seeded.normal(2, channels, width - 1)
    made_ = linear(norm(x)).view(3, 2, 40)  # three tokens of two rows
    inputs = torch.cat([state, made_[..., first : first + channels].permute(1, 2, 0)], dim=2)
    want = F.silu(F.conv1d(inputs, taps[:, None], bias, groups=channels))
    (taps, bias, state), args = to(dtype, taps, bias, state), to(dtype, linear, norm)
    for t in range(3):
        convolution = Convolution(first, taps, bias, state)
        one = x.view(3, 2, 12)[t].to(DEVICE, dtype)
        got = project(one, *args, convolution=convolution, backend=backend)
        rest = made_[t].clone()
        rest[:, first : first + channels] = want[:, :, t]
        assert_close(got, rest, 4 * TOLERANCE[dtype])
    assert_close(state, inputs[:, :, 3:], 4 * TOLERANCE[dtype])


@torch.no_grad()
@pytest.mark.parametrize("by_kernels", [False, True])
@pytest.mark.parametrize("name", MIXERS)
def test_a_layer_steps_alike(name, by_kernels, seeded, monkeypatch):
    layer = Residual(16, MIXERS[name].build(16), NormConfig(eps=1e-3)).float().to(DEVICE)
    for p in layer.parameters():
        p.add_(0.1 * seeded.normal(*p.shape).to(p))
    x = seeded.normal(2, 9, 16).to(DEVICE, torch.float32)
    want, _ = layer(x)
    place = layer.hold(layer(x[:, :5])[1], 8)
    if by_kernels:
        monkeypatch.setattr(residual, "few", lambda x: True)
        monkeypatch.setattr(rows, "few", lambda x: True)
    steps = [layer.step_(x[:, t : t + 1], place) for t in range(5, 9)]
    assert_close(torch.cat(steps, dim=1), want[:, 5:], 1e-5)


@torch.no_grad()
def test_it_is_an_operator(seeded):
    x, linear, norm, past = to(torch.float32, *made(seeded, 2, 8, 12, True, True, True))
    taps, state = to(torch.float32, seeded.normal(5, 4), seeded.normal(2, 5, 3))
    args = (x, linear.weight, linear.bias, norm.weight, 1e-3, 1.0, past)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(by_kernel, args, test_utils=tests)
    torch.library.opcheck(by_kernel_, (*args, taps, None, state, 3), test_utils=tests)


def test_wrong_shapes_are_refused(seeded):
    linear = nn.Linear(3, 5).double()
    with pytest.raises(ValueError, match=r"x: expected \(b, 3\), got shape \(2, 4\)"):
        project(seeded.normal(2, 4), linear)
    with pytest.raises(ValueError, match=r"past: expected \(b, 5\) with b=2"):
        project(seeded.normal(2, 3), linear, past=seeded.normal(3, 5))
    with pytest.raises(ValueError, match="backend: expected one of auto, torch, triton, got 'cpu'"):
        project(seeded.normal(2, 3), linear, backend="cpu")


def test_where_gradients_are_wanted_it_is_not_for():
    assert not few(torch.zeros(1, 3))
    x = torch.zeros(1, 3, device=DEVICE)
    assert not few(x)  # gradients are on
    with torch.no_grad():
        assert few(x)
        assert few(x.expand(rows.MOST + 1, 3)) == (not x.is_cuda)
        assert not few(x.double())
        assert not torch.compile(few, backend="eager")(x)
        with torch.autocast(DEVICE, torch.bfloat16):
            assert not few(x)


@pytest.mark.parametrize("b", [1, 3, 64])
@pytest.mark.parametrize("bias", [False, True])
def test_a_large_product_on_a_cpu(b, bias, seeded, monkeypatch):
    ran, onednn = [], rows.ONEDNN
    monkeypatch.setattr(rows, "ONEDNN", lambda *args: ran.append(args) or onednn(*args))
    x, layer = seeded.normal(b, 2 * 300).float(), nn.Linear(300, 1000, bias)
    with torch.no_grad():
        for rows_of_x in (x[:, :300], x[:, ::2]):
            got = project(rows_of_x, layer)
            assert_close(got, layer.double()(rows_of_x.double()), 1e-6)
            layer.float()
        tokens = x.view(b, 2, 300)
        assert_close(product(tokens, layer), layer.double()(tokens.double()), 1e-6)
        layer.float()
    assert len(ran) == 3


@pytest.mark.parametrize("t", [1, 70])
def test_a_layer_with_hooks_or_of_another_class_is_called(t, seeded):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    x, seen = seeded.normal(2, t, 300).float(), []
    bare, hooked, other = nn.Linear(300, 1000), nn.Linear(300, 1000), Doubled(300, 1000)
    for layer in (hooked, other):
        layer.load_state_dict(bare.state_dict())
    hooked.register_forward_hook(lambda *given: seen.append(given))
    with torch.no_grad():
        want = bare(x)
        assert_close(product(x, bare), want, 1e-5)
        assert_close(product(x, hooked), want, 1e-5)
        assert_close(product(x, other), 2 * want, 1e-5)
        assert_close(product(x, hooked, bias=False), want - bare.bias, 1e-5)
        assert_close(product(x, other, bias=False), 2 * want - bare.bias, 1e-5)
    assert len(seen) == 2


def test_a_compiler_does_not_ask_how_much_work_it_is(seeded):
    layer, sizes = nn.Linear(30, 100), []

    def counted(graph, inputs):
        sizes.append([x.shape for x in inputs if isinstance(x, torch.Tensor)])
        return graph

    compiled = torch.compile(lambda x: product(x, layer), backend=counted, dynamic=True)
    with torch.no_grad():
        for t in (2, 3, 300):
            compiled(seeded.normal(1, t, 30).float())
    assert len(sizes) == 1


@pytest.mark.parametrize("capability", [80, 90])
def test_it_compiles_without_a_gpu(capability):
    told = uninterpreted(COMPILE, capability)
    assert told.split() == ["rows_kernel", "0"] * 2  # no spills


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("b", [1, 2, 4])
def test_launches_that_overlap_say_the_same(b, seeded):
    """A chain of products in a graph, against the same by PyTorch."""
    sizes = (1024, 4384, 1024, 2048, 1024)
    linears = [
        nn.Linear(i, o, bias=False, device="cuda", dtype=torch.bfloat16) for i, o in pairwise(sizes)
    ]
    norms = [RMSNorm(i).to("cuda", torch.bfloat16) for i in sizes[:-1]]
    x = seeded.normal(b, 1024).to("cuda", torch.bfloat16)

    def chain(backend):
        y = x
        for linear, norm in zip(linears, norms, strict=True):
            y = project(y, linear, norm, backend=backend)
        return y

    want = chain("torch")
    chain("triton")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = chain("triton")
    for _ in range(20):
        got.zero_()
        graph.replay()
        assert_close(got, want, 0.02)
