"""`learner.epochs` and `learner.replay`: several steps for one batch, and older rows beside it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from consumers.batch import Batch
from consumers.record import Float32s
from pipeline.device import generators, set_generators
from pipeline.executor import Eager, Outcome, Training
from pipeline.options.replay import Replay
from pipeline.task import Scorer

HELD_BACK = 8
"""One row in so many of a batch, the newest, waits: it tells whether a pass over the others has helped."""


class Passes:
    """An `Executor` that learns a batch in up to `epochs` passes, each one a step, with rows of `replay` beside it.

    The newest eighth of the batch is held back and scored before and after each pass over the rest: prequentially, as
    it comes later and was not learned yet. Once its loss no longer falls, or one pass is left, the last pass learns the
    whole batch. Prechelt, "Early Stopping - But When?" (1998). Replayed rows are drawn anew for each pass, and
    standardisers see each row once. If one pass is refused, the whole batch is, and none of its passes has happened.
    """

    def __init__(
        self,
        training: Training,
        shape: tuple[int, int],
        device: torch.device,
        *,
        epochs: int,
        replay: Replay | None,
    ) -> None:
        rows, columns = shape
        self._training = training
        self._device = device
        self._epochs = epochs
        self._replay = replay
        self._scoring = Eager(training, rows, columns, device)
        self._stepping = Eager(training, step_rows(rows, replay), columns, device)

    def score(self, scorer: Scorer, features_NC: Float32s, width: int) -> Float32s:
        return self._scoring.score(scorer, features_NC, width)

    def step(self, batch: Batch) -> Outcome:
        drawn_from = self._replay.random_state if self._replay else None
        before = _Before(self._training, self._device) if self._epochs > 1 else None
        outcome = self._step(batch)
        if outcome.refused:
            if self._replay:
                self._replay.random_state = drawn_from
            if before:
                before.put_back()
        return outcome

    def _step(self, batch: Batch) -> Outcome:
        held = max(batch.rows // HELD_BACK, 1)
        unseen_B = batch.weights_B
        if self._epochs > 1 and batch.rows > held:
            weights_B, held_B = batch.weights_B.copy(), np.zeros_like(batch.weights_B)
            newest = slice(batch.rows - held, batch.rows)
            held_B[newest], weights_B[newest] = weights_B[newest], 0
            older, best = replace(batch, weights_B=weights_B), self._scoring.judge(batch, held_B)
            for _ in range(self._epochs - 1):
                outcome = self._pass(older, unseen_B)
                unseen_B = np.zeros_like(unseen_B)
                if outcome.refused:
                    return outcome
                loss = self._scoring.judge(batch, held_B)
                if not loss < best:
                    break
                best = loss
        return self._pass(batch, unseen_B)

    def _pass(self, batch: Batch, unseen_B: Float32s) -> Outcome:
        if self._replay is None:
            return self._stepping.step(batch, unseen_B)
        return self._stepping.step(self._replay.draw(batch), np.concatenate([unseen_B, np.zeros_like(unseen_B)]))

    def settle(self) -> None:
        pass

    def forget(self) -> None:
        pass


def step_rows(rows: int, replay: Replay | None) -> int:
    """Rows of the block that a step takes."""
    return 2 * rows if replay else rows


class _Before:
    """What a training was before the passes over a batch."""

    def __init__(self, training: Training, device: torch.device) -> None:
        self._training, self._device = training, device
        self._parameters = [parameter.detach().clone() for parameter in training.module.parameters()]
        self._buffers = training.copy_of_buffers()
        self._optimizer: dict[str, Any] = copy.deepcopy(training.optimizer.state_dict())
        self._random: dict[str, Tensor] = generators(device)

    @torch.no_grad()
    def put_back(self) -> None:
        for parameter, before in zip(self._training.module.parameters(), self._parameters, strict=True):
            parameter.copy_(before)
        self._training.set_buffers(self._buffers)
        self._training.optimizer.load_state_dict(self._optimizer)
        set_generators(self._random, self._device)
