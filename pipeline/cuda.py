"""How a CUDA device scores and steps: captured graphs, copies on a stream of their own, results read when asked for.

Sources: https://docs.pytorch.org/docs/stable/notes/cuda.html ("CUDA Graphs", "Use pinned memory buffers").
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from consumers.batch import Batch
from consumers.record import Float32s
from pipeline.device import generators, set_generators
from pipeline.executor import Eager, Outcome, Training, skips_by_itself
from pipeline.task import Scorer

_PINNED: dict[str, Any] = {"pin_memory": True}
_WARM_UPS = 2  # after the one that may wait

log = logging.getLogger("evertrain")


class Block:
    """Features [B, C], labels [B] and weights [B], float32: views of one stretch of memory, which one copy moves."""

    def __init__(self, rows: int, columns: int, **where: Any) -> None:
        self.flat = torch.zeros(rows * (columns + 2), **where)
        features, self.labels_B, self.weights_B = torch.split(self.flat, [rows * columns, rows, rows])
        self.features_BC = features.view(rows, columns)

    def fill(self, features_NC: Float32s, batch: Batch | None) -> None:
        """Takes rows, padded with zeros, and the labels and weights of a batch. Only for a block of the host."""
        rows = len(features_NC)
        features_BC = self.features_BC.numpy()
        features_BC[:rows] = features_NC
        features_BC[rows:] = 0
        if batch is not None:
            self.labels_B.numpy()[:] = batch.labels_B
            self.weights_B.numpy()[:] = batch.weights_B


class Lane:
    """A pinned block of the host, its copy on the device, and what has to be over before each may be overwritten."""

    def __init__(self, rows: int, columns: int, device: torch.device) -> None:
        self.host = Block(rows, columns, **_PINNED)
        self.device = Block(rows, columns, device=device)
        self.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call] # the host's block was copied
        self.taken = torch.cuda.Event()  # type: ignore[no-untyped-call] # the device's block was copied


class Upload:
    """Brings blocks to the device on a stream of its own: while the device computes with one, the next one comes.

    Events wait for nothing before they are recorded for the first time.
    """

    def __init__(self, rows: int, columns: int, device: torch.device) -> None:
        self.input = Block(rows, columns, device=device)  # where graphs read, which have fixed addresses
        lanes = [Lane(rows, columns, device) for _ in range(2)]
        self._next_lane = cycle(lanes)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream())  # which fills the new blocks with zeros

    def bring(self, features_NC: Float32s, batch: Batch | None = None) -> None:
        """Puts at most B rows, and a batch's labels and weights, into `input` for what the current stream does next."""
        lane, stream = next(self._next_lane), torch.cuda.current_stream()
        lane.arrived.synchronize()
        lane.host.fill(features_NC, batch)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(lane.taken)
            lane.device.flat.copy_(lane.host.flat, non_blocking=True)
            lane.arrived.record(self._stream)
        stream.wait_event(lane.arrived)
        self.input.flat.copy_(lane.device.flat)
        lane.taken.record(stream)


class Pending:
    """The `Outcome` of a step that the device may still be at."""

    def __init__(self, report: Tensor, done: torch.cuda.Event, undo: Callable[[], None]) -> None:
        self._report, self._done, self._undo = report, done, undo

    @cached_property
    def _outcome(self) -> tuple[float, bool]:
        self._done.synchronize()
        loss, refused = self._report.tolist()
        if refused:
            self._undo()
        return loss, bool(refused)

    @property
    def loss(self) -> float:
        return self._outcome[0]

    @property
    def refused(self) -> bool:
        return self._outcome[1]


