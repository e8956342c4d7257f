"""ssmlib.bench.model: the models are of one size, floors count what must be, every row measured."""

import pytest
import torch
from agreement import tensors

from ssmlib.bench import load_record, model, model_cpu, record
from ssmlib.bench.goals import verdicts
from ssmlib.bench.model import decode, prefill, shapes
from ssmlib.bench.timing import Ceilings
from ssmlib.costs import attention_cost, kv_cache_bytes
from ssmlib.generate import state_bytes

CPU = torch.device("cpu")
TOP = Ceilings(1e9, 1e9, "float32")


def meta(sizes):
    with torch.device("meta"):
        return {name: config.build() for name, config in shapes.configs(sizes).items()}


def test_the_models_are_of_one_size():
    counts = {name: shapes.weights(m)[0] for name, m in meta(shapes.FULL).items()}
    assert all(385e6 < count < 405e6 for count in counts.values()), counts


def test_a_quick_run_measures_every_row(tmp_path):
    rows = model.run(quick=True, device="cpu")
    assert {row["status"] for row in rows} == {"ok"}
    kinds = {(row["experiment"], row.get("provider")) for row in rows[1:]}
    assert len(kinds) == 3 * 4
    for row in rows[1:]:
        assert row["seconds"] > row["floor_seconds"] > 0
        assert row["state_bytes"] > 0
    record("model", rows, "python -m ssmlib.bench model --quick", tmp_path)
    assert load_record("model", tmp_path).rows == rows
    assert model.summary(rows).count("\n") == len(rows)


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
