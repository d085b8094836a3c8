"""How much bad input is too much: a broken producer must not empty the stream into the dead letters."""

from __future__ import annotations

from consumers.errors import TooMuchBadInput
from consumers.record import Span
from pipeline.config import DeadLettersConfig


class BadInput:
    """Counts bad records over the newest ones. Part of S."""

    def __init__(self, config: DeadLettersConfig) -> None:
        self._config = config
        self.accept = 0  # bad records that the operator has allowed
        self.recent: list[list[int]] = []  # of each recent span: records, bad ones

    def configure(self, config: DeadLettersConfig) -> None:
        """Takes over changed limits."""
        self._config = config

    def check(self, span: Span) -> None:
        """Raises TooMuchBadInput, with nothing changed, if this span brings the share over the limit."""
        bad = span.rejects.num_rows
        if not bad and not self.recent:
            return
        allowed = min(bad, self.accept)
        recent = [*self.recent, [len(span.events) + bad, bad - allowed]]
        while sum(records for records, _ in recent[1:]) >= self._config.hold_window:
            recent.pop(0)
        found, limit = sum(bad for _, bad in recent), self._config.hold_share * self._config.hold_window
        if bad > allowed and found > limit:  # good records pass also when a lower limit was configured since
            reason = span.rejects.column("reason")[0].as_py()
            raise TooMuchBadInput(
                f"{span.partition}@{span.start}: {found} of the newest {self._config.hold_window} records are bad, "
                f"more than the share dead_letters.hold_share = {self._config.hold_share}; for example: {reason}. "
                f"Mend the producer or the job file, or restart with --accept-bad {found} to go past"
            )
        self.accept -= allowed
        self.recent = recent if found else []
