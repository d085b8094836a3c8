"""Detectors are silent on a steady stream, speak when it changes, and do not depend on how it is cut."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from consumers.errors import SnapshotError
from pipeline.drift import DriftDetector, Shift
from pipeline.drift.adwin import Adwin
from pipeline.drift.psi import PSI


def coin(rng: np.random.Generator, rows: int, share: float) -> np.ndarray:
    return (rng.random(rows) < share).astype(np.float64)


def features(rng: np.random.Generator, rows: int, moved: bool) -> np.ndarray:
    """Two numeric columns and a categorical one; the second numeric one moves."""
    numbers = rng.normal([0, 1.5 * moved], size=(rows, 2))
    return np.column_stack([numbers, rng.integers(1, 50, rows)]).astype(np.float32)


def adwin() -> DriftDetector:
    return Adwin(0.002)


def psi() -> DriftDetector:
    return PSI(2, 1, reference_rows=2000, threshold=0.25)


def error_rows(rng: np.random.Generator, rows: int, moved: bool) -> np.ndarray:
    return coin(rng, rows, 0.4 if moved else 0.2)


Rows = Callable[[np.random.Generator, int, bool], np.ndarray]
DETECTORS = pytest.mark.parametrize(("build", "rows"), [(adwin, error_rows), (psi, features)])


@DETECTORS
def test_a_steady_stream_raises_nothing(build: Callable[[], DriftDetector], rows: Rows) -> None:
    assert build().update(rows(np.random.default_rng(0), 100_000, False)) == []


@DETECTORS
def test_a_change_is_noticed_soon_after_it_happened(build: Callable[[], DriftDetector], rows: Rows) -> None:
    rng = np.random.default_rng(0)
    shifts = build().update(np.concatenate([rows(rng, 10_000, False), rows(rng, 6000, True)]))
    assert 10_000 <= shifts[0].row < 12_000
    assert all(shift.after > shift.before for shift in shifts)


@DETECTORS
def test_nothing_depends_on_how_the_stream_is_cut_or_resumed(build: Callable[[], DriftDetector], rows: Rows) -> None:
    rng = np.random.default_rng(5)
    stream = np.concatenate([rows(rng, 9000, False), rows(rng, 9000, True), rows(rng, 9000, False)])
    straight = build()
    expected = straight.update(stream)
    for _ in range(3):
        detector, found = build(), []
        cuts = [0, *np.sort(rng.integers(0, len(stream), 40)).tolist(), len(stream)]
        for start, stop in pairwise(cuts):
            shifts = detector.update(stream[start:stop])
            found += [shift._replace(row=shift.row + start) for shift in shifts]
            resumed = build()
            resumed.restore({name: array.copy() for name, array in detector.state().items()})
            detector = resumed
        np.testing.assert_array_equal(np.array(found), np.array(expected))
        for name, array in straight.state().items():
            np.testing.assert_array_equal(detector.state()[name], array)


@DETECTORS
def test_a_foreign_state_is_refused(build: Callable[[], DriftDetector], rows: Rows) -> None:
    with pytest.raises(SnapshotError, match="missing in the snapshot"):
        build().restore({})


class NaiveAdwin:
    """The paper in plain lists: every bucket holds its values, every mean and variance is computed anew."""

    def __init__(self, delta: float, clock: int, min_window: int) -> None:
        self.delta, self.clock, self.min_window = delta, clock, min_window
        self.buckets: list[list[float]] = []  # oldest first
        self.rows = 0

    def add(self, value: float) -> tuple[float, float, int] | None:
        self.buckets.append([value])
        size = 1
        while sum(len(bucket) == size for bucket in self.buckets) > 5:
            oldest = next(i for i, bucket in enumerate(self.buckets) if len(bucket) == size)
            self.buckets[oldest : oldest + 2] = [self.buckets[oldest] + self.buckets[oldest + 1]]
            size *= 2
        self.rows += 1
        first = None
        while self.rows % self.clock == 0 and (cut := self.cut()):
            first = first or cut
            del self.buckets[0]
        return first if first and first[1] > first[0] else None

    def cut(self) -> tuple[float, float, int] | None:
        window = np.concatenate(self.buckets)
        n, boundary = len(window), 0
        for bucket in self.buckets[:-1]:
            boundary += len(bucket)
            if min(boundary, n - boundary) < self.min_window:
                continue
            old, new = window[:boundary].mean(), window[boundary:].mean()
            m = 1 / (1 / boundary + 1 / (n - boundary))
            log = math.log(2 * math.log(n) / self.delta)
            if abs(old - new) > math.sqrt(2 / m * window.var() * log) + 2 / (3 * m) * log:
                return float(old), float(new), n - boundary
        return None


@pytest.mark.parametrize("seed", range(3))
def test_adwin_cuts_where_the_paper_in_plain_lists_cuts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shares = rng.permutation([0.1, 0.5, 0.3, 0.9])
    errors = np.concatenate([coin(rng, 900, share) for share in shares] + [rng.random(900)])
    naive, expected = NaiveAdwin(0.01, 32, 16), []
    for row, error in enumerate(errors):
        if cut := naive.add(float(error)):
            expected.append(Shift(row, 0, *cut))
    detector = Adwin(0.01, clock=32, min_window=16)
    found = detector.update(errors)
    assert expected, "the stream was made to change"
    np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-9)
    assert detector.width == sum(map(len, naive.buckets))
    assert detector.mean == pytest.approx(np.concatenate(naive.buckets).mean())


def test_a_fall_of_the_error_shortens_the_window_without_a_word() -> None:
    rng = np.random.default_rng(0)
    detector = Adwin(0.002)
    assert detector.update(np.concatenate([coin(rng, 8000, 0.5), coin(rng, 4000, 0.1)])) == []
    assert detector.width < 6000
    assert detector.mean == pytest.approx(0.1, abs=0.03)


def test_a_rescaled_window_is_that_of_rescaled_values() -> None:
    errors = np.random.default_rng(0).random(5000)
    scaled, fresh = Adwin(0.002), Adwin(0.002)
    scaled.update(errors)
    scaled.rescale(0.25)
    fresh.update(errors * 0.25)
    for name, array in fresh.state().items():
        np.testing.assert_allclose(scaled.state()[name], array)


def test_an_empty_adwin_has_no_rows() -> None:
    detector = Adwin(0.002)
    assert detector.update(np.empty(0)) == []
    assert (detector.width, detector.mean) == (0, 0)


def psi_of(reference: np.ndarray, window: np.ndarray, *, categorical: bool = False) -> float:
    """The formula of the docstring over numpy's own histograms."""
    if categorical:
        counts = [np.bincount(ids.astype(int) % 64, minlength=64) for ids in (reference, window)]
    else:
        known = reference[~np.isnan(reference)].astype(np.float64)
        low, high = known.mean() - 4 * known.std(), known.mean() + 4 * known.std()
        edges = np.linspace(low, high, 65)
        counts = [np.histogram(np.clip(x[~np.isnan(x)], low, high), edges)[0] for x in (reference, window)]
    nulls = 0 if categorical else np.isnan(reference).sum(), 0 if categorical else np.isnan(window).sum()
    q, p = (
        (np.append(count, null) + 0.5) / (len(reference) + 0.5 * 65) for count, null in zip(counts, nulls, strict=True)
    )
    return float(((p - q) * np.log(p / q)).sum())


