"""The slab table by itself: where rows go, which slab is dropped, and that stale index places do no harm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from consumers import join, slabs
from consumers.index import SLAB, USED, Status, find, remove
from consumers.kernels import EventRows, Findings, Rules, apply_labels
from consumers.precompile import load_join
from consumers.record import Kind, Side
from consumers.slabs import SlabTable, slab_layout

SLAB_ROWS = 16


def new_table(side: Side = Side.LABELS, capacity: int = 4) -> SlabTable:
    return SlabTable(side, slab_layout(side, 2, 1), SLAB_ROWS, capacity)


def insert(table: SlabTable, keys: range | np.ndarray, time: int = 0) -> None:
    """Stores waiting labels with these keys; they must fit into the open slab."""
    table.reserve(len(keys))
    first = table.next_row
    assert apply(table, keys, time, Kind.EVENT) == len(keys)
    assert table.next_row == first + len(keys)


def insert_tombstone(table: SlabTable, key: int) -> None:
    """Withdraws the waiting label of a key."""
    assert apply(table, range(key, key + 1), 0, Kind.TOMBSTONE) == 0


def apply(table: SlabTable, keys: range | np.ndarray, time: int, kind: Kind) -> int:
    """Applies label events; how many were stored."""
    count = len(keys)
    key_N2 = np.zeros((count, 2), np.uint64)
    key_N2[:, 0] = keys
    events = EventRows(key_N2, np.full(count, time), np.full(count, kind, np.uint8), np.array(keys, np.float32))
    for array in events:
        array.flags.writeable = False
    found = Findings.room(count)
    counts_PO, others = np.zeros((1, 9), np.int64), new_table(Side.FEATURES)
    done, stored, _ = apply_labels(table.rows, others.rows, events, 0, 0, Rules(10, -100, False), counts_PO, found)
    assert done == count
    return int(stored)


def rows_of(table: SlabTable, *keys: int) -> list[int]:
    return [find(table.rows, np.uint64(key), np.uint64(0)) for key in keys]


def fill(table: SlabTable, first_key: int) -> None:
    table.open_slab()
    insert(table, range(first_key, first_key + SLAB_ROWS))


def test_dropped_memory_is_used_again_lowest_first() -> None:
    table = new_table()
    for first_key in (0, 100, 200):
        fill(table, first_key)
    table.drop_oldest()
    table.drop_oldest()

    fill(table, 300)
    fill(table, 400)

    assert list(table.order) == [2, 0, 1]
    assert [view.number for view in table.views()] == [2, 3, 4]
    assert table.nbytes == 3 * table.slab_bytes


def test_keys_of_a_dropped_slab_are_absent_even_when_its_rows_are_filled_anew() -> None:
    table = new_table()
    fill(table, 0)
    fill(table, 100)
    table.drop_oldest()
    assert rows_of(table, 3, 103) == [-1, SLAB_ROWS + 3]

    fill(table, 200)

    assert rows_of(table, 3, 103, 203) == [-1, SLAB_ROWS + 3, 3]


@pytest.mark.parametrize("seed", range(20))
def test_keys_are_found_after_others_of_their_chain_were_removed(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slabs, "INDEX_MIN", 32)
    random, table = np.random.default_rng(seed), new_table()
    table.open_slab()
    homes_N = random.integers(24, 40, SLAB_ROWS)  # about the end of the index: chains go on at its start
    insert(table, homes_N + 64 * np.arange(SLAB_ROWS))
    keys = table.columns["key"][:SLAB_ROWS, 0].tolist()
    assert len(table.rows.index_H2) == 32
    for gone in random.permutation(SLAB_ROWS).tolist():
        remove(table.rows, gone, gone + 1)
        expected = [row if table.rows.status_R[row] else -1 for row in range(SLAB_ROWS)]
        assert rows_of(table, *keys) == expected
    assert not table.rows.index_H2[:, 0].any()
    assert table.rows.cursor_6[USED] == 0


def test_a_withdrawn_key_is_absent_and_leaves_the_index_once(monkeypatch: pytest.MonkeyPatch) -> None:
    table = new_table()
    fill(table, 0)
    fill(table, 100)
    insert_tombstone(table, 3)
    assert rows_of(table, 2, 3, 4) == [2, -1, 4]
    table.drop_oldest()
    assert rows_of(table, 2, 4, 103) == [-1, -1, SLAB_ROWS + 3]
    assert table.rows.cursor_6[USED] == SLAB_ROWS


def test_the_index_grows_with_the_rows_and_what_is_dropped_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slabs, "INDEX_MIN", 2)
    table = new_table(capacity=3)
    for number in range(40):
        if len(table.order) == 3:
            table.drop_oldest()
        fill(table, 100 * number)
        assert int(table.rows.cursor_6[USED]) == SLAB_ROWS * len(table.order)
        assert rows_of(table, 100 * number + 5) == [table.order[-1] * SLAB_ROWS + 5]

    assert len(table.rows.index_H2) == 128  # two places for each of 48 rows, as a power of two


@pytest.mark.parametrize("rows", [np.uint32, np.uint64])
def test_an_index_of_more_rows_than_32_bits_number_works_alike(rows: type) -> None:
    table = new_table()
    table.rows = table.rows._replace(index_H2=np.zeros((slabs.INDEX_MIN, 2), rows))
    fill(table, 2**32 - 8)
    assert rows_of(table, 2**32 - 8, 2**32 + 7, 0, 7) == [0, 15, -1, -1]


def test_a_view_shows_what_is_filled_and_its_columns_are_views() -> None:
    table = new_table()
    fill(table, 0)
    table.open_slab()
    insert(table, range(100, 103), time=7)

    full, partial = table.views()

    assert (full.side, full.number, full.full, len(full.status)) == (Side.LABELS, 0, True, SLAB_ROWS)
    assert (partial.number, partial.full) == (1, False)
    assert partial.columns["label"].tolist() == [100, 101, 102]
    assert partial.columns["event_time"].tolist() == [7, 7, 7]
    assert partial.status.tolist() == [Status.WAITING] * 3
    assert np.shares_memory(full.columns["key"], table.columns["key"])


def test_a_loaded_slab_goes_on_where_it_stopped() -> None:
    table = new_table()
    fill(table, 0)
    table.drop_oldest()
    table.open_slab()
    insert(table, range(100, 103), time=7)
    again = new_table()
    for view in table.views():
        again.load(view)

    insert(again, range(103, 105), time=9)

    (view,) = again.views()
    assert (view.number, view.columns["label"].tolist()) == (1, [100, 101, 102, 103, 104])
    assert rows_of(again, 102, 103) == [2, 3]
    slab = again.rows.cursor_6[SLAB]
    assert (again.rows.oldest_waiting_P[slab], again.rows.newest_P[slab]) == (7, 9)


def test_the_layout_names_the_columns_of_each_side() -> None:
    assert set(slab_layout(Side.FEATURES, 3, 2)) - set(slab_layout(Side.LABELS, 3, 2)) == {
        "features",
        "scores",
        "weight",
    }
    assert slab_layout(Side.FEATURES, 3, 2)["features"].shape == (3,)


def test_every_rule_of_the_join_runs_once_before_the_first_span(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = {join: ("apply_features", "apply_labels", "expire"), slabs: ("enter", "remove", "count_waiting")}
    run = set()

    def noting(name: str, rule: Any) -> Any:
        return lambda *arguments: (run.add(name), rule(*arguments))[1]

    for module, names in rules.items():
        for name in names:
            monkeypatch.setattr(module, name, noting(name, getattr(module, name)))
    load_join()
    assert run == {name for names in rules.values() for name in names}
