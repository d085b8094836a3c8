"""`evertrain run --until-caught-up` with a watch on its releaser: prints CPU seconds and the longest call, as JSON."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from consumers.errors import DependencyError
from pipeline import execute, train
from pipeline.jobfile import load
from pipeline.releaser import Releaser
from pipeline.run import Run, Start


def main() -> None:
    """Runs the job; what is not released then stays owed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.timed_run", description=__doc__)
    parser.add_argument("-c", "--config", type=Path, required=True)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--rows", type=int, required=True)
    args = parser.parse_args()
    watch: dict[str, float] = {"releaser_ms": 0.0, "cpu_s": 0.0}

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*arguments)
            finally:
                watch["releaser_ms"] = max(watch["releaser_ms"], (time.perf_counter() - began) * 1000)

        return wrapper

    def measured(run: Run, stop: Any) -> None:
        began = time.process_time()
        Releaser.committed, Releaser.poll = timed(Releaser.committed), timed(Releaser.poll)  # type: ignore[method-assign]
        inner(run, stop)
        watch["cpu_s"] = time.process_time() - began
        if run.state.trained < 0.999 * args.rows:
            raise RuntimeError(f"only {run.state.trained} rows learned")

    inner, execute.train = train.train, measured  # type: ignore[attr-defined]
    overrides = [*args.overrides, "registry.release_timeout=1s"]
    with suppress(DependencyError):
        execute.execute(load(args.config, overrides), Start(until_caught_up=True))
    print(json.dumps({name: round(value, 3) for name, value in watch.items()}))


if __name__ == "__main__":
    main()
