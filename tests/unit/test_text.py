"""What is UTF-8 is what Python decodes."""

from itertools import product

import numpy as np

from consumers.codecs.text import valid_text

BOUNDS = b"a\x7f\x80\x8f\x90\x9f\xa0\xbf\xc0\xc1\xc2\xdf\xe0\xe1\xed\xee\xef\xf0\xf1\xf3\xf4\xf5\xff"
"""The bytes at which something changes, and their neighbours."""


def decodes(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_each_sequence_of_bytes_at_which_something_changes() -> None:
    texts = [bytes(each) for size in range(4) for each in product(BOUNDS, repeat=size)]
    texts += [bytes(each) for each in product(b"\xf0\xf1\xf3\xf4\xf5", *[BOUNDS] * 3)]
    data = np.frombuffer(b"".join(texts), np.uint8)
    stop = 0
    for text in texts:
        start, stop = stop, stop + len(text)
        assert valid_text(data, start, stop) == decodes(text), text


def test_long_texts_are_looked_at_to_their_end() -> None:
    for size in range(20):
        for text in (
            b"a" * size,
            b"a" * size + b"\xc3\xa9",
            b"a" * size + b"\xc3",
            b"a" * size + b"\xc3\xa9" + b"a" * 9,
        ):
            data = np.frombuffer(text + b"\xa9", np.uint8)
            assert valid_text(data, 0, len(text)) == decodes(text)
