"""Where snapshots live: content-addressed blobs, and manifests in a chain.

`LocalStore` is the directory on disk; `MemoryStore` is its twin for tests. Both pass the same contract tests.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from consumers.errors import SnapshotError

Buffer: TypeAlias = bytes | bytearray | memoryview
Manifest: TypeAlias = dict[str, Any]


class Store(Protocol):
    """Blobs are named by the SHA-256 of their content; manifests by their sequence number."""

    def put(self, parts: Iterable[Buffer]) -> str:
        """Makes the concatenated parts durable and returns their hash. Putting the same again is harmless."""
        ...

    def get(self, sha256: str) -> bytes:
        """The content, verified. Raises SnapshotError if it is missing or damaged."""
        ...

    def commit(self, sequence: int, manifest: Manifest) -> None:
        """Makes a manifest durable. Raises SnapshotError if that sequence number exists."""
        ...

    def sequences(self) -> list[int]:
        """Sequence numbers of all manifests, oldest first."""
        ...

    def manifest(self, sequence: int) -> Manifest:
        """One manifest, verified. Raises SnapshotError if it is missing or damaged."""
        ...

    def remove(self, sequences: Iterable[int], keep_blobs: set[str]) -> None:
        """Deletes manifests, then every blob whose hash is not in `keep_blobs`."""
        ...


def encode_manifest(manifest: Manifest) -> bytes:
    """Two lines: the SHA-256 of the second, and the manifest as JSON."""
    body = json.dumps(manifest, sort_keys=True, allow_nan=False).encode()
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body + b"\n"


def decode_manifest(data: bytes, origin: str) -> Manifest:
    """The manifest in `data`. Raises SnapshotError, naming `origin`, if a byte is wrong."""
    checksum, _, body = data.partition(b"\n")
    body = body.removesuffix(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != checksum:
        raise SnapshotError(f"{origin}: the manifest is damaged (its checksum does not match)")
    manifest: Manifest = json.loads(body)
    return manifest


class LocalStore:
    """A directory: `blobs/<sha256>` and `snapshots/<sequence>.json`. One writer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._blobs = path / "blobs"
        self._manifests = path / "snapshots"
        for directory in (self._blobs, self._manifests):
            directory.mkdir(parents=True, exist_ok=True)

    def put(self, parts: Iterable[Buffer]) -> str:
        digest = hashlib.sha256()
        temporary = self._blobs / f".{os.getpid()}.tmp"
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            for part in parts:
                digest.update(part)
                _write_all(descriptor, part)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        name = digest.hexdigest()
        os.rename(temporary, self._blobs / name)
        _fsync_directory(self._blobs)
        return name

    def get(self, sha256: str) -> bytes:
        path = self._blobs / sha256
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise SnapshotError(f"{path}: the blob is missing") from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise SnapshotError(f"{path}: the blob is damaged (its hash does not match its name)")
        return data

    def commit(self, sequence: int, manifest: Manifest) -> None:
        target = self._manifest_path(sequence)
        temporary = self._manifests / f".{os.getpid()}.tmp"
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            _write_all(descriptor, encode_manifest(manifest))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            os.link(temporary, target)  # unlike rename, a link never replaces another writer's manifest
        except FileExistsError:
            raise SnapshotError(
                f"{target}: another trainer wrote this snapshot; only one may use {self.path}"
            ) from None
        os.unlink(temporary)
        _fsync_directory(self._manifests)

    def sequences(self) -> list[int]:
        return sorted(int(path.stem) for path in self._manifests.glob("[0-9]*.json"))

    def manifest(self, sequence: int) -> Manifest:
        path = self._manifest_path(sequence)
        try:
            return decode_manifest(path.read_bytes(), str(path))
        except FileNotFoundError:
            raise SnapshotError(f"{path}: the manifest is missing") from None

    def remove(self, sequences: Iterable[int], keep_blobs: set[str]) -> None:
        for sequence in sequences:
            self._manifest_path(sequence).unlink(missing_ok=True)
        _fsync_directory(self._manifests)
        for path in self._blobs.iterdir():
            if path.name not in keep_blobs:
                path.unlink(missing_ok=True)

    def _manifest_path(self, sequence: int) -> Path:
        return self._manifests / f"{sequence:012d}.json"


class MemoryStore:
    """The twin of `LocalStore` for tests."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}
        self._manifests: dict[int, bytes] = {}

    def put(self, parts: Iterable[Buffer]) -> str:
        data = b"".join(parts)
        name = hashlib.sha256(data).hexdigest()
        self._blobs[name] = data
        return name

    def get(self, sha256: str) -> bytes:
        if sha256 not in self._blobs:
            raise SnapshotError(f"{sha256}: the blob is missing")
        return self._blobs[sha256]

    def commit(self, sequence: int, manifest: Manifest) -> None:
        if sequence in self._manifests:
            raise SnapshotError(f"snapshot {sequence}: another trainer wrote this snapshot")
        self._manifests[sequence] = encode_manifest(manifest)

    def sequences(self) -> list[int]:
        return sorted(self._manifests)

    def manifest(self, sequence: int) -> Manifest:
        if sequence not in self._manifests:
            raise SnapshotError(f"snapshot {sequence}: the manifest is missing")
        return decode_manifest(self._manifests[sequence], f"snapshot {sequence}")

    def remove(self, sequences: Iterable[int], keep_blobs: set[str]) -> None:
        for sequence in sequences:
            self._manifests.pop(sequence, None)
        for name in set(self._blobs) - keep_blobs:
            del self._blobs[name]


def _write_all(descriptor: int, data: Buffer) -> None:
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(descriptor, view) :]


def _fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
