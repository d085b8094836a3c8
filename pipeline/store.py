"""Where snapshots live: content-addressed blobs, and manifests in a chain.

`LocalStore` is the directory on disk; `MemoryStore` is its twin for tests. Both pass the same contract tests.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from consumers.errors import SnapshotError

Buffer: TypeAlias = bytes | bytearray | memoryview
Manifest: TypeAlias = dict[str, Any]

_START = uuid.uuid4().hex  # two containers may have the same process id
_CHECKSUM = 64  # hexadecimal digits of a SHA-256
_READ_BYTES = 2**20


class Store(Protocol):
    """Blobs are named by the SHA-256 of their content; manifests by their sequence number."""

    def put(self, parts: Iterable[Buffer]) -> str:
        """Makes the concatenated parts durable and returns their hash. Putting the same again is harmless."""
        ...

    def get(self, sha256: str) -> bytes:
        """The content, verified. Raises SnapshotError if it is missing or damaged."""
        ...

    def verify(self, sha256: str) -> None:
        """Reads the content through without keeping it. Raises SnapshotError if it is missing or damaged."""
        ...

    def file(self, sha256: str) -> Path | None:
        """Where the content lies as a file of its own, for mapping it; None if it does not."""
        ...

    def commit(self, sequence: int, manifest: Manifest, check: Callable[[], None] = lambda: None) -> str:
        """Makes a manifest durable and returns its checksum. Raises SnapshotError if another has that number.

        `check` is called when all is written, just before it counts: what it raises leaves nothing behind that counts.
        """
        ...

    def clear_unfinished(self) -> None:
        """Takes away what others have begun to write: nobody can finish it any more."""
        ...

    def sequences(self) -> list[int]:
        """Sequence numbers of all manifests, oldest first."""
        ...

    def manifest(self, sequence: int) -> Manifest:
        """One manifest, verified. Raises SnapshotError if it is missing or damaged."""
        ...

    def checksum(self, sequence: int) -> str | None:
        """The checksum a manifest carries, or None if there is no such manifest."""
        ...

    def sync(self, sequence: int | None) -> None:
        """Makes a manifest, or an empty store, durable once more: its writer may have died before it could."""
        ...

    def set_aside(self, sequence: int) -> None:
        """Takes a bad manifest out of the chain; its number stays taken."""
        ...

    def taken(self) -> int:
        """The highest sequence number that was ever used, set aside or not; -1 if there is none."""
        ...

    def remove(self, sequences: Iterable[int], blobs: Iterable[str]) -> None:
        """Deletes manifests, then blobs."""
        ...

    def blobs(self) -> set[str]:
        """Names of all blobs, and of what unfinished writes have left."""
        ...


def encode_manifest(manifest: Manifest) -> bytes:
    """Two lines: the SHA-256 of the second, and the manifest as JSON."""
    body = json.dumps(manifest, sort_keys=True, allow_nan=False).encode()
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body + b"\n"


def decode_manifest(data: bytes, origin: str) -> Manifest:
    """The manifest in `data`. Raises SnapshotError, naming `origin`, if a byte is wrong."""
    checksum, _, body = data.partition(b"\n")
    if hashlib.sha256(body.removesuffix(b"\n")).hexdigest().encode() != checksum:
        raise SnapshotError(f"{origin}: the manifest is damaged (its checksum does not match)")
    try:
        manifest = json.loads(body)
    except (ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict):
        raise SnapshotError(f"{origin}: the manifest is no JSON object, although its checksum is right")
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
        temporary = write_new(self._blobs, parts, digest)
        name = digest.hexdigest()
        os.rename(temporary, self._blobs / name)
        fsync_directory(self._blobs)
        return name

    def get(self, sha256: str) -> bytes:
        path = self._blobs / sha256
        with _reading(path, "blob"):
            data = path.read_bytes()
        _check_hash(path, hashlib.sha256(data), sha256)
        return data

    def verify(self, sha256: str) -> None:
        path, digest = self._blobs / sha256, hashlib.sha256()
        with _reading(path, "blob"), path.open("rb", buffering=0) as file:
            while data := file.read(_READ_BYTES):
                digest.update(data)
        _check_hash(path, digest, sha256)

    def file(self, sha256: str) -> Path | None:
        return self._blobs / sha256

    def commit(self, sequence: int, manifest: Manifest, check: Callable[[], None] = lambda: None) -> str:
        target, data = self._manifest_path(sequence), encode_manifest(manifest)
        temporary = write_new(self._blobs, [data])  # where the next start clears up what a crash has left
        check()
        try:
            os.link(temporary, target)  # unlike rename, a link never replaces another writer's manifest
        except FileNotFoundError:  # a start has cleared it away, between the check and here
            raise SnapshotError(
                f"{self.path}: another trainer took over this state directory; this one stops and commits nothing more"
            ) from None
        except FileExistsError:
            # The same may be written again: the attempt before broke off behind the link.
            if target.read_bytes() != data:
                raise SnapshotError(
                    f"{target}: another trainer wrote this snapshot; only one may use {self.path}"
                ) from None
        os.unlink(temporary)
        fsync_directory(self._manifests)
        return data[:_CHECKSUM].decode()

    def clear_unfinished(self) -> None:
        for name in self.blobs():
            if name.startswith("."):
                (self._blobs / name).unlink(missing_ok=True)

    def sequences(self) -> list[int]:
        return sorted(int(name[:-5]) for name in os.listdir(self._manifests) if _is_manifest(name))

    def manifest(self, sequence: int) -> Manifest:
        path = self._manifest_path(sequence)
        with _reading(path, "manifest"):
            data = path.read_bytes()
        return decode_manifest(data, str(path))

    def checksum(self, sequence: int) -> str | None:
        try:
            with self._manifest_path(sequence).open("rb") as file:
                return file.read(_CHECKSUM).decode(errors="replace")
        except FileNotFoundError:
            return None

    def sync(self, sequence: int | None) -> None:
        if sequence is not None:
            fsync_file(self._manifest_path(sequence))
        for directory in (self._blobs, self._manifests, self.path):
            fsync_directory(directory)

    def set_aside(self, sequence: int) -> None:
        path = self._manifest_path(sequence)
        path.rename(path.with_name(f"{path.name}.bad"))
        fsync_directory(self._manifests)

    def taken(self) -> int:
        names = (name.partition(".")[0] for name in os.listdir(self._manifests))
        return max((int(name) for name in names if name.isdigit()), default=-1)

    def remove(self, sequences: Iterable[int], blobs: Iterable[str]) -> None:
        for sequence in sequences:
            self._manifest_path(sequence).unlink(missing_ok=True)
        fsync_directory(self._manifests)  # a manifest that came back after a power cut would miss its blobs
        for name in blobs:
            (self._blobs / name).unlink(missing_ok=True)

    def blobs(self) -> set[str]:
        return set(os.listdir(self._blobs))

    def _manifest_path(self, sequence: int) -> Path:
        return self._manifests / f"{sequence:012d}.json"


class MemoryStore:
    """The twin of `LocalStore` for tests."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}
        self._manifests: dict[int, bytes] = {}
        self._taken = -1

    def put(self, parts: Iterable[Buffer]) -> str:
        data = b"".join(parts)
        name = hashlib.sha256(data).hexdigest()
        self._blobs[name] = data
        return name

    def get(self, sha256: str) -> bytes:
        if sha256 not in self._blobs:
            raise SnapshotError(f"{sha256}: the blob is missing")
        if hashlib.sha256(self._blobs[sha256]).hexdigest() != sha256:
            raise SnapshotError(f"{sha256}: the blob is damaged (its hash does not match its name)")
        return self._blobs[sha256]

    def verify(self, sha256: str) -> None:
        self.get(sha256)

    def file(self, sha256: str) -> Path | None:
        return None

    def commit(self, sequence: int, manifest: Manifest, check: Callable[[], None] = lambda: None) -> str:
        check()
        if self._manifests.get(sequence, encode_manifest(manifest)) != encode_manifest(manifest):
            raise SnapshotError(f"snapshot {sequence}: another trainer wrote this snapshot")
        self._manifests[sequence] = encode_manifest(manifest)
        self._taken = max(self._taken, sequence)
        return self._manifests[sequence][:_CHECKSUM].decode()

    def clear_unfinished(self) -> None:
        """Nothing in memory is half written."""

    def sequences(self) -> list[int]:
        return sorted(self._manifests)

    def manifest(self, sequence: int) -> Manifest:
        if sequence not in self._manifests:
            raise SnapshotError(f"snapshot {sequence}: the manifest is missing")
        return decode_manifest(self._manifests[sequence], f"snapshot {sequence}")

    def checksum(self, sequence: int) -> str | None:
        found = self._manifests.get(sequence)
        return found[:_CHECKSUM].decode() if found else None

    def sync(self, sequence: int | None) -> None:
        """Memory is as durable as it gets."""

    def set_aside(self, sequence: int) -> None:
        del self._manifests[sequence]

    def taken(self) -> int:
        return self._taken

    def remove(self, sequences: Iterable[int], blobs: Iterable[str]) -> None:
        for sequence in sequences:
            self._manifests.pop(sequence, None)
        for name in blobs:
            self._blobs.pop(name, None)

    def blobs(self) -> set[str]:
        return set(self._blobs)


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """A file that is gone, or lies on a bad sector, is a damaged one; anything else may pass, and is raised."""
    try:
        yield
    except FileNotFoundError:
        raise SnapshotError(f"{path}: the {what} is missing") from None
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise SnapshotError(f"{path}: the {what} is damaged ({error.strerror})") from None


def _check_hash(path: Path, digest: Any, sha256: str) -> None:
    if digest.hexdigest() != sha256:
        raise SnapshotError(f"{path}: the blob is damaged (its hash does not match its name)")


def _is_manifest(name: str) -> bool:
    return name.endswith(".json") and name[:-5].isdigit()


def write_new(directory: Path, parts: Iterable[Buffer], digest: Any = None) -> Path:
    """A new file with these parts, durable in itself; the caller gives it its name."""
    temporary = directory / f".{os.getpid()}-{_START}.tmp"
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        for part in parts:
            if digest is not None:
                digest.update(part)
            _write_all(descriptor, part)
        os.fsync(descriptor)
    except OSError:
        temporary.unlink(missing_ok=True)  # half a file on a full disk helps nobody
        raise
    finally:
        os.close(descriptor)
    return temporary


def _write_all(descriptor: int, data: Buffer) -> None:
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(descriptor, view) :]


def fsync_file(path: Path) -> None:
    """Makes a file's content durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_directory(path: Path) -> None:
    """Makes a directory's entries durable."""
    fsync_file(path)
