"""The page: the line where a record becomes a gradient is `state.learner.step`."""

from __future__ import annotations

from threading import Event

from consumers.record import Entry, Wait
from pipeline.run import Run
from pipeline.state import State


def train(run: Run, stop: Event) -> None:
    """Trains until the source ends or `stop` is set, and makes everything permanent."""
    state = run.state
    for entry in run.source.entries(state.positions):  # Span with rows, Tick, Membership, Command; or Wait: nothing
        if not isinstance(entry, Wait):
            learn(state, entry)
        if run.cadence.due(state, run.snapshots.busy):
            run.snapshots.commit(state)
        run.tend(entry)
        if stop.is_set():
            break
    run.commit_rest()


def learn(state: State, entry: Entry) -> None:
    """Applies one entry; so does a rebuilt run, with the entries of its ledger."""
    for batch in state.apply(entry):  # pure: ledger line, cursor, join, score on arrival, expiry, batch
        report = state.learner.step(batch)  # refuses what is not finite
        state.observe(batch, report)  # quality, drift, frozen copy
