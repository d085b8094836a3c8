"""What is fuzzed, and what must hold for every input."""

from __future__ import annotations

import gzip
import hashlib
import os
import time
import typing
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from consumers.codecs import Codec, Decoded, build_codec
from consumers.codecs.table import allocate
from consumers.config import FeaturesConfig, LabelRule, LabelsConfig
from consumers.errors import ConfigError, SnapshotError
from consumers.record import Events, Messages
from pipeline.config import JobConfig
from pipeline.jobfile import load
from pipeline.ledger import seal, unseal
from pipeline.store import decode_manifest, encode_manifest
from tests.codec_ways import SlowJson
from tests.guarded import GuardedMemory
from tests.stream import job_document, toml

NOW = 1_700_000_000_000


class Target(ABC):
    """Inputs to begin with, what to make others of, and the check of one input, which raises if it fails."""

    seeds: list[bytes]
    values: list[bytes]  # each may stand where another one stood
    words: list[bytes]
    bytes_max = 2048

    @abstractmethod
    def check(self, data: bytes) -> None: ...


GOOD = orjson.dumps({"id": "a", "ts": NOW, "x": 1.5, "y": -2, "w": 0.5, "c": "red", "d": "L", "label": 1})
OTHER = orjson.dumps({"id": 7, "ts": NOW - 1, "x": 0, "y": None, "w": 1, "c": "blue", "d": None, "label": 0})


def _features(**changes: Any) -> FeaturesConfig:
    usual = {
        "topic": "f",
        "key": "id",
        "time": "ts",
        "numeric": ["x", {"name": "y", "nullable": True}],
        "categorical": ["c", {"name": "d", "nullable": True, "buckets": 16}],
    }
    return FeaturesConfig.model_validate(usual | changes)


TOPICS = (
    (_features(), LabelRule(kind="binary")),
    (_features(label="label", weight="w"), LabelRule(kind="class", classes=3)),
    (_features(key=None, time=None, numeric=["x"], categorical=[]), LabelRule(kind="binary")),
    (_features(numeric=[], max_message_bytes=120), LabelRule(kind="binary")),
    (LabelsConfig(topic="l", key="id", time="ts", column="label"), LabelRule(kind="binary")),
    (LabelsConfig(topic="l", column="label"), LabelRule(kind="class", classes=3)),
    (LabelsConfig(topic="l", key="id", time="ts", column="label", max_skew=0), LabelRule(kind="number")),
)


class JsonTarget(Target):
    """A batch of any messages between two good ones.

    The first byte picks the topic; messages are separated by 0xFF, which no text holds. One that begins with 0
    to 3 is a tombstone, has a key of its own, no timestamp, or no key. The last one lies at the end of memory.
    """

    bytes_max = 768

    def __init__(self) -> None:
        self._memory = GuardedMemory()
        self._codecs = [(build_codec(*topic), SlowJson(*topic)) for topic in TOPICS]
        self._alone = [
            [_row(_decoded(build_codec(*topic), _messages([good])).events, 0) for good in (GOOD, OTHER)]
            for topic in TOPICS
        ]
        odd = [b"\0k", b"\1k\1" + GOOD, b"\2" + GOOD, b"\3" + OTHER]
        batches = [[GOOD], [GOOD, OTHER] * 3, [OTHER, *odd]]
        self.seeds = [bytes([topic]) + b"\xff".join(batch) for topic in range(len(TOPICS)) for batch in batches]
        self.values = [
            *b"true false null NaN Infinity 0 1 2 -0 -1 0.5 1e39 1e400 3.4028236e38 1E5".split(),
            *b"9223372036854775807 9223372036854775808 18446744073709551616".split(),
            *rb'"" "a" "1" "\u0000" "\ud800" ":" [] {} [null] {"a":NaN} {"a":1,"a":2} "id" "ts" "x" "w"'.split(),
            *(b"9" * 39, b"9" * 400, b"[" * 33 + b"]" * 33, b'{"a":' * 32 + b"1" + b"}" * 32, b'"\xc3\xa9"', b'"\xc3"'),
        ]
        self.words = [*rb'{ } [ ] " : , \ "x":1,'.split(), b" ", b"\0", b"\1k\1", b"\1\xc3\1", b"\2", b"\3"]
        self.words += [b"\xff", b"\xff{", b"\xef\xbb\xbf", b"\xed\xa0\x80"]

    def check(self, data: bytes) -> None:
        topic, values = data[0] % len(TOPICS) if data else 0, data[1:].split(b"\xff")
        codec, definition = self._codecs[topic]
        messages = _messages([GOOD, *values, OTHER])
        guarded = replace(messages, values=self._memory.blobs(messages.values, last=len(values)))
        decoded, defined = _decoded(codec, guarded), _decoded(definition, messages)
        offsets = [decoded.events.offset_N.tolist(), decoded.rejects["offset"].to_pylist()]
        assert sorted(offsets[0] + offsets[1]) == messages.offset_N.tolist(), "not one event or reject for each message"
        assert all(each == sorted(each) for each in offsets), "out of order"
        assert _bits(decoded.events) == _bits(defined.events), "not what one by one gives"
        assert decoded.rejects.equals(defined.rejects), "not what is refused one by one"
        neighbours = [_row(decoded.events, 0), _row(decoded.events, len(decoded.events) - 1)]
        assert neighbours == self._alone[topic], "a good message is not what it is alone"


