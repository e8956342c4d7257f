"""One model in training among others: a lane.

A model of a hundred thousand parameters leaves most of a GPU idle, and a loop in Python leaves it
idle between kernels too. So a lane has a stream of its own, and its update is a CUDA graph that
wants nothing from Python: the batches of the next steps lie in a buffer, and the number of the
step, the learning rates and the sums of loss and accuracy are on the device. When a run ends the
lane takes the next one of its case, with the same graph. On a CPU the update runs as it is.
"""

import contextlib
import warnings
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmlib.bench.recall.cases import Case, Run, Setting
from ssmlib.generate import state_bytes
from ssmlib.recall import TASKS
from ssmlib.train import TrainConfig, param_groups, seed_of
from ssmlib.train.step import make_optimizer, set_lr
from ssmlib.train.task import UNSCORED

CHUNK = 50  # steps between two looks at a run; their batches are drawn at once
WARMUP = 2  # updates before a graph is recorded: libraries set themselves up in the first ones
RISE = 100  # steps, at most, until the learning rate is at its highest
GOOD = 0.9
AT_ONCE = 2**16  # tokens in one call of a model that is tested


class Stretch(NamedTuple):
    """Some steps: how many, their mean loss, and the share of answers that was right."""

    steps: int
    loss: float
    accuracy: float


class Tested(NamedTuple):
    """What is right, as a share of answers and of sequences; of how many; bytes kept of one."""

    length: int
    accuracy: float
    exact: float
    sequences: int
    answers: int
    state_bytes: int


