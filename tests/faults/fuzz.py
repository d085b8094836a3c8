"""Fuzzes what reads bytes that others wrote: `python -m tests.faults.fuzz TARGET --inputs N --seed S [-o json]`.

The targets, and what must hold for each of their inputs, are in `tests.faults.fuzz_targets`. A process of its own
fuzzes each target with changes of bytes and of tokens, led by coverage (atheris, libFuzzer), and ends at the first
input that fails: an exception, more than a second of processor time, or the death of the process. That input is
printed in base64, with the command that repeats it.
"""

from __future__ import annotations

import argparse
import base64
import json
import multiprocessing
import os
import random
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

TARGETS = {
    "json": ("consumers.codecs",),
    "jobfile": ("pipeline.jobfile", "pipeline.config", "consumers.config", "tomllib"),
    "manifest": ("pipeline.store", "json.decoder"),
    "ledger": ("pipeline.ledger", "json.decoder", "gzip"),
}
"""The modules whose coverage leads the fuzzer, for each target."""

ROOT = Path(__file__).parents[2]
SOURCES = [path.relative_to(ROOT) for name in ("consumers", "pipeline") for path in (ROOT / name).rglob("*.py")]
COMPILED = [".".join(path.with_suffix("").parts) for path in SOURCES if "njit" in (ROOT / path).read_text()]
"""numba would not take what is instrumented."""

TOKEN = re.compile(rb"\"(?:[^\"\\]|\\.)*\"|[\w.+-]+|\s+|.", re.DOTALL)
SCALAR = re.compile(rb"[\"\w.+-]")
CPU_S_MAX = 1.0
HANG_S_MAX = 20  # of a hang in C, where only libFuzzer's alarm comes through


def fuzz(target: str, inputs: int, seed: int) -> dict[str, Any]:
    """Fuzzes one target. The report names the failing input, if there is one."""
    os.environ["PYTHONHASHSEED"] = "0"  # the order of a set must not decide which input comes next
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        process = spawn.Process(target=_fuzz_here, args=(target, inputs, seed, Path(folder), theirs))
        process.start()
        theirs.close()
        try:
            report: dict[str, Any] = ours.recv()
        except EOFError:  # it died: libFuzzer has written down the input at which it did
            process.join()
            log = (Path(folder) / "log").read_text(errors="replace")
            found = [path.read_bytes() for path in Path(folder).glob("artifact-*")]
            report = {"failure": f"exit status {process.exitcode}: {log[-2000:]}"}
            report |= {"input": found[0]} if found else {}
        process.join()
    failing = report.pop("input", None)
    if failing is not None:
        report["input"] = base64.b64encode(failing).decode()
        report["repeat"] = f"python -m tests.faults.fuzz {target} --input {report['input']}"
    return {"target": target, "seed": seed, **report}


def _fuzz_here(target: str, inputs: int, seed: int, folder: Path, pipe: Connection) -> None:
    """Never returns: neither does libFuzzer."""
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    import atheris

    include = list(TARGETS.get(target, ["tests.faults"]))
    with atheris.instrument_imports(include=include, exclude=COMPILED, enable_loader_override=False):
        from tests.faults.fuzz_targets import make_target

        tested = make_target(target, folder)
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(tested.seeds):
        (corpus / f"{number:04}").write_bytes(data)
    count, slowest_s = 0, 0.0

    def one_input(data: bytes) -> None:
        nonlocal count, slowest_s
        count += 1
        report: dict[str, Any] = {}
        seconds, failure = _checked(tested.check, data)
        slowest_s = max(slowest_s, seconds)
        if failure:
            report = {"failure": failure, "input": data}
        if failure or count == inputs:
            pipe.send({"inputs": count, "slowest_ms": round(slowest_s * 1000, 1), **report})
            os._exit(0)

    def any_other(data: bytes, bytes_max: int, number: int) -> bytes:
        if number % 2:
            return mutated(data, tested.values, tested.words, random.Random(number))[:bytes_max]
        return bytes(atheris.Mutate(data, bytes_max))

    flags = {
        "seed": seed + 1,  # 0 would be any
        "max_len": tested.bytes_max,
        "len_control": 0,
        "mutate_depth": 2,  # of a text changed more often nothing good is left
        "timeout": HANG_S_MAX,
        "artifact_prefix": f"{folder}/artifact-",
        "reload": 0,
        "verbosity": 0,
    }
    arguments = [sys.argv[0], *(f"-{name}={value}" for name, value in flags.items()), str(corpus)]
    atheris.Setup(arguments, one_input, custom_mutator=any_other)
    atheris.Fuzz()


def mutated(data: bytes, values: list[bytes], words: list[bytes], rng: random.Random) -> bytes:
    """The same text, mostly with other values in it, or else with some tokens or words more, less, or elsewhere."""
    tokens: list[bytes] = TOKEN.findall(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        scalars = [place for place, token in enumerate(tokens) if SCALAR.match(token)]
        if scalars and rng.random() < 0.7:
            tokens[rng.choice(scalars)] = rng.choice(values)
            continue
        at, count = rng.randrange(len(tokens) + 1), rng.choice((0, 1, 1, 2, 5))
        start, word = rng.randrange(len(tokens) + 1), rng.choice(words)
        tokens[at : at + count] = rng.choice(
            ([], [word], [word] * 2 ** rng.randrange(12), tokens[start : start + rng.randint(1, 8)])
        )
    return b"".join(tokens)


def _checked(check: Callable[[bytes], None], data: bytes) -> tuple[float, str | None]:
    """Seconds of processor time, which other processes do not lengthen, and what failed."""
    start = time.process_time()
    failure = None
    try:
        check(data)
    except Exception:
        failure = traceback.format_exc()
    seconds = time.process_time() - start
    if failure is None and seconds > CPU_S_MAX:
        failure = f"took {seconds:.1f} s of processor time"
    return seconds, failure


def repeat(target: str, data: bytes) -> dict[str, Any]:
    """One input, without instruments."""
    from tests.faults.fuzz_targets import make_target

    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        seconds, failure = _checked(make_target(target, Path(folder)).check, data)
    return {"target": target, "inputs": 1, "slowest_ms": round(seconds * 1000, 1)} | (
        {"failure": failure} if failure else {}
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="+", choices=TARGETS, metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--inputs", type=int, default=100_000, help="of each target (100,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--input", type=base64.b64decode, help="run this one, in base64, and no other")
    parser.add_argument("-o", choices=["json"], dest="output", help="one JSON object a line")
    options = parser.parse_args()
    failed = False
    for target in options.targets:
        start = time.monotonic()
        if options.input is not None:
            report = repeat(target, options.input)
        else:
            report = fuzz(target, options.inputs, options.seed)
        report["wall_s"] = round(time.monotonic() - start, 1)
        failed |= "failure" in report
        if options.output:
            print(json.dumps(report), flush=True)
        else:
            print("\n".join(f"{name}: {value}" for name, value in report.items()), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