class JobFileTarget(Target):
    """A job file; behind each 0xFF a `--set` flag or, after a 0, an environment variable.

    It is refused with a ConfigError, or it gives a job that a manifest can hold and give back.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "job.toml"
        usual = toml(job_document(Path("state"))).encode()
        small = b'[job]\nname="a"\nstate_dir="s"\n[kafka]\n"bootstrap.servers"="b"\n[dead_letters]\ntopic="d"\n'
        small += b'[learner]\nkind="mlp"\nlearning_rate=0.01\n'
        small += b'[features]\ntopic="f"\nlabel="l"\n'
        lists = small + b'numeric=["x",\n{name="y",nullable=true},]\n'
        tables = small + b'[[features.categorical]]\nname="c"\n[[features.categorical]]\nname="d"\nbuckets=8\n'
        changes = [b"learner.batch_size=512", b"kafka.linger.ms=5", b"features.start=2013-01-01T00:00:00"]
        changes += [b"\0EVERTRAIN__LEARNER__HIDDEN=[1, 2]", b"\0EVERTRAIN__KAFKA__SASL_PASSWORD=p"]
        self.seeds = [usual, lists, tables, b"\xff".join([lists, *changes])]
        fields = {name.encode(): field for name, field in JobConfig.model_fields.items()}
        keys = {key for field in fields.values() for key in _keys(field.annotation)}
        self.values = [
            *(key.encode() for key in sorted(keys)),
            *b"true nan -inf 0 1 -1 1e400 9223372036854775808 1979-05-27T07:32:00Z 07:32:00 x [] {} {rows=0}".split(),
            *rb'"" "5m" "9\u0020rows" "99999999999999d" "\u0000" "binary" "negative" "latest" "p.q:R"'.split(),
            *(b"[" * 600 + b"]" * 600, b"0x" + b"f" * 400, b"9" * 500, b'"\xc2\xb2s"', b'"""\n"""', b"a." * 50 + b"a"),
        ]
        self.words = [
            *(b"[%s]\n" % name for name in fields),
            *(b"\xff%s." % name for name in fields),
            *(b"\xff\0EVERTRAIN__%s__" % name.upper() for name in fields),
            *(b"=", b".", b'"""', b"[[", b"]]", b"[", b"{a=", b"#", b"\n", b"\xff#", b"__", b"\xed\xa0\x80"),
        ]

    def check(self, data: bytes) -> None:
        text, *changes = data.split(b"\xff")
        self._path.write_bytes(text)
        flags, variables = [], {}
        for change in changes:
            argument = os.fsdecode(change.replace(b"\0", b""))  # neither holds a NUL
            if change.startswith(b"\0"):
                name, _, variables[name] = argument.partition("=")
            else:
                flags.append(argument)
        try:
            job = load(self._path, flags, variables)
        except ConfigError as error:
            _check_words(error)
            return
        manifest = encode_manifest({"config": job.model_dump(mode="json"), "sha256": job.sha256()})
        assert JobConfig.model_validate(decode_manifest(manifest, "")["config"]) == job, "a manifest changes it"
        assert b"\0" not in os.fsencode(job.job.state_dir)


