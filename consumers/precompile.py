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


def main() -> None:
    """Fetches nothing, decodes one message of each side as JSON, and joins the two."""
    librdkafka.compile_loops()
    sides: dict[Side, FeaturesConfig | LabelsConfig] = {
        Side.FEATURES: FeaturesConfig.model_validate(
            {"topic": "f", "key": "key", "time": "time", "numeric": ["number"], "categorical": ["category"]}
        ),
        Side.LABELS: LabelsConfig(topic="l", key="key", time="time", column="label"),
    }
    join = Join(JoinConfig(slab_rows=16), columns=2, score_width=1, partitions=2, labelled_features=False)
    for side, config in sides.items():
        codec = build_codec(config, LabelRule(kind="binary"))
        rows = allocate(1, codec.columns)
        events = codec.decode(Messages.of([0], [0], [None], [MESSAGE]), rows).events
        list(join.apply(side, side, events, np.zeros((1, 1), np.float32) if side is Side.FEATURES else None))
    list(join.advance(2**40))


if __name__ == "__main__":
    main()
