"""The twin of the registry, for tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.version import Candidate, Point, Version, alias_moves


class MemoryRegistry:
    """A `Registry` that forgets."""

    def __init__(self) -> None:
        self.runs: dict[str, str] = {}  # status by lineage
        self.points: dict[str, list[Point]] = {}
        self._versions: dict[str, dict[int, Version]] = {}
        self._numbers: dict[str, dict[str, int]] = {}  # of every version that ever was, by snapshot
        self._aliases: dict[str, dict[str, int]] = {}
        self._placed: dict[str, dict[str, int]] = {}

    def resume(self, name: str, lineage: str) -> None:
        self.runs[lineage] = "RUNNING"

    def finish(self, name: str, lineage: str) -> None:
        if lineage in self.runs:
            self.runs[lineage] = "FINISHED"

    def log(self, name: str, lineage: str, points: Sequence[Point]) -> None:
        self.runs.setdefault(lineage, "RUNNING")
        logged, last = self.points.setdefault(lineage, []), self.logged(name, lineage)
        for point in points:
            if point.step > last:
                finite = {name: value for name, value in point.values.items() if math.isfinite(value)}
                logged.append(Point(point.step, point.time_ms, finite))

    def logged(self, name: str, lineage: str) -> int:
        return max((point.step for point in self.points.get(lineage, [])), default=-1)

    def register(self, candidate: Candidate) -> int | None:
        import torch

        versions = self._versions.setdefault(candidate.name, {})
        numbers = self._numbers.setdefault(candidate.name, {})
        number = numbers.get(candidate.snapshot_id)
        if number is None:
            with torch.inference_mode():
                candidate.check(candidate.scorer(torch.from_numpy(candidate.features_BC)).numpy())
            number = numbers[candidate.snapshot_id] = len(numbers) + 1
            tags = {**candidate.tags, "snapshot_id": candidate.snapshot_id, "lineage": candidate.lineage}
            description = candidate.description.replace("{version}", str(number))
            versions[number] = Version(number, candidate.snapshot_id, candidate.lineage, tags, description)
        if number not in versions:
            return None
        aliases = self._aliases.setdefault(candidate.name, {})
        if not candidate.promoted:
            return number
        placed = self._placed.setdefault(candidate.name, {})
        for alias in placed.keys() - aliases.keys():
            if placed[alias] not in versions:
                del placed[alias]
        for alias, version in alias_moves(aliases, placed, number):
            aliases[alias] = placed[alias] = version
        return number

    def newest(self, name: str, lineage: str | None = None) -> Version | None:
        found = [version for version in self.versions(name) if lineage in (None, version.lineage)]
        return found[-1] if found else None

    def versions(self, name: str) -> list[Version]:
        return list(self._versions.get(name, {}).values())

    def aliases(self, name: str) -> dict[str, int]:
        return self._aliases.get(name, {})

    def delete_version(self, name: str, number: int) -> None:
        """What a person may do in MLflow: the aliases of a version go with it."""
        del self._versions[name][number]
        aliases = self._aliases[name]
        self._aliases[name] = {alias: target for alias, target in aliases.items() if target != number}
