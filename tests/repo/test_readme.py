"""The README shows files as they are, and its custom model learns."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from consumers.batch import Batch
from pipeline.config import JobConfig
from pipeline.learner import Learner
from pipeline.options.config import OptionsConfig

ROOT = Path(__file__).parents[2]
SIZE = 64


def job() -> JobConfig:
    columns = {"numeric": ["a", {"name": "b", "nullable": True}], "categorical": [{"name": "c", "buckets": 16}]}
    return JobConfig.model_validate(
        {
            "job": {"name": "test", "state_dir": "unused"},
            "kafka": {"bootstrap.servers": "unused"},
            "features": {"topic": "f", **columns},
            "labels": {"topic": "l", "column": "y"},
            "learner": {"task": "examples.custom_task:GatedTask", "batch_size": SIZE, "learning_rate": 0.01},
            "dead_letters": {"topic": "d"},
        }
    )


def test_the_custom_model_learns_an_interaction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    learner, random = Learner(job()), np.random.default_rng(0)
    losses = []
    for _ in range(300):
        features_BC = random.normal(size=(SIZE, 3)).astype(np.float32)
        features_BC[:, 2] = random.integers(1, 16, SIZE)
        labels_B = (features_BC[:, 0] * features_BC[:, 1] > 0).astype(np.float32)
        features_BC[::9, 1] = np.nan
        weights_B, scores_BS, times_B = (
            np.ones(SIZE, np.float32),
            np.zeros((SIZE, 1), np.float32),
            np.zeros(SIZE, np.int64),
        )
        losses.append(learner.step(Batch(features_BC, labels_B, weights_B, scores_BS, times_B, SIZE)).loss)
    assert np.mean(losses[-30:]) < 0.7 * np.mean(losses[:30])


def test_the_readme_shows_the_custom_model_as_it_is() -> None:
    code = (ROOT / "examples" / "custom_task.py").read_text().split('"""\n', 1)[1].strip()
    assert code in (ROOT / "README.md").read_text()


def test_the_readme_names_every_option_of_gradient_descent() -> None:
    text = (ROOT / "README.md").read_text()
    for name in OptionsConfig.model_fields:
        assert f"`{name} = " in text, name


def test_the_examples_page_names_every_example() -> None:
    text = (ROOT / "examples" / "README.md").read_text()
    runnable = {path.stem for path in (ROOT / "examples").glob("*.py") if "EXAMPLE = " in path.read_text()}
    assert set(re.findall(r"`python -m examples\.(\w+)`", text)) == runnable
    assert len(runnable) == 6


def test_the_job_file_of_the_readme_is_valid(tmp_path: Path) -> None:
    from pipeline.jobfile import load

    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks):
        path = tmp_path / f"{number}.toml"
        path.write_text(block)
        load(path, [])


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "examples/README.md",
        "docs/guarantees.md",
        "docs/architecture.md",
        "docs/performance.md",
        "docs/quality.md",
        "CONTRIBUTING.md",
    ],
)
def test_no_link_to_a_file_is_broken(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        assert "://" in target or (path.parent / target).exists(), f"{page}: {target}"
