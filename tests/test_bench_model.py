"""ssmlib.bench.model: the models are of one size, floors count what must be, every row measured."""

import sys
from types import ModuleType

import pytest
import torch
from agreement import tensors

from ssmlib.bench import load_record, model, model_cpu, record
from ssmlib.bench.goals import verdicts
from ssmlib.bench.model import decode, peers, prefill, shapes
from ssmlib.bench.timing import Ceilings
from ssmlib.convolution import causal_conv1d_step_
from ssmlib.costs import attention_cost, kv_cache_bytes
from ssmlib.generate import state_bytes
from ssmlib.ssd import ssd_step_

CPU = torch.device("cpu")
TOP = Ceilings(1e9, 1e9, "float32")


def meta(sizes):
    configs = shapes.configs(sizes) | {"transformer, MHA": shapes.without_groups(sizes)}
    with torch.device("meta"):
        return {name: config.build() for name, config in configs.items()}


def test_the_models_are_of_one_size():
    counts = {name: shapes.weights(m)[0] for name, m in meta(shapes.FULL).items()}
    assert all(385e6 < count < 405e6 for count in counts.values()), counts


def test_a_quick_run_measures_every_row(tmp_path):
    rows = model.run(quick=True, device="cpu")
    assert {row["status"] for row in rows} == {"ok"}
    kinds = {(row["experiment"], row.get("provider")) for row in rows[1:]}
    assert len(kinds) == 3 * 4 + 1
    for row in rows[1:]:
        assert row["seconds"] > row["floor_seconds"] > 0
        assert row["state_bytes"] > 0
    record("model", rows, "python -m ssmlib.bench model --quick", tmp_path)
    assert load_record("model", tmp_path).rows == rows
    assert model.summary(rows).count("\n") == len(rows)
    batches = [row for row in rows if row["experiment"] == "throughput"]
    assert model.steps([*rows, batches[0] | {"status": "out of memory"}]).count("\n") == len(
        batches
    )


def test_what_a_step_reads_is_weights_and_state():
    for name, m in ((n, c.build()) for n, c in shapes.configs(shapes.QUICK).items()):
        row = decode.step_row("decode", name, m.eval(), 3, 40, TOP, CPU)
        held, cached = decode.place(m, 3, 40, CPU)
        layers = m.config.pattern.count("*")
        size = {"kv_heads": 2, "head_dim": 8, "length": 40, "batch": 3, "dtype": "float32"}
        assert cached == (kv_cache_bytes(layers, **size) if layers else 0)
        assert row["bytes"] == shapes.weights(m)[1] + 2 * state_bytes(held) - cached
        assert {x.shape[0] for x in tensors(list(filter(None, held)))} == {3}


def test_flops_are_those_of_the_counter():
    from torch.utils.flop_counter import FlopCounterMode

    made = shapes.configs(shapes.QUICK)["transformer"].build().eval()
    tokens = torch.zeros(2, 24, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        made(tokens, keep=1)
    attention = 2 * 2 * attention_cost(24, 4, 8).flops  # layers, batch; which it does not see here
    assert shapes.prompt_flops(made, 2, 24) == counter.get_total_flops() + attention


@torch.no_grad()
def test_the_peers_step_is_the_models_with_other_kernels(monkeypatch):
    """On a CPU, with stand-ins for the kernels: what goes where, and comes back."""

    def convolve(x, state, weight, bias, activation):
        return causal_conv1d_step_(x, weight, bias, activation, state=state[..., 1:])

    def norm(x, weight, bias, residual=None, eps=0.0, prenorm=False):
        x = x if residual is None else x + residual
        y = torch.nn.functional.rms_norm(x, weight.shape, weight, eps)
        return (y, x) if prenorm else y

    def gated(y, weight, bias, z, eps, norm_before_gate):
        assert not norm_before_gate
        return norm(y * torch.nn.functional.silu(z), weight, bias, eps=eps)

    def advance(state, x, dt, A, B, C, D, bias):
        return ssd_step_(x, dt, A, B, C, D, None, bias, True, state=state)

    triton = "mamba_ssm.ops.triton"
    modules = {name: ModuleType(name) for name in ("causal_conv1d", "mamba_ssm", "mamba_ssm.ops")}
    modules |= {name: ModuleType(name) for name in (triton, f"{triton}.layer_norm")}
    modules[f"{triton}.layernorm_gated"] = ModuleType("layernorm_gated")
    modules["causal_conv1d"].causal_conv1d_update = convolve
    modules[f"{triton}.layer_norm"].rms_norm_fn = norm
    modules[f"{triton}.layernorm_gated"].rmsnorm_fn = gated
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(peers.peers, "step", advance)
    made = shapes.configs(shapes.QUICK)["mamba-2"].build().eval()
    assert peers._error(made, CPU) < 1e-5


def test_without_the_peers_kernels_there_are_no_rows():
    made = shapes.configs(shapes.QUICK)["mamba-2"].build().eval()
    assert list(peers.rows(made, (1,), 8, TOP, CPU)) == []


def test_long_prompts_are_not_begun(monkeypatch):
    made = shapes.configs(shapes.QUICK)["mamba"].build().eval()
    monkeypatch.setattr(prefill, "LONGEST_S", 1e-9)
    first, second = prefill.rows("mamba", made, (8, 16), TOP, CPU)
    assert first["status"] == "ok"
    assert second["status"].startswith("skipped: would take up to")


def test_a_quick_run_on_the_cpu_makes_the_tokens_of_transformers():
    pytest.importorskip("transformers")
    theirs, ours = model_cpu.run(quick=True)
    assert theirs["status"] == ours["status"] == "ok"
    (verdict,) = verdicts([theirs, ours])
    assert verdict.aim.least == 2.0
    assert verdict.times == theirs["seconds"] / ours["seconds"]
    assert "ssmlib" in model_cpu.summary([theirs, ours])


def test_the_record_of_a_cpu_is_as_the_log_has_it():
    theirs, ours = load_record("model_cpu").rows
    assert 1.7 < ours["tokens_per_s"] / theirs["tokens_per_s"] < 1.8
