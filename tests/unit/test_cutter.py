"""Where spans end is decided by offsets and contents, never by fetch timing."""

import numpy as np
import pytest

from consumers import cutter as module
from consumers.arena import Arena, Shape
from consumers.codecs import Decoded, build_codec
from consumers.codecs.table import Rejects, RowArrays, allocate
from consumers.config import FeaturesConfig, LabelRule
from consumers.cutter import Cut, Cutter, place, reject_bytes
from consumers.errors import StreamError
from consumers.record import Int64s, Messages, Partition

HERE = Partition("t", 0)


class Plain:
    """A codec whose messages hold one row each, which is bad if the value begins with b'bad'."""

    columns = 0
    labelled = True

    def rows_N(self, messages: Messages) -> Int64s:
        return np.ones(len(messages), np.int64)

    def decode(self, messages: Messages, rows: RowArrays) -> Decoded:
        good, rejects = 0, Rejects()
        for index, count in enumerate(self.rows_N(messages).tolist()):
            offset, value = int(messages.offset_N[index]), messages.values.at(index)
            if value is not None and value.startswith(b"bad"):
                rejects.add(offset, 0, 0, "bad", None, value)
            else:
                assert good + count <= len(rows.offset_N)
                rows.offset_N[good : good + count] = offset
                good += count
        return Decoded(rows.events(good, labelled=True), rejects.batch())


class Many(Plain):
    """A codec whose messages hold as many rows as their values have bytes."""

    def rows_N(self, messages: Messages) -> Int64s:
        return messages.values.length_N


def cutter(start: int = 0, span: int = 4, codec: Plain | None = None) -> Cutter:
    return Cutter(HERE, codec or Plain(), start, span)


def fill(target: Cutter, offsets: list[int], value: bytes | None = b"x") -> None:
    target.extend(Messages.of(offsets, offsets, [None] * len(offsets), [value] * len(offsets)))


def extents(target: Cutter, *, flush: bool = False) -> list[tuple[int, int]]:
    return [(cut.start, cut.stop) for cut in all_cuts(target, flush=flush)]


def all_cuts(target: Cutter, *, flush: bool = True) -> list[Cut]:
    found = []
    while (cut := target.cut(flush=flush)) is not None:
        found.append(cut)
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


def test_only_a_span_that_lies_in_several_parts_of_the_queue_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    joined = Messages.joined

    def note(parts: list[Messages]) -> Messages:
        copied.append(sum(map(len, parts)))
        return joined(parts)

    monkeypatch.setattr(Messages, "joined", note)
    target = cutter()
    fill(target, list(range(10)))
    fill(target, list(range(10, 20)))
    assert extents(target) == [(0, 4), (4, 8), (8, 12), (12, 16), (16, 20)]
    assert copied == [4]


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
    fill(target, [0, 1], b"bad" + b"x" * 44)  # and 3 bytes of reason
    fill(target, [2])
    fill(target, [3], b"bad" + b"x" * 44)
    cuts = all_cuts(target)
    assert [(cut.start, cut.stop, cut.rejects.num_rows) for cut in cuts] == [(0, 3, 2), (3, 4, 1)]
    assert [cut.events.offset_N.tolist() for cut in cuts] == [[2], []]


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
    assert place(np.array([100, 101, 2**53, 102, 103])) == 102
    assert place(np.array([5])) == 5
    assert place(np.array([1] * 8 + [2] * 100)) == 1  # of the first 15


def test_a_span_of_bad_messages_fits_its_slot_however_long_keys_and_reasons_are() -> None:
    codec = build_codec(FeaturesConfig(topic="t", numeric=["a"]), LabelRule(kind="number"))
    face = "\N{GRINNING FACE}" * 60  # in a reason each takes ten bytes
    twice = f'{{"{face}":1,"{face}":1}}'.encode()
    arena = Arena.create(Shape(1, 2048, 1, reject_bytes(2048)))
    for values, keys in (([twice] * 2048, [None] * 2048), ([b"bad"] * 3, [b"k" * 5_000_000] * 3)):
        target = Cutter(HERE, codec, 0, 2048)
        target.extend(Messages.of(range(len(values)), [0] * len(values), keys, values))
        rejected = 0
        while (cut := target.cut(arena.rows(0, 1), flush=True)) is not None:
            assert arena.write_rejects(0, cut.rejects) > 0
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


def test_rows_that_would_overfill_the_slot_end_the_span_but_it_holds_at_least_one_message() -> None:
    target = cutter(codec=Many())
    for offset, rows in enumerate([2, 1, 1, 4, 9, 3, 2, 2]):
        fill(target, [offset], b"x" * rows)
    cuts = all_cuts(target)
    assert [(cut.start, cut.stop) for cut in cuts] == [(0, 3), (3, 4), (4, 5), (5, 6), (6, 8)]
    assert [cut.events.offset_N.tolist() for cut in cuts] == [[0, 0, 1, 2], [3] * 4, [4] * 9, [5] * 3, [6, 6, 7, 7]]


