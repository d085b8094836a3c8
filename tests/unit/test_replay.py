"""A replay is a job of its own: another name, another directory, and a stretch in which something is."""

from __future__ import annotations

from pathlib import Path

import pytest

from consumers.errors import ConfigError
from consumers.record import Partition
from pipeline import replay
from pipeline.config import JobConfig
from pipeline.replay import Stretch, replay_job, resolve
from pipeline.run import Bounds


@pytest.fixture
def job(tmp_path: Path) -> JobConfig:
    return JobConfig.model_validate(
        {
            "job": {"name": "flights", "state_dir": str(tmp_path / "state")},
            "kafka": {"bootstrap.servers": "none"},
            "features": {"topic": "f", "label": "y", "numeric": ["a"]},
            "dead_letters": {"topic": "d"},
        }
    )


def stretch(stop: int = 9) -> Stretch:
    return Stretch(Bounds({Partition("f", 0): 0}, {Partition("f", 0): stop}))


def test_it_has_a_name_and_a_directory_of_its_own(job: JobConfig, tmp_path: Path) -> None:
    made = replay_job(job, "again", stretch())
    assert (made.job.name, made.job.state_dir) == ("again", tmp_path / "state-replays" / "again")
    assert replay_job(job, "again", stretch()) == made
    with pytest.raises(ConfigError, match="read other offsets"):
        replay_job(job, "again", stretch(stop=8))


@pytest.mark.parametrize(
    ("name", "says"),
    [("flights", "--name flights: that is the job itself"), ("../state", "--name ../state: a name has no slash")],
)
def test_a_name_that_would_meet_the_trainer_is_refused(job: JobConfig, tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        replay_job(job, name, stretch())
    assert list(tmp_path.iterdir()) == []


class OneTopic:
    """A cluster whose topic has ten records, one a second."""

    def __init__(self, _: object) -> None:
        self.partitions = (Partition("f", 0),)

    def topic(self, _: str) -> OneTopic:
        return self

    def offsets_at(self, partitions: tuple[Partition, ...], time_ms: int) -> dict[Partition, int]:
        return {partition: min(max(time_ms // 1000, 0), 10) for partition in partitions}


def test_a_stretch_in_which_nothing_is_is_refused(job: JobConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "Cluster", OneTopic)
    at = "1970-01-01T00:00:0{}Z"
    assert resolve(job, at.format(2), at.format(5)).bounds == Bounds({Partition("f", 0): 2}, {Partition("f", 0): 5})
    for start, stop in ((at.format(5), at.format(2)), ("1971-01-01", "1972-01-01")):
        with pytest.raises(ConfigError, match=f"--from {start} --to {stop}: f has no record there"):
            resolve(job, start, stop)
