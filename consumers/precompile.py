"""Compiles what every job needs, so that no job waits for it: `make setup` runs `python -m consumers.precompile`."""

from __future__ import annotations

import numpy as np

from consumers import librdkafka
from consumers.codecs import build_codec
from consumers.codecs.table import allocate
from consumers.config import FeaturesConfig, JoinConfig, LabelRule, LabelsConfig
from consumers.join import Join
from consumers.record import Messages, Side

MESSAGE = b'{"key":"a","time":0,"number":1.5,"category":"b","label":1}'
JOIN_ROWS, SLAB_ROWS = 1200, 512
"""Enough for the index to grow and for a slab to be dropped."""


def load_join() -> None:
    """Joins rows that are not there, so that the compiled rules are at hand when the first span comes."""
    join = Join(JoinConfig(slab_rows=SLAB_ROWS), columns=1, score_width=1, partitions=2, labelled_features=False)
    for side in Side:
        labels = side is Side.LABELS
        rows = allocate(JOIN_ROWS, 0 if labels else 1)
        for column in rows:
            column[:] = 0
        rows.key_N2[:, 0] = np.arange(JOIN_ROWS)
        scores_NS = None if labels else np.zeros((JOIN_ROWS, 1), np.float32)
        list(join.apply(side, side, rows.events(JOIN_ROWS, labelled=labels), scores_NS))
    list(join.advance(2**40))
    join.waiting_P()


def main() -> None:
    """Fetches nothing, decodes one message of each side as JSON, and joins."""
    librdkafka.compile_loops()
    sides: list[FeaturesConfig | LabelsConfig] = [
        FeaturesConfig.model_validate(
            {"topic": "f", "key": "key", "time": "time", "numeric": ["number"], "categorical": ["category"]}
        ),
        LabelsConfig(topic="l", key="key", time="time", column="label"),
    ]
    for config in sides:
        codec = build_codec(config, LabelRule(kind="binary"))
        codec.decode(Messages.of([0], [0], [None], [MESSAGE]), allocate(1, codec.columns))
    load_join()


if __name__ == "__main__":
    main()