class Graphed:
    """An `Executor` with a CUDA graph for each scorer and one for the step; what cannot be captured runs eagerly.

    Graphs are captured when they are first needed: by then a snapshot was restored, and no tensor moves any more.
    """

    def __init__(self, training: Training, rows: int, columns: int, device: torch.device) -> None:
        self._training = training
        self._device = device
        self._rows = rows
        self._eager = Eager(training, rows, columns, device)
        self._upload = Upload(rows, columns, device)
        self._scorings: dict[Scorer, tuple[torch.cuda.CUDAGraph | None, Tensor]] = {}
        self._stepping: torch.cuda.CUDAGraph | None = None
        self._step_known = False  # whether it was tried to capture the step
        # Graphs know tensors by their address: all that they read or write has to live as long as they do.
        self._refuse = torch.zeros((), device=device)  # 1: the step is refused, whatever comes of it
        self._result = torch.zeros(2, device=device)  # loss; 1 if refused
        self._report = torch.zeros(2, **_PINNED)  # the same, on the host
        self._reported = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._pending: Pending | None = None

    def score(self, scorer: Scorer, features_NC: Float32s, width: int) -> Float32s:
        if scorer not in self._scorings:
            self._scorings[scorer] = self._capture_scoring(scorer, width)
        graph, scores_BS = self._scorings[scorer]
        if graph is None:
            return self._eager.score(scorer, features_NC, width)
        scores_NS = torch.empty(len(features_NC), width, **_PINNED)  # torch keeps pinned memory for the next call
        for start in range(0, len(features_NC), self._rows):
            part_NS = scores_NS[start : start + self._rows]
            self._upload.bring(features_NC[start : start + self._rows])
            graph.replay()
            part_NS.copy_(scores_BS[: len(part_NS)], non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return scores_NS.numpy().copy()

    def step(self, batch: Batch) -> Outcome:
        if not self._step_known:
            self._stepping, self._step_known = self._capture_step(), True
        if self._stepping is None:
            return self._eager.step(batch)
        self._upload.bring(batch.features_BC, batch)
        self.settle()
        states = generators(self._device)
        self._stepping.replay()
        self._report.copy_(self._result, non_blocking=True)
        self._reported.record()
        self._pending = Pending(self._report, self._reported, lambda: set_generators(states, self._device))
        return self._pending

    def settle(self) -> None:
        if self._pending is not None:
            _ = self._pending.refused
            self._pending = None

    def forget(self) -> None:
        self.settle()
        self._scorings.clear()
        self._stepping, self._step_known = None, False

    def _capture_scoring(self, scorer: Scorer, width: int) -> tuple[torch.cuda.CUDAGraph | None, Tensor]:
        """The graph that scores `input`, and where it leaves scores [B, width]."""
        scores_BS = torch.zeros(self._rows, width, device=self._device)

        @torch.no_grad()
        def run() -> None:
            scores_BS.copy_(scorer(self._upload.input.features_BC).reshape(self._rows, -1))

        return _captured(run, "scoring"), scores_BS

    def _capture_step(self) -> torch.cuda.CUDAGraph | None:
        """The graph that learns from `input`. The steps of its making are refused, so they change nothing."""
        training, block = self._training, self._upload.input
        if not skips_by_itself(training.optimizer):
            log.warning("the step is not captured as a CUDA graph: its optimizer is none of torch's with fused=True")
            return None
        groups = training.optimizer.param_groups
        before = [dict(group) for group in groups]
        states, buffers = generators(self._device), training.copy_of_buffers()
        for group in groups:
            if "capturable" in group:
                group["capturable"] = True

        def run() -> None:
            columns = block.features_BC, block.labels_B, block.weights_B
            self._result.copy_(training.step_unseen(columns, self._refuse))

        self._refuse.fill_(1)
        graph = _captured(run, "the step")
        self._refuse.zero_()
        training.end()
        training.set_buffers(buffers)  # also after a step that broke off
        set_generators(states, self._device)
        pairs = list(zip(groups, before, strict=True))
        if any({**group, "capturable": None} != {**then, "capturable": None} for group, then in pairs):
            log.warning("the step is not captured as a CUDA graph: its optimizer's settings change with every step")
            graph = None
        if graph is None:
            for group, then in pairs:
                group.update(then)
        return graph


def _captured(run: Callable[[], None], what: str) -> torch.cuda.CUDAGraph | None:
    """The graph of what `run` does with fixed tensors; None, which is logged, if it cannot be captured.

    What waits for the device cannot be captured. The warm-up finds most of that out, for a capture that breaks off may
    leave torch's random generators as they are within one: the next draw is then an error.
    """
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    try:
        with warnings.catch_warnings(), torch.cuda.stream(side):  # the capture's too: workspaces belong to a stream
            warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
            run()
            with _waiting_forbidden():
                for _ in range(_WARM_UPS):
                    run()
            with torch.cuda.graph(graph, stream=side):
                run()
    except Exception as error:  # of any kind: torch's own, and those of the module
        reason = str(error).split("\n")[0]
        log.warning("%s is not captured as a CUDA graph (%s: %s)", what, type(error).__name__, reason)
        return None
    finally:
        torch.cuda.current_stream().wait_stream(side)
    return graph


@contextmanager
def _waiting_forbidden() -> Iterator[None]:
    """Makes an error of every operation in here that waits for the device."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
