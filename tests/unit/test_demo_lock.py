"""A demo starts in the folder of one that was killed as soon as that one's job has ended."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Timer

import pytest

from consumers.broker import lock_folder
from consumers.errors import EvertrainError
from pipeline.demo import demo


def test_a_job_that_is_about_to_end_is_waited_for(tmp_path: Path) -> None:
    Timer(0.5, os.close, [lock_folder(tmp_path, "lock")]).start()
    os.close(demo._lock(tmp_path, "lock"))


def test_another_demo_that_lives_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "LOCK_WAIT_S", 0.3)
    held = lock_folder(tmp_path, "lock")
    with pytest.raises(EvertrainError, match="in use by another process"):
        demo._lock(tmp_path, "lock")
    os.close(held)
