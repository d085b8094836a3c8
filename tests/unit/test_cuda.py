"""What a CUDA device must do. Here its arithmetic, and its order over streams that only pretend; on a GPU the rest."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pipeline.cuda
from benchmarks.gpu import copies
from consumers.batch import Batch
from pipeline.cuda import Graphed
from pipeline.learner import Learner
from pipeline.task import Binary
from tests.unit.test_learner import SIZE, batch, digest, job

CPU = torch.device("cpu")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def bad() -> Batch:
    """A batch whose loss is not finite, whatever the task."""
    made = batch(9)
    made.weights_B[0] = np.inf
    return made


class Waiting(nn.Module):
    """Asks the device for a number in every forward, which no graph can do. Counts its training forwards."""

    forwards: Tensor

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("forwards", torch.zeros(1))

    def forward(self, features_NC: Tensor) -> Tensor:
        if self.training:
            self.forwards += 1
        if features_NC[0, 0].isnan().item():
            return self.inner(features_NC) * 0
        return self.inner(features_NC)


class WaitingTask(Binary):
    def module(self) -> nn.Module:
        return Waiting(super().module())


class Dropping(nn.Sequential):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner, nn.Dropout(0.5))


class DroppingTask(Binary):
    """Draws random numbers on the device in every step."""

    def module(self) -> nn.Module:
        return Dropping(super().module())


class CoolingTask(Binary):
    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        optimizer = super().optimizer(module)

        def cool(cooled: torch.optim.Optimizer, *_: Any) -> None:
            for group in cooled.param_groups:
                group["lr"] *= 0.99

        optimizer.register_step_post_hook(cool)
        return optimizer


class ForeachTask(Binary):
    """An optimizer that cannot skip by itself."""

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(module.parameters(), lr=self.learner.learning_rate, foreach=True)


def task(kind: type) -> str:
    return f"{kind.__module__}:{kind.__name__}"


# The arithmetic, on any device.


def unseen(learner: Learner, with_batch: Batch, refuse: float = 0) -> tuple[float, float]:
    tensors = tuple(
        torch.from_numpy(array) for array in (with_batch.features_BC, with_batch.labels_B, with_batch.weights_B)
    )
    loss, refused = learner.method.executor._training.step_unseen(tensors, torch.tensor(refuse)).tolist()
    return loss, refused


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_in_which_the_host_decides_nothing_gives_the_same_bits(precision: str) -> None:
    seen, blind = (Learner(job(task="regression", precision=precision)) for _ in range(2))
    for each in [batch(0), batch(1), bad(), batch(2), bad(), batch(3)]:
        report = seen.step(each)
        loss, refused = unseen(blind, each)
        assert bool(refused) == report.refused
        assert np.float32(loss).tobytes() == np.float32(report.loss).tobytes()
        assert digest(blind) == digest(seen)


def test_a_rehearsal_changes_nothing() -> None:
    learner = Learner(job())
    learner.step(batch(0))
    before = digest(learner)
    assert unseen(learner, batch(1), refuse=1)[1] == 1
    assert digest(learner) == before
    assert not hasattr(learner.method.optimizer, "found_inf")


# The order, over a device that keeps what it was told for later.


class Pretended:
    """Streams of a device that does nothing until it is waited for, and then no more than it must."""

    def __init__(self) -> None:
        self.current = Stream(self)
        self.captures: list[str] = []


class Stream:
    def __init__(self, device: Pretended) -> None:
        self.device = device
        self.queue: list[Callable[[], None]] = []

    def add(self, work: Callable[[], None]) -> None:
        self.queue.append(work)

    def run(self, until: int | None = None) -> None:
        while self.queue and (until is None or until > 0):
            self.queue.pop(0)()
            until = None if until is None else until - 1

    synchronize = run

    def wait_event(self, event: Event) -> None:
        mark = event.mark
        if mark is not None:
            self.add(mark)

    def wait_stream(self, other: Stream) -> None:
        event = Event(self.device)
        event.record(other)
        self.wait_event(event)


class Event:
    """`mark` runs what its stream had to do before it was recorded."""

    def __init__(self, device: Pretended) -> None:
        self.device = device
        self.mark: Callable[[], None] | None = None

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or self.device.current
        done = [False]

        def reached() -> None:
            done[0] = True

        def mark() -> None:
            while not done[0]:
                stream.run(1)

        stream.add(reached)
        self.mark = mark

    def synchronize(self) -> None:
        if self.mark is not None:
            self.mark()


class Graph:
    """Replays what `run` did."""

    run: Callable[[], None]

    def __init__(self, device: Pretended) -> None:
        self.device = device

    def replay(self) -> None:
        self.device.current.add(self.run)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    """torch.cuda as far as `pipeline.cuda` uses it; `Tensor.copy_(..., non_blocking=True)` waits in its stream."""
    device, plain_copy = Pretended(), Tensor.copy_

    @contextmanager
    def stream(chosen: Stream) -> Iterator[None]:
        before, device.current = device.current, chosen
        try:
            yield
        finally:
            device.current = before

    def copy_(self: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        def work() -> None:
            with torch.no_grad():
                plain_copy(self, source)

        if non_blocking or (self.numel() == source.numel() == SIZE * 5):  # the last: a block, within the device
            device.current.add(work)
            return self
        return plain_copy(self, source)

    def captured(run: Callable[[], None], what: str) -> Graph:
        graph = Graph(device)
        graph.run = run
        device.captures.append(what)
        device.current.run()
        run()
        return graph

    for name, value in {
        "Stream": lambda *_: Stream(device),
        "Event": lambda: Event(device),
        "CUDAGraph": lambda: Graph(device),
        "current_stream": lambda *_: device.current,
        "stream": stream,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(Tensor, "copy_", copy_)
    monkeypatch.setattr(pipeline.cuda, "_PINNED", {})
    monkeypatch.setattr(pipeline.cuda, "_captured", captured)
    return device


def graphed(config: Any) -> Learner:
    learner = Learner(config)
    learner.method.executor = Graphed(learner.method.executor._training, SIZE, config.features.columns, CPU)
    return learner


def life(learner: Learner, between: Callable[[], None] = lambda: None) -> list[Any]:
    """All that a learner answers over some steps, two of them refused in a row, and its state at the end."""
    rows = np.concatenate([batch(seed).features_BC for seed in range(5)])[: 4 * SIZE + 7]
    answers, reports = [], []
    for number, each in enumerate([batch(0), batch(1), bad(), bad(), batch(2), bad(), batch(3)]):
        answers.append(learner.score(rows).tobytes())
        reports.append(learner.step(each))
        between()
        if number == 4:
            assert not reports[-1].refused
            learner.freeze()
    answers += [(np.float32(report.loss).tobytes(), report.refused) for report in reports]
    answers += [report.frozen_scores_BS.tobytes() for report in reports[5:]]
    return [*answers, digest(learner)]


@pytest.mark.parametrize("name", ["regression", task(DroppingTask)])
def test_whatever_is_still_under_way_the_results_are_those_of_a_cpu(device: Pretended, name: str) -> None:
    def under_way() -> None:
        assert device.current.queue, "the step was waited for"

    config = job(task=name)
    assert life(graphed(config), under_way) == life(Learner(config))


def test_a_restored_state_is_captured_anew(device: Pretended) -> None:
    straight, learner = Learner(job()), graphed(job())
    for seed in range(3):
        straight.step(batch(seed))
        learner.step(batch(seed))
    arrays = {name: array.copy() for name, array in learner.state().items()}
    document = learner.document()
    for seed in range(3, 6):
        learner.step(batch(seed))
    learner.restore(arrays, document)
    for one in (straight, learner):
        one.step(batch(7))
    assert device.captures == ["the step", "the step"]
    assert digest(learner) == digest(straight)


def test_settings_that_change_with_every_step_are_not_captured(
    device: Pretended, caplog: pytest.LogCaptureFixture
) -> None:
    config = job(task=task(CoolingTask))
    eager, learner = Learner(config), graphed(config)
    for each in (batch(0), batch(1)):
        eager.step(each)
        learner.step(each)
    assert "settings change with every step" in caplog.text
    assert learner.document() == eager.document()
    assert digest(learner) == digest(eager)


def test_an_optimizer_that_cannot_skip_by_itself_runs_eagerly(
    device: Pretended, caplog: pytest.LogCaptureFixture
) -> None:
    config = job(task=task(ForeachTask))
    eager, learner = Learner(config), graphed(config)
    for each in (batch(0), batch(1)):
        eager.step(each)
        learner.step(each)
    assert caplog.text.count("none of torch's with fused=True") == 1
    assert digest(learner) == digest(eager)


def test_what_cannot_be_captured_is_logged_and_leaves_the_step_as_it_was(
    device: Pretended, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.undo()
    pretend_without_graphs(monkeypatch, device)
    config = job(task=task(WaitingTask))
    eager, learner = Learner(config), graphed(config)
    for each in (batch(0), batch(1)):
        assert learner.score(each.features_BC).tobytes() == eager.score(each.features_BC).tobytes()
        eager.step(each)
        learner.step(each)
    assert caplog.text.count("scoring is not captured as a CUDA graph (RuntimeError: a wait)") == 1
    assert caplog.text.count("the step is not captured as a CUDA graph (RuntimeError: a wait)") == 1
    assert digest(learner) == digest(eager)
    assert learner.document() == eager.document()


def pretend_without_graphs(monkeypatch: pytest.MonkeyPatch, device: Pretended) -> None:
    """The real `_captured`, over streams that do all at once, and `item()` as it is while waiting is forbidden."""
    plain_item, mode = Tensor.item, ["default"]

    def item(self: Tensor) -> Any:
        if mode[0] == "error":
            raise RuntimeError("a wait")
        return plain_item(self)

    for name, value in {
        "Stream": lambda *_: Stream(device),
        "Event": lambda: Event(device),
        "CUDAGraph": lambda: Graph(device),
        "current_stream": lambda *_: device.current,
        "stream": lambda _: nullcontext(),
        "graph": lambda *_, **__: nullcontext(),
        "get_sync_debug_mode": lambda: mode[0],
        "set_sync_debug_mode": lambda chosen: mode.__setitem__(0, chosen),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(Tensor, "item", item)
    monkeypatch.setattr(pipeline.cuda, "_PINNED", {})


# On a GPU.


def cuda(**learner: Any) -> tuple[Learner, Learner]:
    """Two learners on the device: one eager, one with graphs."""
    eager, graphs = (Learner(job(device="cuda", cuda_graphs=graphs, **learner)) for graphs in (False, True))
    return eager, graphs


@on_gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["binary", "regression", task(DroppingTask)])
def test_graphs_give_the_bits_of_eager_execution(name: str, precision: str) -> None:
    eager, learner = cuda(task=name, precision=precision)
    for seed in range(6):
        features = batch(seed + 50).features_BC
        assert learner.score(features).tobytes() == eager.score(features).tobytes()
        assert learner.step(batch(seed)).loss == eager.step(batch(seed)).loss
    assert digest(learner) == digest(eager)
    assert learner.method.executor._stepping is not None
    assert all(graph is not None for graph, _ in learner.method.executor._scorings.values())


@on_gpu
@pytest.mark.parametrize("name", ["regression", task(DroppingTask)])
def test_on_cuda_a_refused_step_changes_nothing_and_leaves_nothing_to_the_next(name: str) -> None:
    eager, learner = cuda(task=name)
    for seed in range(2):
        eager.step(batch(seed))
        learner.step(batch(seed))
    before = digest(learner)
    report = learner.step(bad())
    assert digest(learner) == before
    second = learner.step(bad())
    learner.step(batch(3))  # before anybody has read the report
    assert report.refused
    assert second.refused
    eager.step(batch(3))
    assert digest(learner) == digest(eager) != before


@on_gpu
def test_on_cuda_killed_and_resumed_is_the_same_run() -> None:
    _, straight = cuda(task=task(DroppingTask))
    for seed in range(6):
        if seed == 3:
            arrays = {name: array.copy() for name, array in straight.state().items()}
            document = json.loads(json.dumps(straight.document()))
        straight.step(batch(seed))
    _, resumed = cuda(task=task(DroppingTask))
    resumed.restore(arrays, document)
    for seed in range(3, 6):
        resumed.step(batch(seed))
    assert digest(resumed) == digest(straight)


@on_gpu
def test_on_cuda_a_module_that_waits_runs_eagerly_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        eager, learner = cuda(task=task(WaitingTask))
        for seed in range(3):
            learner.score(batch(seed).features_BC)
            learner.step(batch(seed))
            eager.step(batch(seed))
    assert caplog.text.count("the step is not captured") == 1
    assert digest(learner) == digest(eager)


@on_gpu
def test_copies_come_from_pinned_memory_on_a_stream_of_their_own(tmp_path: Path) -> None:
    _, learner = cuda()
    learner.score(batch(0).features_BC)
    learner.step(batch(0))
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        for seed in range(10):
            learner.score(batch(seed).features_BC)
            learner.step(batch(seed))
        torch.cuda.synchronize()
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    found = copies(json.loads((tmp_path / "trace.json").read_text()))
    assert found["copies"] == 20
    assert found["pageable"] == 0
    assert found["on_a_kernel_stream"] == 0


# What benchmarks/gpu.py makes of a trace.


def event(kind: str, name: str, start: float, length: float, stream: int) -> dict[str, Any]:
    return {"ph": "X", "cat": kind, "name": name, "ts": start, "dur": length, "args": {"stream": stream}}


def test_a_copy_is_hidden_as_far_as_a_kernel_runs_meanwhile() -> None:
    trace = {
        "traceEvents": [
            event("kernel", "gemm", 0, 10, 7),
            event("kernel", "gemm", 8, 4, 7),
            event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 6, 8, 13),  # 6 of 8 µs
            event("gpu_memcpy", "Memcpy HtoD (Pageable -> Device)", 20, 2, 7),
            event("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", 0, 100, 7),
            {"ph": "M", "name": "process_name"},
        ]
    }
    assert copies(trace) == {
        "copies": 2,
        "us": 10.0,
        "hidden": 0.6,
        "pageable": 1,
        "on_a_kernel_stream": 1,
    }
