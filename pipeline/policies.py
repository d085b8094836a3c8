"""What follows an alarm. Part of S: the same alarm does the same in a rebuilt run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.drift import Alarm

if TYPE_CHECKING:
    from pipeline.state import State


def react(state: State, alarm: Alarm) -> None:
    """Does what `[on_drift]` says of the alarm's family, tells the ledger, and owes the alarm to the webhook.

    - version: a version falls due, of the weights that met the change.
    - hold_promotion: versions of the next `hold_rows` rows are registered, but take no alias; each alarm begins anew.
    - rewarm: the learner's `Method.rewarm`.
    - restart_metrics: what a person or a gate reads as recent no longer mixes rows of before and after.
    """
    config, done = state.job.on_drift, []
    if alarm.family in config.version:
        state.owe_version()
        if state.owed.version_due:  # else nothing was learned since the last one
            done.append("version")
    if alarm.family in config.hold_promotion:
        state.held_until = state.trained + config.hold_rows
        done.append("hold_promotion")
    if alarm.family in config.rewarm:
        state.learner.rewarm()
        done.append("rewarm")
    if alarm.family in config.restart_metrics:
        state.monitor.restart_recent()
        done.append("restart_metrics")
    state.ledger.append(["drift", alarm.family, alarm.feature, alarm.row, alarm.since_row, done])
    if config.webhook is not None:
        state.owed.alarms.append({**alarm.document(), "done": done})
