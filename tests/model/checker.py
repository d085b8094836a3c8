"""Breadth-first search through every state of a model: the first violation found has the shortest trace."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

S = TypeVar("S", bound=Hashable)
Steps = Callable[[S], Iterable[tuple[str, S]]]


@dataclass(frozen=True)
class Result:
    """What a search found. `violation` is None, or the promise that `trace`, the labels of the steps, breaks."""

    states: int
    transitions: int
    violation: str | None = None
    trace: tuple[str, ...] = ()


def search(
    initial: S,
    steps: Steps[S],
    faults: Steps[S],
    broken: Callable[[S], str | None],
    unfinished: Callable[[S], str | None],
) -> Result:
    """Visits every state that steps and faults reach.

    Args:
        steps: what the system does by itself, as (label, next state).
        faults: what is done to it; a state from which only faults lead is final.
        broken: the promise that a state breaks, or None.
        unfinished: the promise that a final state breaks, or None.
    """
    came_from: dict[S, tuple[S, str] | None] = {initial: None}
    queue = deque([initial])
    transitions = 0
    while queue:
        state = queue.popleft()
        following = list(steps(state))
        violation = broken(state) or (None if following else unfinished(state))
        if violation:
            return Result(len(came_from), transitions, violation, _trace(came_from, state))
        following += faults(state)
        transitions += len(following)
        for label, successor in following:
            if successor not in came_from:
                came_from[successor] = state, label
                queue.append(successor)
    return Result(len(came_from), transitions)


def _trace(came_from: dict[S, tuple[S, str] | None], state: S) -> tuple[str, ...]:
    labels = []
    while step := came_from[state]:
        state, label = step
        labels.append(label)
    return tuple(reversed(labels))
