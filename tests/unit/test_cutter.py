"""Where spans end is decided by offsets and contents, never by fetch timing."""

import pyarrow as pa
import pytest

from consumers import cutter as module
from consumers.arena import Arena
from consumers.codecs import Decoded, build_codec
from consumers.config import FeaturesConfig, LabelRule
from consumers.cutter import Cut, Cutter, place, slot_bytes
from consumers.record import REJECTS, Messages, Partition, event_schema

HERE = Partition("t", 0)


class Plain:
    """A codec that rejects every message whose value begins with b'bad'."""

    def decode(self, messages: Messages) -> Decoded:
        schema = event_schema(0, labelled=True)
        good, bad = [], []
        for offset, value in zip(messages.offsets, messages.values, strict=True):
            if value is not None and value.startswith(b"bad"):
                bad.append(
                    {
                        "offset": offset,
                        "row": 0,
                        "timestamp": 0,
                        "reason": "bad",
                        "key": None,
                        "value": value,
                        "value_bytes": len(value),
                    }
                )
            else:
                good.append({"key": b"k" * 16, "event_time": 0, "offset": offset, "row": 0, "kind": 0, "label": 0.0})
        return Decoded(pa.RecordBatch.from_pylist(good, schema), pa.RecordBatch.from_pylist(bad, REJECTS))


def cutter(start: int = 0, span: int = 4) -> Cutter:
    return Cutter(HERE, Plain(), start, span)


def fill(target: Cutter, offsets: list[int], value: bytes = b"x") -> None:
    target.extend(Messages(offsets, offsets, [None] * len(offsets), [value] * len(offsets)))


def extents(target: Cutter, *, flush: bool = False) -> list[tuple[int, int]]:
    found = []
    while (cut := target.cut(flush=flush)) is not None:
        found.append((cut.start, cut.stop))
    return found


def test_spans_end_at_multiples_of_the_span() -> None:
    target = cutter(start=2)
    fill(target, list(range(2, 11)))
    assert extents(target) == [(2, 4), (4, 8)]
    assert extents(target, flush=True) == [(8, 11)]


def test_a_part_filled_span_waits_for_more() -> None:
    target = cutter()
    fill(target, [0, 1, 2])
    assert extents(target) == []
    fill(target, [3])
    assert extents(target) == [(0, 4)]


def test_a_gap_belongs_to_the_next_span_and_moves_no_boundary() -> None:
    target = cutter()
    fill(target, [0, 1, 2, 6, 7, 8])
    assert extents(target) == [(0, 3), (3, 8)]


@pytest.mark.parametrize("chunks", [[10], [1] * 10, [3, 4, 3]])
def test_spans_do_not_depend_on_how_messages_arrive(chunks: list[int]) -> None:
    target, found, offset = cutter(), [], 0
    for count in chunks:
        fill(target, list(range(offset, offset + count)))
        offset += count
        found += extents(target)
    assert found + extents(target, flush=True) == [(0, 4), (4, 8), (8, 10)]


def test_large_values_end_a_span_early_but_it_holds_at_least_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPAN_RAW_BYTES_MAX", 10)
    target = cutter()
    fill(target, [0, 1, 2, 3], b"x" * 4)
    assert extents(target) == [(0, 2), (2, 4)]
    target = cutter()
    fill(target, [0, 1], b"x" * 99)
    assert extents(target, flush=True) == [(0, 1), (1, 2)]


def test_rejects_that_would_overfill_the_slot_end_the_span(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REJECT_BYTES_MAX", 100)
    target = cutter()
    fill(target, [0, 1, 2, 3], b"bad" + b"x" * 44)  # and 3 bytes of reason
    cuts: list[Cut] = []
    while (cut := target.cut(flush=True)) is not None:
        cuts.append(cut)
    assert [(cut.start, cut.stop, cut.rejects.num_rows) for cut in cuts] == [(0, 2, 2), (2, 4, 2)]


def test_nothing_past_the_bound_is_taken() -> None:
    target = cutter()
    target.bound = 5
    fill(target, list(range(8)))
    assert target.drained
    assert not target.done
    assert extents(target, flush=True) == [(0, 4), (4, 5)]
    assert target.done


def test_a_bound_in_a_gap_is_reached_by_the_next_message_or_the_end() -> None:
    for arrive in (lambda t: fill(t, [9]), lambda t: t.ended(9)):
        target = cutter()
        target.bound = 7
        fill(target, [0, 1])
        assert not target.drained
        arrive(target)
        assert extents(target, flush=True) == [(0, 2)]
        assert target.done


def test_an_empty_stretch_is_done_at_once() -> None:
    target = cutter(start=5)
    target.bound = 5
    assert target.done


def test_messages_before_the_position_are_dropped() -> None:
    target = cutter(start=3)
    fill(target, [1, 2, 3])
    assert extents(target, flush=True) == [(3, 4)]


def test_one_wild_timestamp_moves_no_place() -> None:
    assert place([100, 101, 2**53, 102, 103]) == 102
    assert place([5]) == 5


def test_a_span_of_bad_messages_fits_its_slot_however_long_keys_and_reasons_are() -> None:
    codec = build_codec(FeaturesConfig(topic="t", numeric=["a"]), LabelRule(kind="number"))
    face = "\N{GRINNING FACE}" * 60  # in a reason each takes ten bytes
    twice = f'{{"{face}":1,"{face}":1}}'.encode()
    arena = Arena.create(1, slot_bytes(2048, columns=1))
    for values, keys in (([twice] * 2048, [None] * 2048), ([b"bad"] * 3, [b"k" * 5_000_000] * 3)):
        target = Cutter(HERE, codec, 0, 2048)
        target.extend(Messages(list(range(len(values))), [0] * len(values), keys, values))
        rejected = 0
        while (cut := target.cut(flush=True)) is not None:
            arena.write(0, [cut.events, cut.rejects])
            rejected += cut.rejects.num_rows
        assert rejected == len(values)
    arena.close()


def test_messages_that_come_again_are_taken_once() -> None:
    target = cutter(span=100)
    fill(target, [0, 1, 2])
    fill(target, [1, 2, 3])
    cut = target.cut(flush=True)
    assert cut is not None
    assert (cut.start, cut.stop, cut.messages) == (0, 4, 4)