def test_a_span_whose_rows_are_full_is_cut_once_the_next_message_shows_that_it_can_hold_no_more() -> None:
    target = cutter(codec=Many())
    fill(target, [0], b"xxxx")
    assert extents(target) == []  # the next message may hold no row
    fill(target, [1], b"")
    assert extents(target) == []
    fill(target, [2], b"x")
    assert extents(target) == [(0, 2)]


def test_the_rows_of_the_queue_are_those_that_were_not_cut() -> None:
    target = cutter(codec=Many())
    for offset, rows in enumerate([2, 1, 3]):
        fill(target, [offset], b"x" * rows)
    assert target.rows == 6
    assert extents(target) == [(0, 2)]
    assert target.rows == 3


def test_a_span_is_decoded_into_the_rows_that_it_is_given() -> None:
    target, rows = cutter(), allocate(4, 0)
    fill(target, [0, 1])
    fill(target, [2], b"bad")
    fill(target, [3])
    cut = target.cut(rows, flush=False)
    assert cut is not None
    assert cut.events.offset_N.tolist() == [0, 1, 3]
    assert all(np.shares_memory(array, cut_array) for array, cut_array in zip(rows[:5], columns_of(cut), strict=True))


def columns_of(cut: Cut) -> list[np.ndarray]:
    events = cut.events
    return [events.key_N2, events.event_time_N, events.offset_N, events.row_N, events.kind_N]


@pytest.mark.parametrize(
    ("stop", "left"), [(0, [0, 1, 3, 4, 5, 8]), (1, [1, 3, 4, 5, 8]), (2, [3, 4, 5, 8]), (5, [5, 8]), (8, [8]), (9, [])]
)
def test_what_is_skipped_is_left_out_wherever_the_parts_of_the_queue_begin(stop: int, left: list[int]) -> None:
    target = cutter(span=100)
    for part in ([0, 1], [3], [4, 5], [8]):
        fill(target, part)
    target.skip_to(stop)
    assert (target.next, len(target), target.bytes) == (stop, len(left), len(left))
    assert [cut.events.offset_N.tolist() for cut in all_cuts(target)] == ([left] if left else [])


def test_after_a_skip_past_everything_only_what_lies_behind_it_is_taken() -> None:
    target = cutter(span=100)
    fill(target, [0, 1])
    target.skip_to(20)
    assert target.expected == 20
    fill(target, [18, 19, 20, 21])
    (cut,) = all_cuts(target)
    assert (cut.start, cut.stop, cut.events.offset_N.tolist()) == (20, 22, [20, 21])


def test_the_bytes_of_the_queue_are_those_of_keys_and_values_that_were_not_cut() -> None:
    target = cutter()
    target.bound = 9
    target.extend(Messages.of([0, 1, 2], [0] * 3, [b"key", None, b""], [b"value", None, b"xx"]))
    assert target.bytes == 10
    target.extend(Messages.of([2, 3, 4], [0] * 3, [b"again", b"k", b"k"], [b"again", b"x", b"yy"]))
    assert target.bytes == 10 + 2 + 3
    fill(target, [5, 6, 7, 8, 9, 10], b"zz")
    assert target.bytes == 15 + 4 * 2
    assert extents(target) == [(0, 4), (4, 8)]
    assert target.bytes == 2
    assert extents(target, flush=True) == [(8, 9)]
    assert (target.bytes, len(target)) == (0, 0)


@pytest.mark.parametrize("chunks", [[12], [1] * 12, [5, 7]])
def test_spans_are_cut_again_where_a_ledger_says(chunks: list[int]) -> None:
    target, offset = cutter(), 0
    for count in chunks:
        fill(target, list(range(offset, offset + count)))
        offset += count
    cuts = [target.cut_to(stop) for stop in (3, 4, 11)]
    assert [(cut.start, cut.stop, cut.messages) for cut in cuts] == [(0, 3, 3), (3, 4, 1), (4, 11, 7)]
    assert cuts[2].events.offset_N.tolist() == list(range(4, 11))
    assert (target.next, target.bytes) == (11, 1)


@pytest.mark.parametrize("offsets", [[], [0, 1], [0, 1, 3], [3]])
def test_a_span_whose_last_record_is_gone_cannot_be_cut_again(offsets: list[int]) -> None:
    target = cutter()
    if offsets:
        fill(target, offsets)
    with pytest.raises(StreamError, match=r"t\[0\]@2: this record was learned once"):
        target.cut_to(3)
