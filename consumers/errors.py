"""Every error that a user can meet: what happened, where, and what to do next.

Each class fixes the exit code of the command that ends with it.
"""

from __future__ import annotations


class EvertrainError(Exception):
    """The root. `str(error)` is one line that a person can act on."""

    exit_code = 1


class ConfigError(EvertrainError):
    """The job file, a flag or an environment variable is wrong."""

    exit_code = 2


class DependencyError(EvertrainError):
    """Something outside cannot be reached: Kafka, a topic, MLflow, Java."""

    exit_code = 3


class CheckError(EvertrainError):
    """A check that the user asked for came out false."""

    exit_code = 4


class StreamError(EvertrainError):
    """The stream is not what the snapshot says it was: records gone, topic recreated, offsets missing."""


class TooMuchBadInput(EvertrainError):  # noqa: N818 (it names a state of the stream)
    """More than the configured share of the newest records was rejected."""


class BalanceError(EvertrainError):
    """The counts do not add up. A defect of Evertrain: state is not committed."""


class SnapshotError(EvertrainError):
    """The state directory cannot be read or written as the protocol demands."""