class Lane:
    """A model of the case on the device. `begin` a run; then `advance` and `look`, and `test`."""

    def __init__(self, case: Case, device: str, captured: bool | None = None):
        self.case, self.device = case, torch.device(device)
        on_gpu = self.device.type == "cuda"
        self.captured = on_gpu if captured is None else captured
        self.stream = torch.cuda.Stream() if on_gpu else None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.chunk: tuple[Tensor, ...] | None = None
        self.run: Run | None = None
        self.spent = 0.0  # seconds of the run that are this lane's share, for its caller to count
        with self.aside():
            self.model = drawn(case, 0).to(self.device).train()
            self.optimizer = make_optimizer(self.model, self._config(1e-3, 0))
            groups = self.optimizer.param_groups
            self.learned = [p for group in groups for p in group["params"]]
            self.at = torch.zeros(1, dtype=torch.long, device=self.device)
            self.sums = torch.zeros(3, dtype=torch.float64, device=self.device)
            self.rates = torch.zeros(case.course.steps, len(groups), device=self.device)

    def begin(self, run: Run) -> None:
        """Forget the last run: parameters as the seed draws them, an optimizer without a past."""
        self.run, self.done, self.seen, self.spent = run, 0, 0, 0.0
        self.reached: int | None = None  # steps until a share GOOD of a stretch was right
        self.config = self._config(run.lr, run.seed)
        self.ahead: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()
        with self.aside():
            if self.captured and self.graph is None:
                self._fill(0)
                self._record()
            self._reset()

    def advance(self) -> None:
        """Send the next steps to the device, at most CHUNK of them; a GPU is not waited for."""
        count = min(CHUNK, self.config.steps - self.done)
        with self.aside():
            self._fill(self.done // CHUNK)
            for k in range(self.done, self.done + count):
                if self.graph is None:
                    set_lr(self.optimizer, self.config.scale(k))
                    self._update()
                else:
                    self.graph.replay()
            sums, event = self.sums.to("cpu", copy=True, non_blocking=True), None
            if self.stream is not None:
                event = torch.cuda.Event()
                event.record()
            self.sums.zero_()
        self.ahead.append((count, sums, event))
        self.done += count

    def look(self) -> Stretch:
        """Wait for the oldest steps that were not looked at yet."""
        count, sums, event = self.ahead.popleft()
        if event is not None:
            event.synchronize()
        total, right, asked = sums.tolist()
        self.seen += count
        if self.reached is None and asked and right >= GOOD * asked:
            self.reached = self.seen
        return Stretch(count, total / count, right / max(asked, 1))

    @torch.no_grad()
    def test(self, setting: Setting, seed: int) -> Tested:
        """Ask about `sequences` of a setting, some at a time."""
        draw = TASKS[self.case.course.task].draw
        right = torch.zeros(2, dtype=torch.float64, device=self.device)
        with self.aside():
            tokens, targets = draw(
                batch=self.case.course.sequences, seed=seed, device=self.device, **setting
            )
            (count, length), rows = tokens.shape, max(1, AT_ONCE // tokens.shape[1])
            self.model.eval()
            _, state = self.model(tokens[:1])
            for some, wanted in zip(tokens.split(rows), targets.split(rows), strict=True):
                places, asked = scored(wanted)
                good = answers(self.model, some, places).argmax(-1) == asked
                right[0] += (good & (asked != UNSCORED)).sum()
                right[1] += (good | (asked == UNSCORED)).all(1).sum()
            self.model.train()
            share, exact = right.tolist()
            asked = (targets != UNSCORED).sum().item()
        return Tested(length, share / asked, exact / count, count, asked, state_bytes(state))

    def close(self) -> None:
        """Give back what the graph holds."""
        if self.graph is not None:
            self.stream.synchronize()
            self.graph.reset()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """On the lane's stream, if it has one."""
        with contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
            yield

    def _config(self, lr: float, seed: int) -> TrainConfig:
        course = self.case.course
        return TrainConfig(
            steps=course.steps,
            lr=lr,
            schedule=course.schedule,
            warmup=min(course.steps // 20, RISE),
            seed=seed,
            captured=self.captured,
        )

    def _fill(self, number: int) -> None:
        """Lay the batches of a stretch in the buffer: tokens, where answers are due, and which."""
        course = self.case.course
        seed = seed_of("recall", self.run.seed, number)
        tokens, targets = course.draw(CHUNK, seed, self.device)
        places, asked = scored(targets.flatten(0, 1), course.most_asked)
        fresh = (tokens, *(x.unflatten(0, (CHUNK, -1)) for x in (places, asked)))
        if self.chunk is None:
            self.chunk = tuple(x.contiguous() for x in fresh)
        else:  # the graph reads these addresses
            for old, new in zip(self.chunk, fresh, strict=True):
                old.copy_(new)

    def _record(self) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*capturable=True.*")  # it will be, soon
            for _ in range(WARMUP):
                self._update()
        self.optimizer.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        self.graph.capture_begin(capture_error_mode="thread_local")
        self._update()
        self.graph.capture_end()

    def _reset(self) -> None:
        fresh = drawn(self.case, self.run.seed).state_dict()
        with torch.no_grad():
            for name, x in self.model.state_dict().items():
                x.copy_(fresh[name])
            for state in self.optimizer.state.values():
                for x in state.values():
                    x.zero_()
        self.at.zero_()
        self.sums.zero_()
        groups = self.optimizer.param_groups
        for group, new in zip(groups, param_groups(self.model, self.config), strict=True):
            group["top"] = new["top"]
        scale = torch.tensor([self.config.scale(k) for k in range(self.config.steps)])
        self.rates.copy_(scale[:, None] * torch.tensor([group["top"] for group in groups]))

    def _update(self) -> None:
        """A step of the optimizer, and its loss and score added to the sums."""
        tokens, places, asked = (x.index_select(0, self.at % CHUNK)[0] for x in self.chunk)
        if self.captured:
            rates = self.rates.index_select(0, self.at)[0].unbind()
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"].copy_(rate)
        self.optimizer.zero_grad(set_to_none=True)
        logits = answers(self.model, tokens, places).float()
        value = F.cross_entropy(logits.flatten(0, 1), asked.flatten(), ignore_index=UNSCORED)
        value.backward()
        nn.utils.clip_grad_norm_(self.learned, self.config.clip)
        self.optimizer.step()
        right, due = logits.detach().argmax(-1) == asked, asked != UNSCORED
        self.sums.add_(torch.stack([value.detach().double(), right.sum(), due.sum()]))
        self.at.add_(1)


def drawn(case: Case, seed: int) -> nn.Module:
    """The model as a seed draws it, on the CPU, so that every device trains the same."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return case.model.build()


def answers(model: nn.Module, tokens: Tensor, places: Tensor) -> Tensor:
    """The logits at some places alone: tokens (b t), places (b k), to (b k vocab)."""
    y, _ = model.backbone(model.embedding(tokens))
    return model.lm_head(y.gather(1, places.unsqueeze(2).expand(-1, -1, y.shape[2])))


def scored(targets: Tensor, most: int | None = None) -> tuple[Tensor, Tensor]:
    """Where something is asked, in order, and what: both (b k); what is left over is UNSCORED.

    most: k; None for the most there are in a row, for which a GPU has to be asked.
    """
    asked = targets != UNSCORED
    t = targets.shape[1]
    most = int(asked.sum(1).max()) if most is None else most
    early = asked * torch.arange(t, 0, -1, device=targets.device)
    places = early.topk(most).indices
    return places, targets.gather(1, places)