def test_psi_is_the_formula_with_half_a_count_in_every_bin() -> None:
    rng = np.random.default_rng(0)
    rows = 3000
    reference = np.column_stack([rng.normal(3, 2, rows), rng.exponential(1, rows), rng.zipf(1.5, rows) % 900])
    window = np.column_stack([rng.normal(4, 3, rows), rng.exponential(2, rows), rng.zipf(1.3, rows) % 900])
    reference[rng.random(rows) < 0.1, 0] = np.nan
    window[rng.random(rows) < 0.3, 0] = np.nan
    reference, window = reference.astype(np.float32), window.astype(np.float32)
    detector = PSI(2, 1, reference_rows=rows, threshold=0.25)
    detector.update(reference)
    assert np.isnan(detector.psi_C).all(), "there is nothing to compare yet"
    detector.update(window)
    for column in range(3):
        exact = psi_of(reference[:, column], window[:, column], categorical=column == 2)
        # A value on the edge of two bins may fall to the other side in the other arithmetic.
        assert detector.psi_C[column] == pytest.approx(exact, rel=1e-3)


def test_psi_speaks_once_when_a_column_moves_and_again_after_it_came_back() -> None:
    rng = np.random.default_rng(0)
    detector = PSI(2, 1, reference_rows=1000, threshold=0.25)
    moved = [False, False, True, True, False, True]  # the reference, and five windows
    found = [detector.update(features(rng, 1000, state)) for state in moved]
    assert [[(shift.row, shift.column) for shift in shifts] for shifts in found] == [
        [],
        [],
        [(999, 1)],
        [],
        [],
        [(999, 1)],
    ]
    assert found[2][0].before < 0.25 < found[2][0].after


def test_the_bins_hold_constants_nothing_but_nan_and_values_beyond_every_edge() -> None:
    rows = 1000
    reference = np.zeros((rows, 4), np.float32)
    reference[:, 0] = 1e-6 * np.random.default_rng(0).normal(size=rows)
    reference[:, 1] = 0.1
    reference[:, 2] = np.nan
    reference[:, 3] = 3e38
    window = reference.copy()
    window[::2, 0], window[1::2, 0] = np.inf, -np.inf
    detector = PSI(4, 0, reference_rows=rows, threshold=0.25)
    detector.update(reference)
    detector.update(window)
    assert detector.psi_C[0] > 1
    np.testing.assert_array_equal(detector.psi_C[1:], 0)
    detector.update(np.full((rows, 4), 0.11, np.float32))
    assert (detector.psi_C > 1).all()
