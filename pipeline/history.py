"""The course of a run in a few points, for its report. Part of S."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

POINTS_MAX = 256

QUALITY = ("auc", "accuracy", "kappa", "kappa_temporal", "calibration_error", "mae", "rmse")
METRICS = frozenset(f"{who}/{metric}_recent" for who in ("live", "frozen") for metric in QUALITY)
"""Which metrics of a point are kept."""


class History:
    """At most POINTS_MAX points over the whole run: once there are more, every second one goes, of later ones too."""

    def __init__(self) -> None:
        self._points: list[dict[str, Any]] = []
        self._stride = 1
        self._seen = 0

    def add(self, point: Mapping[str, Any]) -> None:
        """Takes a metric point: `time_ms`, `values` by name."""
        if self._seen % self._stride == 0:
            values = {name: value for name, value in point["values"].items() if name in METRICS}
            self._points.append({"time_ms": point["time_ms"], "values": values})
            if len(self._points) > POINTS_MAX:
                self._points = self._points[::2]
                self._stride *= 2
        self._seen += 1

    def document(self) -> dict[str, Any]:
        """All of it (JSON)."""
        return {"points": list(self._points), "stride": self._stride, "seen": self._seen}

    def restore(self, document: Mapping[str, Any]) -> None:
        """Takes over a `document`."""
        self._points, self._stride, self._seen = list(document["points"]), document["stride"], document["seen"]
