"""A disk that forgets what was not synced: a model of files and directories, driven by a log of system calls.

What it promises is what POSIX does, and no file system gives less: `fsync` of a file makes its bytes and size durable,
`fsync` of a directory its entries; a rename is there or not, but never half. What was not synced may be there or
not, each write and each entry for itself: torn, zeros in place of bytes, in any order.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TypeAlias

from tests.faults.supervise import Call

SECTOR = 512

Tree: TypeAlias = dict[str, bytes]
"""Contents by path; a directory's path ends with a slash."""


@dataclass(eq=False)
class File:
    """The bytes that a reader sees, those that are durable, and what changed since."""

    data: bytes = b""
    durable: bytes = b""
    changes: list[tuple[int, bytes] | int] = field(default_factory=list)  # a write: where and what; a new size

    def write(self, place: int, data: bytes) -> None:
        self.data = _patched(self.data, place, data)
        self.changes.append((place, data))

    def truncate(self, size: int) -> None:
        self.data = _resized(self.data, size)
        self.changes.append(size)

    def sync(self) -> None:
        self.durable, self.changes = self.data, []

    def after_power_cut(self, chance: random.Random, share: float) -> bytes:
        """What may be found: each change for itself."""
        found = self.durable
        for change in self.changes:
            if chance.random() >= share:
                continue
            found = _resized(found, change) if isinstance(change, int) else _torn(found, *change, chance)
        return found


@dataclass(eq=False)
class Directory:
    """Entries as a process sees them, those that are durable, and what changed since: each change is whole or not."""

    entries: dict[str, File | Directory] = field(default_factory=dict)
    durable: dict[str, File | Directory] = field(default_factory=dict)
    changes: list[dict[str, File | Directory | None]] = field(default_factory=list)

    def change(self, entries: dict[str, File | Directory | None]) -> None:
        _apply(self.entries, entries)
        self.changes.append(entries)

    def sync(self) -> None:
        self.durable, self.changes = dict(self.entries), []

    def after_power_cut(self, chance: random.Random, share: float) -> dict[str, File | Directory]:
        """The entries that may be found: each change for itself."""
        found = dict(self.durable)
        for change in self.changes:
            if chance.random() < share:
                _apply(found, change)
        return found


class Disk:
    """One directory, as the calls of a log leave it. Begins with a durable tree."""

    def __init__(self, tree: Tree) -> None:
        self._root = Directory()
        for path, data in sorted(tree.items()):
            directory, name = self._parent(path.rstrip("/"))
            directory.change({name: Directory() if path.endswith("/") else File(data, data)})
        for node in self._nodes(self._root):
            node.sync()

    def apply(self, call: Call, data: bytes = b"") -> None:
        """What a call does; `data` is what a write writes. One that cannot succeed does nothing."""
        directory, name = self._parent(call.path)
        node = directory.entries.get(name) if call.path else self._root
        if call.name in ("open", "openat"):
            if node is None and call.creates:
                directory.change({name: File()})
            elif isinstance(node, File) and call.flags & os.O_TRUNC and node.data:
                node.truncate(0)
        elif call.name == "write":
            assert isinstance(node, File), call
            node.write(len(node.data), data)  # every file here is written from its start or its end on
        elif call.name in ("fsync", "fdatasync"):
            assert node is not None, call
            node.sync()
        elif call.name == "mkdir":
            if node is None:
                directory.change({name: Directory()})
        elif call.name == "unlink":
            if isinstance(node, File):
                directory.change({name: None})
        elif call.name in ("rename", "link", "linkat"):
            self._move(call, node, directory, name)
        else:
            raise AssertionError(f"{call}: the model does not know what it does")

    def _move(self, call: Call, node: File | Directory | None, directory: Directory, name: str) -> None:
        target, new = self._parent(call.target)
        assert node is not None, call
        if call.name == "rename":
            assert target is directory, f"{call}: from one directory to another"
            directory.change({name: None, new: node})
        elif new not in target.entries:
            target.change({new: node})

    def after_power_cut(self, chance: random.Random) -> Tree:
        """One tree that may be found. Much is lost, or little, or half."""
        share = chance.choice((0.0, 0.1, 0.5, 0.5, 0.9, 1.0))
        contents: dict[File, bytes] = {}  # a file with two names has one content

        def content(file: File) -> bytes:
            if file not in contents:
                contents[file] = file.after_power_cut(chance, share)
            return contents[file]

        return _tree(self._root, lambda directory: directory.after_power_cut(chance, share), content)

    def tree(self) -> Tree:
        """What a process sees."""
        return _tree(self._root, lambda directory: directory.entries, lambda file: file.data)

    def _parent(self, path: str) -> tuple[Directory, str]:
        *above, name = PurePosixPath(path).parts or ("",)
        directory = self._root
        for part in above:
            found = directory.entries[part]
            assert isinstance(found, Directory)
            directory = found
        return directory, name

    def _nodes(self, directory: Directory) -> list[File | Directory]:
        nodes: list[File | Directory] = [directory]
        for node in directory.entries.values():
            nodes += self._nodes(node) if isinstance(node, Directory) else [node]
        return nodes


def _tree(
    directory: Directory,
    entries: Callable[[Directory], dict[str, File | Directory]],
    content: Callable[[File], bytes],
) -> Tree:
    tree: Tree = {}
    for name, node in entries(directory).items():
        if isinstance(node, File):
            tree[name] = content(node)
        else:
            tree[f"{name}/"] = b""
            tree |= {f"{name}/{path}": data for path, data in _tree(node, entries, content).items()}
    return tree


def _apply(entries: dict[str, File | Directory], change: dict[str, File | Directory | None]) -> None:
    for name, node in change.items():
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


def _patched(data: bytes, place: int, new: bytes) -> bytes:
    return _resized(data, max(len(data), place))[:place] + new + data[place + len(new) :]


def _resized(data: bytes, size: int) -> bytes:
    return data[:size] + bytes(max(0, size - len(data)))


def _torn(data: bytes, place: int, new: bytes, chance: random.Random) -> bytes:
    """A write that was under way: whole, a first part of it, the size alone, or some of its sectors."""
    kind = chance.randrange(4)
    if kind == 0:
        return _patched(data, place, new)
    if kind == 1:
        return _patched(data, place, new[: chance.randrange(len(new) + 1)])
    old = _resized(data, max(len(data), place + len(new)))
    if kind == 2:
        return old
    sectors = range(place // SECTOR, (place + len(new)) // SECTOR + 1)
    whole = _patched(data, place, new)
    return b"".join(
        (whole if chance.random() < 0.5 or sector not in sectors else old)[sector * SECTOR : (sector + 1) * SECTOR]
        for sector in range(len(whole) // SECTOR + 1)
    )
