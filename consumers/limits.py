"""What a reader process may take of memory: a decompression bomb kills it and no other."""

from __future__ import annotations

import ctypes
import resource

STACK_BYTES = 2**20
OWN_BYTES = 192 * 2**20  # what clients of a few brokers and the compiled loops map after the start: 130 MiB measured


def limit_stacks() -> None:
    """Gives threads started from now on a stack of STACK_BYTES (glibc).

    The default is often 8 MiB, and librdkafka starts a thread for each broker of the cluster, in each of two clients.
    """
    attributes = ctypes.create_string_buffer(128)  # a pthread_attr_t has 56 bytes
    libc = ctypes.CDLL(None)
    libc.pthread_attr_init(attributes)
    libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(STACK_BYTES))
    libc.pthread_setattr_default_np(attributes)


def limit_memory(size: int) -> None:
    """Lets allocations fail beyond so many bytes over what is mapped now and what a reader takes before it reads.

    The limit counts private memory, thread stacks included, but not the arena.
    """
    with open("/proc/self/statm") as statm:
        mapped = int(statm.read().split()[5]) * resource.getpagesize()
    limit = mapped + OWN_BYTES + size
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
