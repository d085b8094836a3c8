"""What a version says of itself fits into what MLflow and its databases take."""

from __future__ import annotations

import json
from typing import Any

from pipeline.version import describe, drift_tag, tags

MYSQL_TEXT = 65_535
MLFLOW_TAG = 100_000
MLFLOW_DESCRIPTION = 5_000


def manifest(partitions: int, topic: str = "flights.features") -> dict[str, Any]:
    """With long offsets, and every table that a description can have."""
    cursor = [{"topic": topic, "partition": n, "next": 10**12 + n} for n in range(partitions)]
    metrics = {
        f"{place}{metric}": 0.5
        for metric in ("auc", "logloss", "accuracy")
        for place in ("live/", "frozen/", "compare/live_", "compare/frozen_")
    } | {f"{who}/{metric}_recent": 0.5 for metric in ("auc", "logloss", "accuracy") for who in ("live", "frozen")}
    return {
        "name": "n" * 200,
        "snapshot_id": f"{'0' * 32}-123456",
        "started": [line | {"next": 7} for line in cursor],
        "cursor": cursor,
        "watermark": 1_357_000_000_000,
        "rows_trained": 10**12,
        "metrics": metrics,
        "alarms": 3,
        "config": {
            "features": {"topic": topic},
            "labels": {"topic": "labels"},
            "monitor": {"window": 10_000, "compare_after": 20_000, "frozen_after": 20_000},
        },
        "config_sha256": "0" * 64,
        "code_version": "0.1.0+0123456789ab",
        "weights_sha256": "0" * 64,
    }


def test_few_partitions_are_named_one_by_one() -> None:
    small = manifest(3)
    assert json.loads(tags(small)["offsets"])["flights.features[2]"] == "7-1000000000002"
    assert "flights.features[2]" in describe(small)


def test_500_partitions_are_exact_in_the_tag_and_summed_up_in_the_description() -> None:
    many = manifest(500)
    assert len(json.loads(tags(many)["offsets"])) == 500
    description = describe(many)
    assert len(description.replace("{version}", "1234567")) <= MLFLOW_DESCRIPTION
    total = sum(line["next"] - 7 for line in many["cursor"])
    assert f"flights.features 500 {total:,}" in " ".join(description.split())


def test_however_many_partitions_everything_fits() -> None:
    huge = manifest(10_000, topic="t" * 249)
    for name, value in tags(huge).items():
        assert len(value) <= min(MYSQL_TEXT, MLFLOW_TAG), name
    (summary,) = json.loads(tags(huge)["offsets"]).items()
    assert summary == (f"{'t' * 249}[*]", f"{sum(line['next'] - 7 for line in huge['cursor'])} in 10000")
    assert len(describe(huge).replace("{version}", "1234567")) <= MLFLOW_DESCRIPTION


def test_a_tag_says_what_moved_last() -> None:
    alarms = [
        {"family": "concept", "feature": None, "since_row": 7},
        {"family": "feature", "feature": "a", "since_row": 9},
    ]
    assert drift_tag(alarms) == {"drift_newest": "feature a since row 9"}
    assert drift_tag(alarms[:1]) == {"drift_newest": "concept since row 7"}
    assert drift_tag([]) == {}
