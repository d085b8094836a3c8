"""The options of `[learner]` for models that learn by gradient descent."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from consumers.config import Model


class AnchorConfig(Model):
    """`learner.anchor`: what holds the weights near older ones; see `pipeline.options.anchor`."""

    kind: Literal["l2_init", "ewc", "distill"]
    weight: float = Field(gt=0)
    every: int | None = Field(default=None, ge=1)  # rows learned until the older weights are taken anew; None: never

    @model_validator(mode="after")
    def _every_fits(self) -> AnchorConfig:
        if self.kind == "l2_init" and self.every is not None:
            raise ValueError("anchor.every is not for kind = 'l2_init', which holds to the weights of the start")
        if self.kind == "ewc" and self.every is None:
            raise ValueError(
                "anchor.kind = 'ewc' needs anchor.every, the rows from which it learns which weights matter"
            )
        return self


class ReplayConfig(Model):
    """`learner.replay`: see `pipeline.options.replay`."""

    rows: int = Field(ge=1, le=2**24)
    keep: Literal["reservoir", "recent"] = "reservoir"  # a sample of all rows, or the newest


def _replay(value: Any) -> Any:
    return {"rows": value} if type(value) is int else value  # true is none


class OptionsConfig(Model):
    """The options, for `LearnerConfig` to inherit."""

    pretrained: str | None = None  # a safetensors file, or "models:/name/version" of the job's MLflow
    freeze: tuple[str, ...] = ()  # patterns of parameter names, as of files: "0.embeddings*"
    average: float | None = Field(default=None, gt=0, lt=1)  # decay of the mean of weights that is scored and published
    epochs: int = Field(default=1, ge=1, le=1000)  # passes over each batch at most: fewer once they no longer help
    gradient_norm_max: float | None = Field(default=None, gt=0)
    on_exceed: Literal["clip", "refuse"] = "clip"  # a gradient beyond it is scaled down, or its batch not learned
    anchor: AnchorConfig | None = None
    replay: Annotated[ReplayConfig | None, BeforeValidator(_replay)] = None

    @model_validator(mode="after")
    def _exceeds_something(self) -> OptionsConfig:
        if self.on_exceed != "clip" and self.gradient_norm_max is None:
            raise ValueError(
                "on_exceed = 'refuse' needs gradient_norm_max, the norm beyond which a batch is not learned"
            )
        return self

    def options_set(self) -> list[str]:
        """The names of the options that are not as they are by default."""
        fields = OptionsConfig.model_fields
        return [name for name, field in fields.items() if getattr(self, name) != field.default]


HOST_DECIDES = {"average", "epochs", "anchor", "replay"}
"""What the host does between steps, so that a step can be no CUDA graph."""
