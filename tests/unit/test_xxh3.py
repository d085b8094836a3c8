"""The compiled hash gives the bits of the package: a key must not change with the way it came in."""

import numpy as np
import pytest
import xxhash

from consumers.codecs.xxh3 import LENGTH_MAX, xxh3_64, xxh3_128


@pytest.mark.parametrize("length", range(LENGTH_MAX + 1))
def test_every_length_hashes_as_the_package_has_it(length: int) -> None:
    data = np.random.default_rng(length).integers(0, 256, 3 * LENGTH_MAX).astype(np.uint8)
    data.flags.writeable = False
    for start in (0, 1, 13, len(data) - length):
        text = data[start : start + length].tobytes()
        low, high = map(int, xxh3_128(data, start, length))
        assert xxh3_64(data, start, length) == xxhash.xxh3_64_intdigest(text)
        assert high << 64 | low == xxhash.xxh3_128_intdigest(text)
