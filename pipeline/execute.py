"""Runs a job from start to end: signals, hold, drain, exit codes."""

from __future__ import annotations

import logging
import signal
import time
from threading import Event

from consumers.errors import DependencyError, EvertrainError, SnapshotError, TooMuchBadInput
from pipeline.config import JobConfig
from pipeline.run import Bounds, Run, Start, open_run
from pipeline.train import train

RELEASER_END_S = 6.0
_REASON_MAX = 160  # characters: MLflow's errors name the whole chain

log = logging.getLogger("evertrain")


def execute(job: JobConfig, start: Start, bounds: Bounds | None = None) -> bool:
    """Runs until the bounds, or for ever; SIGTERM and SIGINT end it cleanly.

    SIGUSR1 makes the ends of this moment the bounds.

    Returns whether the bounds were reached. Raises EvertrainError with the exit code of what went wrong.
    """
    stop = Event()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])  # it waits until there is a source to finish
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    bounds = bounds or Bounds()
    with open_run(job, bounds, start, stop) as run:
        signal.signal(signal.SIGUSR1, lambda *_: run.source.finish())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
        try:
            train(run, stop)
        except TooMuchBadInput as error:
            run.commit_rest()
            run.source.close()
            if start.until_caught_up or bounds.stops:
                _end(run)
                raise
            _hold(run, str(error), stop)
        except EvertrainError:
            _end(run)
            raise
        if stop.is_set():
            _end(run)
        else:
            _drain(run, job, stop)
        log.info("%s: %d rows trained, snapshot %d", run.phase, run.state.trained, run.snapshots.sequence)
        if stop.is_set():
            return False
        if run.state.refused and not run.state.trained:
            raise EvertrainError("nothing was learned: no step was finite; look at the loss, the labels and the inputs")
        return True


def _hold(run: Run, reason: str, stop: Event) -> None:
    """Stays up, applying nothing, until it is stopped."""
    while not stop.is_set():  # no stop.wait: a handler that sets what its own thread waits for can hang
        run.report("holding", reason)
        time.sleep(0.5)


def _end(run: Run) -> None:
    run.report("stopped")
    run.releaser.end(RELEASER_END_S)


def _drain(run: Run, job: JobConfig, stop: Event) -> None:
    """Waits until everything owed is released. Raises DependencyError if that takes too long."""
    run.report("draining")
    deadline = time.monotonic() + job.registry.release_timeout / 1000
    while not (drained := run.releaser.drain(1.0)) and not stop.is_set() and time.monotonic() < deadline:
        run.report("draining")
        if run.releaser.refusal:
            _end(run)
            raise SnapshotError(run.releaser.refusal)
    if drained:
        run.report("ended")
        return
    errors = [sink["error"][:_REASON_MAX] for sink in run.releaser.status()["sinks"].values() if sink.get("error")]
    _end(run)
    if not stop.is_set():
        raise DependencyError(
            f"all is learned, but not all is released after {job.registry.release_timeout / 1000:.0f} s "
            f"({'; '.join(errors) or 'no error yet'}); mend what is out of reach and run the same command again"
        )
