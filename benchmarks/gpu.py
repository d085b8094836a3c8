"""On a GPU: the full loop's share of training alone, and whether the copies to the device are hidden.

Two models: the plain MLP on 32 numbers, and 26 categories of 100,000 embeddings of 16 numbers each. Entries are made
in memory, so what Kafka and decoding cost is not in it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import feed, report
from benchmarks.processes import say
from consumers.batch import Batch
from pipeline.config import JobConfig
from pipeline.learner import Learner
from pipeline.state import State
from pipeline.train import learn

WAITING = 100_000
BATCHES = 64
TRACED_STEPS = 50
CATEGORIES, BUCKETS, EMBEDDING = 26, 100_000, 16
NO_GPU = "no GPU: skipped"


def jobs(state_dir: Path, device: str, **learner: Any) -> dict[str, JobConfig]:
    """The two models' jobs; `learner` updates their tables."""
    table, window = {"device": device, **learner}, {"window": f"{2 * WAITING + feed.SPAN_ROWS}ms"}
    categories = [{"name": f"c{number}", "buckets": BUCKETS} for number in range(CATEGORIES)]
    embedding = table | {"embedding": EMBEDDING}
    return {
        "MLP": feed.job(state_dir, join=window, learner=table),
        "embeddings": feed.job(state_dir, join=window, learner=embedding, features={"categorical": categories}),
    }


def measure(job: JobConfig, rows: int, repeat: int) -> dict[str, Any]:
    """Rows/s of the loop and of training alone, taking turns; medians. And what a trace says of the copies."""
    state = State(job, feed.positions(), Learner(job))
    entries = feed.spans(job, WAITING, shuffled=True)
    while state.trained < 2 * WAITING + rows // 10:  # until slabs are dropped, and all is captured and compiled
        learn(state, next(entries))
    alone, batches = Learner(job), _batches(job)
    _train(alone, batches, BATCHES)
    loops, trains = [], []
    for turn in range(repeat):
        stretch = list(islice(entries, 2 * rows // feed.SPAN_ROWS))
        before, began = state.trained, time.perf_counter()
        for entry in stretch:
            learn(state, entry)
        torch.cuda.synchronize()
        loops.append((state.trained - before) / (time.perf_counter() - began))
        trains.append(_train(alone, batches, rows // job.learner.batch_size))
        say(f"{turn + 1}/{repeat}: loop {loops[-1]:,.0f}, training alone {trains[-1]:,.0f} rows/s")
    share = median(loop / train for loop, train in zip(loops, trains, strict=True))
    return {
        "loop": round(median(loops)),
        "train_only": round(median(trains)),
        "share_of_train_only": round(share, 3),
        **_traced(alone, batches),
    }


def _batches(job: JobConfig) -> list[Batch]:
    """Batches that are ready in memory."""
    found: list[Batch] = []
    state = State(job, feed.positions(), Learner(job))
    for entry in feed.spans(job, feed.SPAN_ROWS):
        for batch in state.apply(entry):
            features_BC, labels_B, weights_B = batch.features_BC.copy(), batch.labels_B.copy(), batch.weights_B.copy()
            scores_BS, event_time_B = batch.scores_BS.copy(), batch.event_time_B.copy()
            found.append(Batch(features_BC, labels_B, weights_B, scores_BS, event_time_B, batch.rows))
        if len(found) >= BATCHES:
            return found
    raise AssertionError("the feed has no end")


def _train(learner: Learner, batches: list[Batch], steps: int) -> float:
    """Scores and learns `steps` batches; rows/s."""
    began = time.perf_counter()
    for batch in islice(cycle(batches), steps):
        learner.score(batch.features_BC)
        learner.step(batch)
    torch.cuda.synchronize()
    return steps * learner.batch_size / (time.perf_counter() - began)


def _traced(learner: Learner, batches: list[Batch]) -> dict[str, Any]:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        _train(learner, batches, TRACED_STEPS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return {f"copies_{name}": value for name, value in copies(json.loads(path.read_text())).items()}


def copies(trace: dict[str, Any]) -> dict[str, Any]:
    """Of a profiler's trace, the copies from the host to the device.

    How many there are, the microseconds that they take, the share of these in which a kernel runs too, how many do not
    come from pinned memory, and how many run on a stream that has kernels.
    """
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    kernels = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") == "kernel")
    streams = {event["args"]["stream"] for event in events if event.get("cat") == "kernel"}
    found = [e for e in events if e.get("cat") == "gpu_memcpy" and "HtoD" in e["name"]]
    total = float(sum(event["dur"] for event in found))
    hidden = sum(_overlap(event["ts"], event["ts"] + event["dur"], kernels) for event in found)
    return {
        "copies": len(found),
        "us": total,
        "hidden": round(hidden / total, 3) if total else None,
        "pageable": sum("Pinned" not in event["name"] for event in found),
        "on_a_kernel_stream": sum(event["args"]["stream"] in streams for event in found),
    }


def _overlap(start: float, stop: float, spans: list[tuple[float, float]]) -> float:
    """How much of [start, stop) sorted spans cover, which may overlap each other."""
    covered, reached = 0.0, start
    for begin, end in spans:
        first, last = max(begin, reached), min(end, stop)
        if first < last:
            covered, reached = covered + last - first, last
    return covered


def main() -> None:
    """Prints a table, or says that there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="in each turn")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print(json.dumps({"skipped": NO_GPU}) if args.output == "json" else NO_GPU)
        return
    lines = []
    with tempfile.TemporaryDirectory(prefix="evertrain-bench-") as folder:
        for model, job in jobs(
            Path(folder), "cuda", precision=args.precision, compile=args.compile, cuda_graphs=True
        ).items():
            say(model)
            lines.append({"model": model, **measure(job, args.rows, args.repeat)})
    results = {f"{torch.cuda.get_device_name()}, medians of {args.repeat}": lines}
    print(json.dumps(results, indent=2) if args.output == "json" else report.plain(results))


if __name__ == "__main__":
    main()
