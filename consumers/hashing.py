"""Keys and categories as numbers. Strings never leave the reader."""

from __future__ import annotations

import xxhash

key128 = xxhash.xxh3_128_digest
"""XXH3-128 of a key's canonical text (bytes): 16 bytes."""


def canonical(value: object) -> bytes:
    """The canonical text of a key or a category: strings as they are, integers in decimal, as UTF-8.

    Raises ValueError for any other type (floats, booleans, null, objects), and for an empty string.
    """
    if isinstance(value, str) and value:
        return value.encode()
    if isinstance(value, int) and not isinstance(value, bool):
        return b"%d" % value
    raise ValueError("a key or category is a non-empty string or an integer")


def bucket(text: bytes, buckets: int) -> int:
    """The embedding row of a category, in [1, buckets): 0 is kept for null."""
    return 1 + xxhash.xxh3_64_intdigest(text) % (buckets - 1)
