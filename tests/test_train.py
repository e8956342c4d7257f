"""ssmlib.train: rows that can be drawn again, also after a kill; groups, schedules, divergence."""

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ssmlib.mixers.mamba import MambaConfig
from ssmlib.mixers.s4 import S4DConfig
from ssmlib.model import ModelConfig, SequenceConfig
from ssmlib.tasks import delay, digits
from ssmlib.train import SCHEDULES, Task, TrainConfig, param_groups, seed_of, train
from ssmlib.train.checkpoint import read
from ssmlib.train.step import make_optimizer, make_step
from ssmlib.train.task import UNSCORED, loss, tally

DIGITS = Task(lambda seed: digits(8, seed, side=8))
CONFIG = TrainConfig(steps=12, lr=1e-2, warmup=3, evaluate_every=4, test_batches=2)


def classifier(seed=0, dropout=0.1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        glyph = S4DConfig(state_size=4, dropout=dropout)
        return SequenceConfig(10, 8, "S", {"S": glyph}, d_input=1, pooling="mean").build()


def interrupted(task, after):
    """The task, until its batch number `after` is asked for."""
    left = [after]

    def draw(seed):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return task.draw(seed)

    return Task(draw, {"test": task.draw})


def test_equal_seeds_give_equal_rows_and_other_seeds_others():
    runs = [train(classifier(), DIGITS, replace(CONFIG, seed=s)) for s in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert [row["step"] for row in runs[0]] == [4, 8, 12]
    assert list(runs[0][0]) == ["step", "lr", "loss", "test_loss", "test_accuracy", "status"]


def test_the_callers_random_numbers_go_on_as_if_nothing_was():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    train(classifier(), DIGITS, CONFIG)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("after", [1, 5, 7, 11])
def test_an_interrupted_run_goes_on_to_the_same_rows(after, tmp_path):
    whole_model = classifier()
    whole = train(whole_model, DIGITS, CONFIG)
    config = replace(CONFIG, checkpoint=tmp_path / "run.safetensors", checkpoint_every=3)
    with pytest.raises(KeyboardInterrupt):
        train(classifier(), interrupted(DIGITS, after), config)
    model = classifier(seed=99)  # whatever it starts with is replaced
    if after < 3:  # nothing was written yet
        model = classifier()
    assert train(model, DIGITS, config) == whole
    for got, want in zip(model.parameters(), whole_model.parameters(), strict=True):
        assert torch.equal(got, want)
    assert train(classifier(), DIGITS, config) == whole  # and once more, from the end
    assert list(tmp_path.iterdir()) == [tmp_path / "run.safetensors"]


KILLED = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from test_train import CONFIG, DIGITS, classifier, replace, train
config = replace(CONFIG, steps=4000, checkpoint=Path({path!r}), checkpoint_every=1)
train(classifier(), DIGITS, config)
"""


def test_a_run_killed_with_signal_9_goes_on_to_the_same_rows(tmp_path):
    path, tests = tmp_path / "run.safetensors", os.path.dirname(__file__)
    code = KILLED.format(tests=tests, path=str(path))
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code])
    limit = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    reached = read(path)[0]["step"]
    assert 0 < reached < 4000
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        steps = reached + 5
        config = replace(CONFIG, steps=4000, checkpoint=path)
        assert read(path)[0]["identity"] == config.identity()
        whole = train(classifier(), until(DIGITS, steps), replace(config, checkpoint=None))
        resumed = train(classifier(), until(DIGITS, steps - reached), config)
    finally:
        torch.set_num_threads(threads)
    assert resumed == whole


def until(task, steps):
    """The task for so many batches; the next one is no number, which ends the run."""
    left = [steps]

    def draw(seed):
        left[0] -= 1
        x, y = task.draw(seed)
        return (x if left[0] >= 0 else math.nan * x), y

    return Task(draw, {"test": task.draw})


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    config = replace(CONFIG, checkpoint=tmp_path / "run.safetensors")
    train(classifier(), DIGITS, config)
    with pytest.raises(
        ValueError, match=r"checkpoint: expected lr 0.02, got 0.01 in .*run.safetensors"
    ):
        train(classifier(), DIGITS, replace(config, lr=0.02))
    wide = SequenceConfig(10, 9, "S", {"S": S4DConfig(state_size=4)}, d_input=1, pooling="mean")
    with pytest.raises(ValueError, match=r"checkpoint: expected backbone.* \(9.*, got \(8"):
        train(wide.build(), DIGITS, config)


def test_a_checkpoint_is_flat_tensors_and_keeps_tied_ones_once(tmp_path):
    path = tmp_path / "run.safetensors"
    config = TrainConfig(steps=2, test_batches=1, checkpoint=path)
    build = ModelConfig(5, 8, "S", {"S": S4DConfig(state_size=4)}).build

    def draw(seed):
        tokens = torch.randint(0, 5, (2, 6), generator=torch.Generator().manual_seed(seed))
        return tokens, tokens

    rows = train(model := build(), Task(draw), config)
    header, tensors = read(path)
    assert (header["step"], header["rows"]) == (2, rows)
    assert ("model.embedding.weight" in tensors) != ("model.lm_head.weight" in tensors)
    assert {"total", "optimizer.0.exp_avg", "optimizer.0.exp_avg_sq"} <= set(tensors)
    assert train(other := build(), Task(draw), config) == rows
    assert other.lm_head.weight is other.embedding.weight
    assert all(map(torch.equal, other.parameters(), model.parameters()))


@pytest.mark.parametrize("content", [b"", b"no tensors here", None])
def test_a_file_that_is_no_checkpoint_is_refused(content, tmp_path):
    path = tmp_path / "run.safetensors"
    if content is None:
        save_file({"x": torch.zeros(1)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"checkpoint: expected a file that train wrote, got .*run"
    ):
        train(classifier(), DIGITS, replace(CONFIG, checkpoint=path))


def test_a_run_that_diverges_ends_with_the_word():
    rows = train(classifier(), until(DIGITS, 6), CONFIG)
    assert [row["status"] for row in rows] == ["ok", "diverged"]
    assert list(rows[-1])[-1] == "status"
    assert rows[-1]["step"] == 7
    assert rows[-1]["loss"] is None
    assert rows[-1]["test_accuracy"] is not None  # the model stayed as it was before


def test_an_absurd_learning_rate_diverges_or_trains_but_does_not_raise():
    for lr in (1e2, 1e10, 1e30):
        row = train(classifier(), DIGITS, replace(CONFIG, lr=lr, clip=None))[-1]
        assert row["status"] in ("ok", "diverged")


def test_a_diverged_run_is_not_taken_up_again(tmp_path):
    config = replace(CONFIG, checkpoint=tmp_path / "run.safetensors")
    rows = train(classifier(), until(DIGITS, 6), config)
    assert train(classifier(), DIGITS, config) == rows


def test_digits_are_learned():
    config = replace(CONFIG, steps=400, lr=3e-2, evaluate_every=None, test_batches=16)
    row = train(classifier(dropout=0.0), DIGITS, config)[-1]
    assert row["test_loss"] < row["loss"] < 2.25
    assert row["test_accuracy"] > 0.2  # chance is 0.1


def test_numbers_are_scored_by_their_error():
    task = Task(
        lambda seed: delay(4, 20, 2, 0.25, seed), {"long": lambda s: delay(2, 40, 2, 0.25, s)}
    )
    model = SequenceConfig(1, 4, "S", {"S": S4DConfig(state_size=4)}, d_input=1).build()
    row = train(model, task, CONFIG)[-1]
    assert math.isclose(row["long_rmse"] ** 2, row["long_loss"])
    assert row["long_rmse"] < 0.6
    assert "test_loss" not in row


def test_a_language_model_trains_on_what_is_scored(seeded):
    def draw(seed):
        tokens = torch.randint(0, 5, (4, 9), generator=torch.Generator().manual_seed(seed))
        targets = torch.where(torch.arange(9) < 4, UNSCORED, tokens)  # say what you see
        return tokens, targets

    model = ModelConfig(5, 8, "S", {"S": S4DConfig(state_size=4)}).build()
    row = train(model, Task(draw), replace(CONFIG, steps=100, lr=3e-2, evaluate_every=None))[-1]
    assert row["test_accuracy"] > 0.9


def test_bfloat16_trains_and_keeps_float32_weights():
    model = classifier()
    row = train(model, DIGITS, replace(CONFIG, precision="bfloat16"))[-1]
    assert row["status"] == "ok"
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_loss_and_tally_count_the_scored_alone(seeded):
    outputs, targets = seeded.normal(2, 3, 4), torch.tensor([[0, 1, UNSCORED], [3, UNSCORED, 2]])
    total, right, count = tally(outputs, targets)
    picked = outputs.log_softmax(-1)[targets >= 0, targets[targets >= 0]]
    assert torch.isclose(total, -picked.sum())
    assert torch.isclose(loss(outputs, targets), -picked.mean())
    assert count == 4
    assert right == (outputs.argmax(-1) == targets).sum()


def test_schedules():
    cosine = TrainConfig(steps=10, warmup=4)
    assert [cosine.scale(k) for k in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert math.isclose(cosine.scale(7), 0.5)
    assert 0 < cosine.scale(9) < 0.1
    constant = replace(cosine, schedule="constant")
    assert {constant.scale(k) for k in range(4, 10)} == {1.0}
    assert set(SCHEDULES) == {"constant", "cosine"}


def test_groups_slow_what_sets_time_scales_and_decay_matrices_alone():
    model = classifier()
    config = TrainConfig(steps=1, lr=1e-2, slow_lr=1e-3, weight_decay=0.1)
    names = {id(p): name.split(".")[-1] for name, p in model.named_parameters()}
    matrices, vectors, slow = param_groups(model, config)
    assert {names[id(p)] for p in slow["params"]} == {"log_dt", "log_A_real", "A_imag", "B"}
    assert (slow["lr"], slow["weight_decay"]) == (1e-3, 0.0)
    assert all(p.ndim == 1 for p in vectors["params"])
    assert vectors["weight_decay"] == 0.0
    assert (matrices["lr"], matrices["weight_decay"]) == (1e-2, 0.1)
    grouped = [id(p) for g in (matrices, vectors, slow) for p in g["params"]]
    assert sorted(grouped) == sorted(names)


def test_what_is_frozen_stays():
    glyph = S4DConfig(state_size=4, freeze=("A", "B", "dt"))
    model = SequenceConfig(10, 8, "S", {"S": glyph}, d_input=1, pooling="mean").build()
    before = {name: p.clone() for name, p in model.named_parameters()}
    train(model, DIGITS, replace(CONFIG, weight_decay=0.1))
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (not p.requires_grad), name


def test_an_update_is_clipped():
    model = nn.Linear(1, 1)
    config = TrainConfig(steps=1, clip=1e-3)

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x), None

    task = Task(lambda seed: (torch.full((4, 1), 100.0), torch.full((4, 1), 1e4)))
    wrapped = Wrapped()
    make_step(wrapped, make_optimizer(wrapped, config), config)(*task.draw(0))
    norm = math.hypot(model.weight.grad.item(), model.bias.grad.item())
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_seeds_depend_on_every_part():
    parts = [("a", 0, 1), ("a", 1, 0), ("b", 0, 1), ("a", 0, 1, 0), ("a", 0, "1")]
    seeds = [seed_of(*p) for p in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= s < 2**63 for s in seeds)
    assert (
        seed_of("train", 0, 0) == 6765641009571405007
    )  # rows of today can be drawn again tomorrow


TQDM = """
class tqdm:
    def __init__(self, steps, initial, total, unit):
        self.steps = steps
        assert (initial, total, unit) == (0, 12, "step")
    def __enter__(self):
        return self
    def __exit__(self, *_):
        print("closed")
    def __iter__(self):
        for step in self.steps:
            print("bar", step)
            yield step
"""


def test_the_bar_is_tqdms_where_there_is_one(tmp_path, monkeypatch, capsys):
    package = tmp_path / "tqdm"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "auto.py").write_text(TQDM)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tqdm", raising=False)
    monkeypatch.delitem(sys.modules, "tqdm.auto", raising=False)
    rows = train(classifier(), DIGITS, replace(CONFIG, progress=True))
    assert capsys.readouterr().out.splitlines()[-2:] == ["bar 11", "closed"]
    assert rows == train(classifier(), DIGITS, CONFIG)
    for name in ("tqdm", "tqdm.auto"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps: expected a whole number >= 1, got 0"),
        ({"lr": -1.0}, "lr: expected a finite number >= 0"),
        ({"lr": math.nan}, "lr: expected a finite number >= 0, got nan"),
        ({"schedule": "linear"}, "schedule: expected one of constant, cosine, got 'linear'"),
        ({"precision": "float16"}, "precision: expected one of float32, bfloat16"),
        ({"warmup": 9}, "warmup: expected a whole number >= 0 <= 8, got 9"),
        ({"clip": 0.0}, "clip: expected"),
        ({"evaluate_every": 0}, "evaluate_every: expected a whole number >= 1, got 0"),
    ],
)
def test_bad_configurations_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{"steps": 8} | wrong)


def test_a_graph_needs_a_gpu_and_a_model_needs_parameters():
    with pytest.raises(ValueError, match="captured: a CUDA graph needs a model on a GPU, got cpu"):
        train(classifier(), DIGITS, replace(CONFIG, captured=True))
    with pytest.raises(ValueError, match="model: expected parameters that require gradients"):
        train(classifier().requires_grad_(False), DIGITS, CONFIG)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_captured_step_trains_as_the_plain_one(precision):
    task = Task(lambda seed: digits(8, seed, side=8, device="cuda"))
    config = replace(CONFIG, steps=12, precision=precision)
    plain = train(classifier(dropout=0.0).cuda(), task, config)
    captured = train(classifier(dropout=0.0).cuda(), task, replace(config, captured=True))
    for one, other in zip(plain, captured, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["lr"] == other["lr"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("captured", [False, True])
def test_a_mamba_interrupted_on_a_gpu_goes_on_to_the_same_rows(captured, tmp_path):
    def draw(seed):
        tokens = torch.randint(0, 50, (4, 130), generator=torch.Generator().manual_seed(seed))
        return tokens.cuda(), tokens.cuda()

    def build():
        torch.manual_seed(0)
        return ModelConfig(50, 64, "MM", {"M": MambaConfig()}).build().cuda()

    task, config = Task(draw), replace(CONFIG, precision="bfloat16", captured=captured)
    whole = train(build(), task, config)
    config = replace(config, checkpoint=tmp_path / "run.safetensors", checkpoint_every=3)
    with pytest.raises(KeyboardInterrupt):
        train(build(), interrupted(task, 8), config)
    assert train(build(), task, config) == whole
