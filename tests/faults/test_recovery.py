"""What is on disk is damaged in every way there is: the next start goes back to what verifies, or says what to do."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from consumers.errors import SnapshotError
from pipeline.run import Start
from pipeline.snapshot import FORMAT, Lineage
from pipeline.store import LocalStore, Manifest, encode_manifest
from tests.lives import Story, same_state

Damage = Callable[[Path], None]
SLABS = {"join": {"window": "5s", "memory": "16MiB", "slab_rows": 256}}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The newest snapshot of a trainer that nothing ever happened to."""
    return Story(tmp_path_factory.mktemp("straight"), **SLABS).live()


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state directory of a trainer that was killed in the middle. Nothing of its snapshots has been released."""
    story = Story(tmp_path_factory.mktemp("killed"), **SLABS)
    story.releases = False
    assert story.live(entries=17)["sequence"] == 8
    return story.state_dir


@pytest.fixture
def story(killed: Path, tmp_path: Path) -> Iterator[Story]:
    story = Story(tmp_path, **SLABS)
    story.releases = False
    shutil.copytree(killed, story.state_dir)
    yield story
    assert not list(story.state_dir.rglob("*.tmp"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def manifest_path(story: Story, sequence: int) -> Path:
    return story.state_dir / "snapshots" / f"{sequence:012d}.json"


def blob_path(story: Story, name: str) -> Path:
    """A blob of the newest snapshot that the one before does not have."""
    blobs, before = (story.store.manifest(n)["blobs"] for n in story.store.sequences()[:-3:-1])
    if name != "full slab":
        return story.state_dir / "blobs" / str(blobs[name])
    new = [slab for slab in blobs["slabs"] if slab not in before["slabs"]]
    return story.state_dir / "blobs" / str(new[0][2])


def set_aside(story: Story) -> list[int]:
    return sorted(int(path.name[:12]) for path in (story.state_dir / "snapshots").glob("*.bad"))


def reseal(path: Path, **changes: object) -> None:
    """Another manifest with a checksum that is right."""
    manifest = LocalStore(path.parents[1]).manifest(int(path.stem))
    path.write_bytes(encode_manifest(manifest | changes))


@pytest.mark.parametrize("damage", [flip, truncate, empty])
def test_a_damaged_manifest_is_set_aside_and_the_run_is_the_same_in_the_end(
    story: Story, straight: Manifest, damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    damage(manifest_path(story, 8))

    with caplog.at_level(logging.WARNING):
        resumed = story.live()

    assert "snapshot 8 is set aside" in caplog.text
    assert "going on from 7" in caplog.text
    assert set_aside(story) == [8]
    assert 8 not in story.store.sequences()  # its number is never used again
    assert next(n for n in story.store.sequences() if n > 7) == 9
    assert same_state(resumed, straight)


@pytest.mark.parametrize("name", ["arrays", "document", "full slab"])
@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_damaged_state_is_as_bad_as_a_damaged_manifest(
    story: Story, straight: Manifest, name: str, damage: Damage
) -> None:
    if name == "full slab":  # a moment when one is just full
        while (
            story.newest()["blobs"]["slabs"] == story.store.manifest(story.newest()["sequence"] - 1)["blobs"]["slabs"]
        ):
            story.live(entries=2)
    newest = story.newest()["sequence"]
    damage(blob_path(story, name))

    resumed = story.live()

    assert set_aside(story) == [newest]
    assert same_state(resumed, straight)


def test_several_bad_ones_in_a_row_are_all_set_aside(story: Story, straight: Manifest) -> None:
    for sequence in (8, 7):
        flip(manifest_path(story, sequence))
    assert same_state(story.live(), straight)
    assert set_aside(story) == [7, 8]


def test_a_sector_that_cannot_be_read_is_damage(
    story: Story, straight: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, read = manifest_path(story, 8), Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path == bad:
            raise OSError(5, "Input/output error", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert same_state(story.live(), straight)


def test_a_newest_that_vanished_unreleased_only_means_to_learn_again(story: Story, straight: Manifest) -> None:
    manifest_path(story, 8).unlink()
    assert same_state(story.live(), straight)


@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_what_was_released_is_not_gone_back_behind_without_being_told(story: Story, damage: Damage) -> None:
    story.mark_released(8)
    damage(manifest_path(story, 8))

    with pytest.raises(SnapshotError, match=r"snapshot 8 .* already released.* --rollback-to 7"):
        story.live()

    assert story.store.sequences()[-1] == 8 - (damage is Path.unlink)  # nothing was touched


def test_rolled_back_it_is_a_lineage_of_its_own_with_what_it_comes_from(story: Story, straight: Manifest) -> None:
    story.mark_released(8)
    flip(manifest_path(story, 8))
    first = story.store.manifest(7)["lineage"]

    rolled_back = story.live(Start(rollback_to=6))

    assert set_aside(story) == [7, 8]
    assert rolled_back["lineage"] != first
    assert rolled_back["ancestors"] == [first]
    assert next(n for n in story.store.sequences() if n > 6) == 9
    assert same_state(rolled_back, straight)
    again = story.live(Start(rollback_to=story.newest()["sequence"]))
    assert again["ancestors"] == [first, rolled_back["lineage"]]


def test_the_number_of_a_released_snapshot_that_vanished_is_never_used_again(story: Story) -> None:
    story.mark_released(8)
    manifest_path(story, 8).unlink()

    story.live(Start(rollback_to=7))

    assert next(n for n in story.store.sequences() if n > 7) == 9  # what snapshot 8 owes would count as released


def test_the_first_snapshot_after_a_rollback_says_so_even_if_it_dies_at_once(story: Story) -> None:
    first = story.newest()["lineage"]
    with story.opened(Start(rollback_to=6), entries=0) as run:
        run.snapshots.wait()
    assert (story.newest()["sequence"], story.newest()["ancestors"]) == (9, [first])
    assert Lineage.of(story.newest()).ancestors == [first]
    assert story.live()["ancestors"] == [first]  # it goes on as it is


def test_rolled_back_to_what_is_not_there_it_names_what_is(story: Story) -> None:
    with pytest.raises(SnapshotError, match=r"snapshot 77: .* missing\. These can be gone back to: 8, 7, 6, 0$"):
        story.live(Start(rollback_to=77))
    with pytest.raises(SnapshotError, match=r"snapshot 4: .* the blob is missing\."):  # but its ledger is there
        story.live(Start(rollback_to=4))
    flip(manifest_path(story, 7))
    with pytest.raises(SnapshotError, match=r"snapshot 7: .* damaged .*: 8, 6, 0$"):
        story.live(Start(rollback_to=7))
    assert story.store.sequences()[-1] == 8


def test_if_all_are_damaged_it_stops_and_begins_no_new_lineage(story: Story) -> None:
    for sequence in story.store.sequences():
        flip(manifest_path(story, sequence))
    with pytest.raises(SnapshotError, match=r"none of the 9 snapshots can be read.*backup"):
        story.live()
    assert len(story.store.sequences()) == 9


def test_an_emptied_directory_whose_snapshots_were_released_is_no_new_one(story: Story) -> None:
    story.mark_released(4)
    for path in (story.state_dir / "snapshots").iterdir():
        path.unlink()
    with pytest.raises(SnapshotError, match=r"no snapshot, but .* 4 was released"):
        story.live()


def test_an_older_manifest_that_still_owes_something_is_not_passed_over(story: Story) -> None:
    flip(manifest_path(story, 7))
    with pytest.raises(SnapshotError, match=r"000000000007.json: .* owes MLflow .* --rollback-to"):
        story.live()


def test_an_older_manifest_that_owes_nothing_costs_only_the_rebuilding_across_it(
    story: Story, straight: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    story.mark_released(7)
    flip(manifest_path(story, 7))
    with caplog.at_level(logging.WARNING):
        resumed = story.live()
    assert "owes nothing" in caplog.text
    assert "cannot be rebuilt from snapshots before it" in caplog.text
    assert same_state(resumed, straight)


@pytest.mark.parametrize(("format_number", "age"), [(FORMAT + 1, "newer"), (FORMAT - 1, "older")])
def test_another_format_is_refused_with_the_version_that_wrote_it(story: Story, format_number: int, age: str) -> None:
    reseal(manifest_path(story, 8), format=format_number, code_version="9.9+abc")
    with pytest.raises(SnapshotError, match=rf"{age} than the one this Evertrain .* 9\.9\+abc"):
        story.live()
    assert story.store.sequences()[-1] == 8  # not set aside: it is no damage


def test_what_a_crash_has_left_is_cleared_up(story: Story) -> None:
    half = story.state_dir / "blobs" / ".12345.tmp"
    orphan = story.state_dir / "blobs" / ("0" * 64)
    for path in (half, orphan):
        path.write_bytes(b"half")
    story.live(entries=1)
    assert not half.exists()
    assert not orphan.exists()


def test_a_damaged_slab_takes_all_snapshots_that_share_it(story: Story, straight: Manifest) -> None:
    slab = story.newest()["blobs"]["slabs"][0][2]
    flip(story.state_dir / "blobs" / slab)
    with_it = [n for n in story.store.sequences() if slab in str(story.store.manifest(n)["blobs"]["slabs"])]

    resumed = story.live()

    assert set_aside(story) == with_it
    assert same_state(resumed, straight)


def test_a_new_lineage_over_versions_of_another_is_remembered(tmp_path: Path) -> None:
    story = Story(tmp_path)
    assert not story.live(entries=4)["new_lineage"]
    assert story.live(Start(new_lineage=True), entries=4)["new_lineage"]
    assert story.live(entries=4)["new_lineage"]
