"""Which settings of a learner a study tries: a grid, random draws, or Optuna's tree-structured Parzen estimator (TPE).

Settings come in rounds. What a round holds follows from the study, the learner and the scores of the rounds before it,
so that a study that was stopped goes on with the same settings, from its run directories alone and with any number of
workers.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from continual_metaopt.optim.registry import is_range

Method = Literal["grid", "random", "tpe"]
Setting = dict[str, Any]


class Search(BaseModel):
    """How the settings of a learner to try are found.

    Attributes:
        method: "random"; "tpe" for Optuna's TPE; or "grid" for all combinations of the values in ``space``.
        trials: number of settings to try. The first of "random" and "tpe" is the untuned one.
        space: options, and where to look for each: ``[low, high, log]`` for numbers, uniform in their logarithm, or a
            list of values; the learner's usual space if empty.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    method: Method | None = None
    trials: int | None = Field(None, ge=1)
    space: dict[str, list[Any]] = Field(default_factory=dict)

    @field_validator("space")
    @classmethod
    def _there_is_something_to_try(cls, space: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for name, values in space.items():
            if not values:
                raise ValueError(f"{name}: no value to try")
            if is_range(values) and not 0 < values[0] < values[1] < math.inf:
                raise ValueError(f"{name}: a range [low, high, log] needs 0 < low < high, not {values}")
        return space

    @model_validator(mode="after")
    def _grid_is_of_values(self) -> "Search":
        if self.method == "grid" and not self.space:
            raise ValueError("space: a grid needs the values to try")
        ranges = [name for name, values in self.space.items() if self.method == "grid" and is_range(values)]
        if ranges:
            raise ValueError(f"space.{ranges[0]}: a grid needs values, not a range")
        return self


class Tuning(BaseModel):
    """What every learner of a study is given to be tuned with, the same for all.

    Attributes:
        method: "random", or "tpe" for Optuna's TPE.
        trials: settings that each learner may try, on each of the study's selection seeds.
        samples: length of a selection run.
        stream: options of the stream that make selection runs so long, in place of the study's.
        best: of how many learners the tuned setting is reported: of those whose settings scored best on the selection
            seeds; None for all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    method: Literal["random", "tpe"] = "random"
    trials: int = Field(ge=1)
    samples: int = Field(ge=1)
    stream: dict[str, Any] = Field(default_factory=dict)
    best: int | None = Field(None, ge=1)


def grid(space: Mapping[str, Sequence[Any]]) -> list[Setting]:
    """All combinations of the values of some options."""
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