class ManifestTarget(Target):
    """The bytes of a manifest, sealed with their checksum unless the first byte is odd."""

    def __init__(self) -> None:
        document = {"a": [1, 2.5, None, True, "é"], "b": {"c": {}}}
        self.seeds = [b"\0" + orjson.dumps(document), b"\1" + encode_manifest(document)]
        self.values = rb'[] {} "a" NaN Infinity null true 1e400 -0 "\ud800" "\u0000"'.split()
        self.values.append(b"9" * 1000)
        self.words = [*b'{ } [ ] : , {"a":'.split(), b"\n", b"\xef\xbb\xbf", b"\xff"]

    def check(self, data: bytes) -> None:
        body = data[1:]
        if not data[:1] or not data[0] % 2:
            body = hashlib.sha256(body).hexdigest().encode() + b"\n" + body + b"\n"
        try:
            manifest = decode_manifest(body, "the manifest")
        except SnapshotError as error:
            _check_words(error)
            return
        assert isinstance(manifest, dict)


class LedgerTarget(Target):
    """The bytes of a ledger, or, if the first byte is even, its text."""

    def __init__(self) -> None:
        lines = [["span", 0, 5, 9], ["tick"], ["config", {"a.b": "é"}], ["snapshot", 3, "0a", "0b"]]
        text = b"".join(orjson.dumps(line) + b"\n" for line in lines)
        self.seeds = [b"\0" + text, b"\1" + seal(lines), b"\1" + seal(lines[:1]) + seal(lines[1:])]
        self.values = rb'[] {} "tick" NaN null 1e400 "\ud800"'.split()
        self.words = [*b"{ } [ ] : ,".split(), b"\n", b"\r", b"\xff", seal([])]

    def check(self, data: bytes) -> None:
        odd = data[:1] and data[0] % 2
        try:
            lines = list(unseal(data[1:] if odd else gzip.compress(data[1:], 1)))
        except SnapshotError as error:
            _check_words(error)
            return
        assert all(isinstance(line, list) for line in lines)


class FragileTarget(Target):
    """Fails as its name says at some inputs: what the fuzzer itself is tested with."""

    def __init__(self, how: str) -> None:
        self._how = how
        self.seeds, self.values, self.words = [b"fine"], [b"bad"], [b" "]

    def check(self, data: bytes) -> None:
        if b"bad" not in data:
            return
        if self._how == "dies":
            os.abort()
        if self._how == "raises":
            raise ValueError("bad input")
        start = time.process_time()
        while time.process_time() < start + 1.1:
            pass


def make_target(name: str, folder: Path) -> Target:
    """A target by its name. It may write into `folder`."""
    if name == "jobfile":
        return JobFileTarget(folder)
    if name.startswith("fragile: "):
        return FragileTarget(name.removeprefix("fragile: "))
    return {"json": JsonTarget, "manifest": ManifestTarget, "ledger": LedgerTarget}[name]()


def _check_words(error: Exception) -> None:
    assert str(error).strip(), "an error without words"


def _messages(values: list[bytes]) -> Messages:
    keys: list[bytes | None] = [b"k"] * len(values)
    timestamps, texts = [NOW] * len(values), list[bytes | None](values)
    for index, value in enumerate(values):
        match value[:1]:
            case b"\0":
                keys[index], texts[index] = value[1:], None
            case b"\1":
                keys[index], _, texts[index] = value[1:].partition(b"\1")
            case b"\2":
                timestamps[index], texts[index] = -1, value[1:]
            case b"\3":
                keys[index], texts[index] = None, value[1:]
    return Messages.of(range(100, 100 + len(values)), timestamps, keys, texts)


def _decoded(codec: Codec, messages: Messages) -> Decoded:
    return codec.decode(messages, allocate(len(messages), codec.columns))


def _columns(events: Events) -> list[np.ndarray]:
    columns = [getattr(events, name) for name in events.__slots__]
    return [column for column in columns if column is not None]


def _bits(events: Events) -> list[bytes]:
    """A NaN is equal to itself here, and -0.0 is not 0.0."""
    return [column.tobytes() for column in _columns(events)]


def _row(events: Events, index: int) -> list[bytes]:
    """The bits of one row, but for its offset."""
    return [column[index].tobytes() for column in _columns(events) if column is not events.offset_N and len(column)]


def _keys(annotation: object) -> list[str]:
    models = [each for each in (annotation, *typing.get_args(annotation)) if hasattr(each, "model_fields")]
    return [name for model in models for name in model.model_fields]
