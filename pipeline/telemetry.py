"""What a running job says of itself: `status.json` in its state directory, once a second."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from consumers.record import Entry, Span, Wait
from pipeline.state import State, never

INTERVAL_S = 1.0

log = logging.getLogger("evertrain")


class StatusFile:
    """Written by replacing, so that a reader never sees half of it. Not durable: it describes a live process."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name
        self._written_at = float("-inf")
        self._first_span_at: float | None = None
        self._last_entry_at = 0.0
        self._seen_at = time.monotonic()
        self._rows_then: tuple[float, int] | None = None
        self._rate = 0.0
        self._waits_for = ""
        self._trouble = ""  # what was logged of the file itself

    def seen(self, entry: Entry | Wait) -> bool:
        """Notes an applied entry. True once a second: then `write` is due."""
        now = time.monotonic()
        if isinstance(entry, Span) and self._first_span_at is None:
            self._first_span_at = self._seen_at  # when the entry before was done: this one was applied since
        if not isinstance(entry, Wait):
            self._last_entry_at = now
        self._seen_at = now
        self._waits_for = entry.reason if isinstance(entry, Wait) else ""
        return now - self._written_at >= INTERVAL_S

    def write(self, phase: str, state: State, **more: Any) -> None:
        """Replaces the file. One that cannot be written is logged, and no reason to end."""
        now = time.monotonic()
        self._written_at = now
        if self._rows_then is not None and now > self._rows_then[0]:
            self._rate = (state.trained - self._rows_then[1]) / (now - self._rows_then[0])
        self._rows_then = (now, state.trained)
        seconds = self._last_entry_at - self._first_span_at if self._first_span_at else 0.0
        document = {
            "pid": os.getpid(),
            "name": self._name,
            "updated_ms": time.time_ns() // 10**6,
            "phase": phase,
            "waits_for": self._waits_for,
            "rows_trained": state.trained,
            "rows_per_second": round(self._rate, 1),
            "seconds": round(seconds, 4),
            "waiting": int(state.join.waiting_P().sum()),
            "label_delay_ms": state.label_delay_ms,
            "metrics": state.monitor.point(),
            "alarms": state.monitor.alarm_count,
            "dead_letters": int(state.rejected_P.sum()),
            "watermark": never(state.watermark),
            "hold": None,
            **more,
        }
        temporary = self._path.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps(document))
            temporary.replace(self._path)
        except OSError as error:  # a full disk: who reads the file sees that it is old
            if str(error) != self._trouble:
                log.warning("%s cannot be written (training goes on): %s", self._path, error)
            self._trouble = str(error)
        else:
            self._trouble = ""
