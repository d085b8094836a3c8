"""Stands between a process and the kernel: sees each call on the files of a directory, and decides what becomes of it.

Seccomp's user notification (Linux 5.6, `man 2 seccomp_unotify`) does without ptrace, strace and a compiler: a forked
process hands over the calls that its filter names and sleeps until it is told to go on, given an error, or killed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUPPORTED = platform.system() == "Linux" and platform.machine() == "x86_64"

READING = frozenset({"read", "pread64"})
_UNKNOWN = ("writev", "pwritev", "pwritev2", "sendfile", "copy_file_range", "openat2", "fallocate", "symlink")

_FD, _PATH, _AT, _TWO_PATHS, _TWO_ATS = range(5)  # where the arguments say which file is meant
_CALLS = {  # by number: name, and that
    0: ("read", _FD),
    1: ("write", _FD),
    2: ("open", _PATH),
    17: ("pread64", _FD),
    18: ("pwrite64", _FD),
    20: ("writev", _FD),
    40: ("sendfile", _FD),
    74: ("fsync", _FD),
    75: ("fdatasync", _FD),
    76: ("truncate", _PATH),
    77: ("ftruncate", _FD),
    82: ("rename", _TWO_PATHS),
    83: ("mkdir", _PATH),
    84: ("rmdir", _PATH),
    85: ("creat", _PATH),
    86: ("link", _TWO_PATHS),
    87: ("unlink", _PATH),
    88: ("symlink", _TWO_PATHS),
    257: ("openat", _AT),
    258: ("mkdirat", _AT),
    263: ("unlinkat", _AT),
    264: ("renameat", _TWO_ATS),
    265: ("linkat", _TWO_ATS),
    285: ("fallocate", _FD),
    296: ("pwritev", _FD),
    316: ("renameat2", _TWO_ATS),
    326: ("copy_file_range", _FD),
    328: ("pwritev2", _FD),
    437: ("openat2", _AT),
}
_SECCOMP, _PIDFD_GETFD = 317, 438
_PR_SET_NO_NEW_PRIVS, _SET_MODE_FILTER, _NEW_LISTENER = 38, 1, 8
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_NOTIFICATION, _RESPONSE = struct.Struct("QIIiIQ6Q"), struct.Struct("QqiI")
_CONTINUE = 1
_AT_FDCWD = -100

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Call:
    """One call that a supervised process is about to make, on a file below the root."""

    name: str
    path: str  # relative to the root
    target: str  # likewise, of a rename or link
    flags: int  # of an open
    main_thread: bool
    arguments: tuple[int, ...]
    thread: int

    def __str__(self) -> str:
        how = " to create" if self.creates else ""
        return f"{self.name} {self.path}{' -> ' if self.target else ''}{self.target}{how}"

    @property
    def creates(self) -> bool:
        return bool(self.flags & os.O_CREAT) or self.name == "creat"

    @property
    def size(self) -> int:
        """Bytes of a write."""
        return self.arguments[2] if self.name in ("write", "pwrite64") else 0

    def data(self) -> bytes:
        """What a write is about to write."""
        return _read_memory(self.thread, self.arguments[1], self.size)


Decide = Callable[[Call], Any]
"""What becomes of a call: None, it goes on; an `errno`; `KILL`; or `HALF`: of a write, the first half."""

KILL, HALF = -1, -2


def fork(body: Callable[[], int]) -> int:
    """A process that exits with what `body` returns."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os._exit(body())
    finally:
        os._exit(99)


