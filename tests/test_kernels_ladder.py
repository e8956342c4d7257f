"""ssmlib.kernels.ladder, the rungs of chapter 06: interpreted, compiled, and run on a GPU."""

import pytest
import torch
from agreement import assert_close

from ssmlib.bench.assembly import busiest_loop, compiled, count, instructions, report, table
from ssmlib.bench.ladder import CALLS, FORMS, RUNG, moved, run, summary
from ssmlib.kernels import ladder

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = [1, 2, 7, 8, 19]


def recur(a, x):
    """h_t = a_t h_{t-1} + x_t over axis 1, in float64."""
    h, states = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = a[:, t] * h + x[:, t]
        states.append(h)
    return torch.stack(states, dim=1)


def system(seeded, b, t, d, n):
    """x, dt, A, B, C in float64, with decays from slow to fast."""
    A = -seeded.uniform(d, n, low=0.1, high=3.0)
    return (
        seeded.normal(b, t, d),
        seeded.uniform(b, t, d, low=0.01, high=1.0),
        A,
        seeded.normal(b, t, n),
        seeded.normal(b, t, n),
    )


def read(x, dt, A, B, C):
    """y and every state, by the definition."""
    h = recur(torch.exp(dt[..., None] * A), (dt * x)[..., None] * B[:, :, None])
    return torch.einsum("btn,btdn->btd", C, h), h


def single(tensors):
    return [x.detach().to(DEVICE, torch.float32) for x in tensors]


@pytest.mark.parametrize("t", LENGTHS)
def test_scans(t, seeded):
    a, x = seeded.uniform(2, t, 5), seeded.normal(2, t, 5)
    want = recur(a, x)
    a, x = single([a, x])
    assert_close(ladder.tile_scan(a, x, D=4), want)
    assert_close(ladder.chunked_scan(a, x, T=8, D=4), want)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("t", LENGTHS)
def test_many_states(t, n, seeded):
    x, dt, A, B, C = system(seeded, 2, t, 5, n)
    y, h = read(x, dt, A, B, C)
    a, driven = torch.exp(dt[..., None] * A), (dt * x)[..., None] * B[:, :, None]
    assert_close(ladder.states_scan(*single([a, driven, C]), D=4), y)
    args = single([x, dt, A, B, C])
    assert_close(ladder.fused_scan(*args, D=4)[0], y)
    out, saved = ladder.fused_scan(*args, S=4, D=4)
    assert_close(out, y)
    before = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], dim=1)
    assert_close(saved, before[:, ::4])


@pytest.mark.parametrize("S", [1, 4, 32])
@pytest.mark.parametrize("t", LENGTHS)
def test_backward(t, S, seeded):
    leaves = [x.requires_grad_() for x in system(seeded, 2, t, 5, 3)]
    dy = seeded.normal(2, t, 5)
    want = torch.autograd.grad(read(*leaves)[0], leaves, dy)
    dy, *args = single([dy, *leaves])
    _, saved = ladder.fused_scan(*args, S=S, D=4)
    got = ladder.fused_backward(dy, *args, saved, S=S, D=4)
    for name, g, w in zip(("x", "dt", "A", "B", "C"), got, want, strict=True):
        assert_close(g, w, name=name)


def test_a_step_is_the_scan_of_one_token(seeded):
    x, dt, A, B, C = system(seeded, 2, 9, 5, 3)
    y, h = read(x, dt, A, B, C)
    before, last = h[:, -2].float().to(DEVICE), single([x[:, -1], dt[:, -1], A, B[:, -1], C[:, -1]])
    assert_close(ladder.step(*last, before, D=4), y[:, -1])
    assert_close(before, h[:, -1])


def test_bfloat16_is_computed_in_float32(seeded):
    x, dt, A, B, C = system(seeded, 1, 19, 5, 3)
    rounded = [z.to(torch.bfloat16) for z in (x, dt, B, C)]
    wide = [z.double() for z in rounded]
    args = [rounded[0], rounded[1], A.float(), rounded[2], rounded[3]]
    out, _ = ladder.fused_scan(*(z.to(DEVICE) for z in args), D=4)
    assert_close(out, read(wide[0], wide[1], A, wide[2], wide[3])[0])


