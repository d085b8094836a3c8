"""The way in alone: `evertrain run --until-caught-up` with its guarantees and snapshots, but nothing is learned."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from consumers.record import Entry, Float32s
from pipeline import train
from pipeline.execute import execute
from pipeline.jobfile import load
from pipeline.learner import Learner
from pipeline.run import Start
from pipeline.state import State


def apply(state: State, entry: Entry) -> None:
    """Stands in for `train.learn`: batches are counted, as the balance of the counts wants it, and thrown away."""
    for batch in state.apply(entry):
        state.trained += batch.rows


def unscored(learner: Learner, features_NC: Float32s) -> Float32s:
    """Stands in for `Learner.score`."""
    return np.zeros((len(features_NC), learner.score_width), np.float32)


def main() -> None:
    """Runs the job; its status file says what was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ingest", description=__doc__)
    parser.add_argument("-c", "--config", type=Path, required=True, help="the job file")
    parser.add_argument("--score", action="store_true", help="score each feature event on arrival")
    args = parser.parse_args()
    train.learn = apply
    if not args.score:
        Learner.score = unscored  # type: ignore[method-assign, assignment]
    execute(load(args.config), Start(until_caught_up=True))


if __name__ == "__main__":
    main()