def wait(pid: int) -> int:
    """The exit code of a process, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def supervise(body: Callable[[], int], root: Path, decide: Decide) -> int:
    """Runs `body` in a forked process and asks `decide` before each of its calls below `root`.

    Returns its exit code, or minus the signal that killed it.
    """
    ours, theirs = socket.socketpair()

    def supervised() -> int:
        listener = _listen()
        socket.send_fds(theirs, [b"x"], [listener])
        os.close(listener)
        return body()

    with ours, theirs:
        pid = fork(supervised)
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    try:
        _serve(pid, descriptors[0], f"{root}/", decide)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        wait(pid)
        raise
    finally:
        os.close(descriptors[0])
    return wait(pid)


def _serve(pid: int, listener: int, root: str, decide: Decide) -> None:
    """Answers until the process is gone."""
    poll, paths = select.poll(), _Paths(root)
    poll.register(listener, select.POLLIN)
    while poll.poll()[0][1] & select.POLLIN:
        buffer = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(listener, _RECEIVE, buffer)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):  # it was killed meanwhile
                continue
            raise
        identity, thread, _, number, _, _, *arguments = _NOTIFICATION.unpack(buffer)
        call = paths.call(pid, thread, number, arguments)
        verdict = decide(call) if call else None
        if verdict == KILL:
            os.kill(pid, signal.SIGKILL)
            return
        if verdict is None:
            response = _RESPONSE.pack(identity, 0, 0, _CONTINUE)
        elif verdict == HALF:
            assert call is not None
            response = _RESPONSE.pack(identity, _write_half(pid, call), 0, 0)
        else:
            response = _RESPONSE.pack(identity, 0, -verdict, 0)
        fcntl.ioctl(listener, _SEND, response)


class _Paths:
    """Finds out which file a call means."""

    def __init__(self, root: str) -> None:
        self._root = root

    def call(self, pid: int, thread: int, number: int, arguments: list[int]) -> Call | None:
        """The call, if it is about a file below the root."""
        name, where = _CALLS[number]
        flags, target = 0, ""
        if where == _FD:
            path = _link(thread, arguments[0])
        elif where in (_PATH, _TWO_PATHS):
            path = self._path(thread, _AT_FDCWD, arguments[0])
            flags = arguments[1] if name == "open" else 0
            target = self._path(thread, _AT_FDCWD, arguments[1]) if where == _TWO_PATHS else ""
        else:
            path = self._path(thread, arguments[0], arguments[1])
            flags = arguments[2] if name == "openat" else 0
            target = self._path(thread, arguments[2], arguments[3]) if where == _TWO_ATS else ""
        if not f"{path}/".startswith(self._root) and not f"{target}/".startswith(self._root):
            return None
        assert name not in _UNKNOWN, f"{name} {path}: the supervisor does not know what this call does to a file"
        path, target = path[len(self._root) :], target[len(self._root) :]
        return Call(name, path, target, flags, thread == pid, tuple(arguments), thread)

    def _path(self, thread: int, directory: int, address: int) -> str:
        text = _read_memory(thread, address, os.pathconf("/", "PC_PATH_MAX")).split(b"\0", 1)[0].decode()
        if text.startswith("/"):
            return text
        directory = ctypes.c_int(directory).value
        base = os.readlink(f"/proc/{thread}/cwd") if directory == _AT_FDCWD else _link(thread, directory)
        return os.path.normpath(f"{base}/{text}")


def _link(thread: int, descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/{thread}/fd/{descriptor}")
    except FileNotFoundError:
        return ""  # not open: the kernel will say so


def _read_memory(thread: int, address: int, size: int) -> bytes:
    with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        found = b""
        while len(found) < size:
            try:
                more = memory.read(size - len(found))
            except OSError:  # behind a string may be nothing
                break
            if not more:
                break
            found += more
        return found


def _write_half(pid: int, call: Call) -> int:
    """Writes the first half of what a call is about to write, through its own descriptor."""
    assert call.name == "write"
    process = os.pidfd_open(pid)
    descriptor = _libc.syscall(_PIDFD_GETFD, process, call.arguments[0], 0)
    os.close(process)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    try:
        return os.write(descriptor, call.data()[: call.size // 2])
    finally:
        os.close(descriptor)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _listen() -> int:
    """Hands over this process's calls: to whom holds the descriptor that is returned."""
    steps = [(_LOAD, 0, 0, 0)]
    steps += [(_JUMP_IF_EQUAL, len(_CALLS) - index, 0, number) for index, number in enumerate(_CALLS)]
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _NOTIFY)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = _Program(len(steps), ctypes.addressof(code))
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    listener: int = _libc.syscall(_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, ctypes.byref(program))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp: no user notification here")
    return listener