@pytest.mark.parametrize("capability", [80, 90])
def test_compiles_without_a_gpu(capability):
    made = report("ssmlib.bench.ladder:CALLS", list(CALLS), capability)
    kernels = [kernel for made_by in made.values() for kernel in made_by]
    rungs = [f"{name}_kernel" for name in CALLS if not name.startswith("selective_scan")]
    assert [kernel.name for kernel in kernels][: len(rungs)] == rungs
    assert {kernel.name for kernel in kernels} >= {"scan_kernel", "gradient_kernel"}
    assert len(table(kernels).splitlines()) == 1 + len(kernels)
    for kernel in kernels:
        assert kernel.registers <= 255
        assert kernel.shared <= 48 * 1024  # bytes that every GPU has
    (fused,), (back,) = made["fused_scan"], made["fused_backward"]
    assert fused.loop["special"] == back.loop["special"] == 16 * 64 // 32  # one a state and lane


def test_interpreted_kernels_have_no_assembly(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="compiled: kernels are interpreted here; `report` uses"):
        compiled(CALLS["step"])


def test_a_loop_is_found_in_its_disassembly():
    sass = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/              @!P0 BRA 0x90 ;
        /*0020*/                   LDG.E R4, desc[UR4][R2.64] ;
        /*0030*/                   FMUL R4, R4, R5 ;
        /*0040*/               @P1 MUFU.EX2 R4, R4 ;
        /*0050*/                   FFMA R6, R4, R6, R7 ;
        /*0060*/              @!P1 BRA 0x40 ;
        /*0070*/               @P2 BRA 0x20 ;
        /*0080*/                   BRA 0x80;
    """
    assert busiest_loop(instructions(sass)) == [
        "MUFU.EX2 R4, R4",
        "FFMA R6, R4, R6, R7",
        "BRA 0x40",
    ]
    counted = count(busiest_loop(instructions(sass)))
    assert (counted["special"], counted["float"], counted["other"]) == (1, 1, 1)


@pytest.mark.gpu
class TestOnAGPU:
    def test_scans_of_a_models_size(self, seeded):
        a, x = seeded.uniform(2, 3000, 100), seeded.normal(2, 3000, 100)
        assert_close(ladder.chunked_scan(*single([a, x])), recur(a, x))
        a, x = a[:, :200], x[:, :200]
        assert_close(ladder.tile_scan(*single([a, x])), recur(a, x))

    @pytest.mark.parametrize("n", [5, 16])
    def test_there_and_back(self, n, seeded):
        leaves = [x.requires_grad_() for x in system(seeded, 2, 300, 200, n)]
        y, dy = read(*leaves)[0], seeded.normal(2, 300, 200)
        want = torch.autograd.grad(y, leaves, dy)
        dy, *args = single([dy, *leaves])
        out, saved = ladder.fused_scan(*args, S=32)
        assert_close(out, y)
        for g, w in zip(ladder.fused_backward(dy, *args, saved, S=32), want, strict=True):
            assert_close(g, w)


@pytest.mark.skipif(DEVICE == "cuda", reason="the suite's own run measures there")
def test_the_suite_checks_every_rung_and_the_crossover():
    rows = run(quick=True, device="cpu", parts=("rung", "crossover"))
    assert {row["status"] for row in rows} == {"ok"}
    assert [row["form"] for row in rows if row["experiment"] == "rung"] == list(FORMS)
    assert {row["n"] for row in rows if row["experiment"] == "crossover"} == {16, 32, 64}
    assert len(summary(rows).splitlines()) == len(rows) + 1
    assert rows[0]["experiment"] == "ceilings"


@pytest.mark.skipif(DEVICE == "cuda", reason="the suite's own run measures there")
def test_footprints_and_launches_are_measured_on_a_cpu():
    rows = run(quick=True, device="cpu", parts=("footprint", "launch"))[1:]
    assert {row["status"] for row in rows} == {"ok"}
    assert [row["bytes_each"] for row in rows if row["experiment"] == "footprint"] == [2**15, 2**16]
    assert {(row["form"], row["n"]) for row in rows if row["experiment"] == "launch"} == {
        (form, n) for form in ("loop", "library") for n in (64, 128)
    }


def test_a_form_moves_what_the_chapter_says():
    b, d, t, n = RUNG
    fused = 2 * b * t * (3 * d + 2 * n) + 4 * d * n  # eq-fusion
    assert moved("fused", RUNG) == moved("library", RUNG) == fused
    assert moved("chunked", RUNG) - fused == 6 * 4 * b * t * d * n
    assert moved("states", RUNG) - fused == 4 * 4 * b * t * d * n
