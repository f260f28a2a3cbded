"""What a study is: learners on one stream with one network, and how their settings are tuned.

A stream, network or learner is described by its name and its options. Which options there are is read off the function
that makes it, so that each is declared in one place only.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from continual_metaopt.optim.registry import is_range, nothing_to_tune
from continual_metaopt.runs.components import Component
from continual_metaopt.runs.config import MAX_SEED, Execution
from continual_metaopt.streams.registry import unknown_name

Setting = dict[str, Any]
Grid = dict[str, list[Any]]
_MODEL = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Search(BaseModel):
    """How the settings of a learner to try are found."""

    model_config = _MODEL
    method: Literal["grid", "random", "tpe"] | None = None
    """"random"; "tpe" for Optuna's TPE; or "grid" for all combinations of the values in ``space``."""
    trials: int | None = Field(None, ge=1)
    """number of settings to try. The first of "random" and "tpe" is the untuned one."""
    space: Grid = Field(default_factory=dict)
    """options, and where to look for each: ``[low, high, log]`` for numbers, uniform in their logarithm, or a list of
    values; the learner's usual space if empty."""

    @field_validator("space")
    @classmethod
    def _there_is_something_to_try(cls, space: Grid) -> Grid:
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
    """What every learner of a study is given to be tuned with, the same for all."""

    model_config = _MODEL
    method: Literal["random", "tpe"] = "random"
    """"random", or "tpe" for Optuna's TPE."""
    trials: int = Field(ge=1)
    """settings that each learner may try, on each of the study's selection seeds."""
    samples: int = Field(ge=1)
    """length of a selection run."""
    stream: dict[str, Any] = Field(default_factory=dict)
    """options of the stream that make selection runs so long, in place of the study's."""
    best: int | None = Field(None, ge=1)
    """of how many learners the tuned setting is reported: of those whose settings scored best on the selection seeds;
    None for all."""


class Replay(BaseModel):
    """Which of a study's reported runs a learner replays."""

    model_config = _MODEL
    learner: str
    """label of another learner."""
    seed: Literal["same", "next"] = "same"
    """"same" for its run on the same seed, "next" for that on the next of the study's seeds, or after the last on the
    first."""


def _kind_of_tuning(given: Any) -> str:
    searches = isinstance(given, Search) or (isinstance(given, Mapping) and given.keys() & Search.model_fields.keys())
    return "search" if searches else "grid"


class LearnerEntry(Component):
    """A learner of a study: a component with a label and perhaps options to tune."""

    model_config = ConfigDict(use_attribute_docstrings=True)
    label: str = ""
    """name in tables and figures; the registered name if empty."""
    replays: Replay | None = None
    """the runs whose step sizes it replays, which are done before; it has an option ``trajectory`` for them."""
    tune: (
        Annotated[Annotated[Search, Tag("search")] | Annotated[Grid, Tag("grid")], Discriminator(_kind_of_tuning)]
        | None
    ) = None
    """values to try of some options, or a ``Search``; the study's ``tuning`` if not given, and {} for none. The setting
    with the highest average online accuracy, or the lowest mean loss in a regression, on the selection seeds is run on
    the reported seeds."""

    @property
    def shown_as(self) -> str:
        """Its name in tables and figures."""
        return self.label or self.name

    @property
    def untuned(self) -> Component:
        """The learner with the options that were given."""
        return self.with_options({})

    def with_options(self, setting: Setting) -> Component:
        """The learner with some options in place of those that were given."""
        return Component(name=self.name, **self.options | setting)


class StudyConfig(Execution):
    """A study: learners compared on one stream with one network, over several seeds."""

    name: str = Field(min_length=1, pattern=r"^\w[\w.-]*$")
    """of the study."""
    description: str = ""
    """what it is for."""
    stream: Component
    """the stream and its options."""
    network: Component
    """the network and its options."""
    learners: list[LearnerEntry] = Field(min_length=1)
    """what is compared."""
    seeds: list[int] = Field(min_length=1)
    """reported seeds."""
    selection_seeds: list[int] = Field(default_factory=list)
    """seeds on which tuned options are chosen; none of the reported ones."""
    tuning: Tuning | None = None
    """what all learners are given to be tuned with. Tuned learners are reported with their untuned settings too then,
    and with their tuned ones if these are among the best, where it says of how many."""

    @field_validator("seeds", "selection_seeds")
    @classmethod
    def _no_seed_twice(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed occurs twice")
        if any(not 0 <= seed <= MAX_SEED for seed in seeds):
            raise ValueError(f"seeds must be within 0 and {MAX_SEED}")
        return seeds

    @model_validator(mode="after")
    def _selection_is_separate(self) -> "StudyConfig":
        if any(map(self.is_tuned, self.learners)) and not self.selection_seeds:
            raise ValueError("selection_seeds: needed where a learner has options to tune")
        shared = sorted(set(self.seeds) & set(self.selection_seeds))
        if shared:
            raise ValueError(f"selection_seeds: {shared} are among the reported seeds; choose on other seeds")
        labels = [entry.shown_as for entry in self.learners]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"learners: several have the label '{twice[0]}'; give each its own")
        return self

    @model_validator(mode="after")
    def _budgets_are_equal(self) -> "StudyConfig":
        for position, entry in enumerate(self.learners):
            n_settings = _n_settings(entry.tune)
            if self.tuning is None:
                if isinstance(entry.tune, Search) and n_settings is None:
                    raise ValueError(f"learners.{position}.tune.trials: needed where the study has no tuning")
            elif n_settings not in (None, self.tuning.trials):
                raise ValueError(
                    f"learners.{position}.tune: tries {n_settings} settings, but tuning.trials is "
                    f"{self.tuning.trials}; all learners have the same budget"
                )
        return self

    @model_validator(mode="after")
    def _replays_are_possible(self) -> "StudyConfig":
        by_label = {entry.shown_as: entry for entry in self.learners}
        for position, entry in enumerate(self.learners):
            if entry.replays is None:
                continue
            where, label = f"learners.{position}.replays", entry.replays.learner
            if label not in by_label:
                raise ValueError(f"{where}.learner: {unknown_name('label', label, list(by_label))}")
            if by_label[label].replays or self.is_tuned(by_label[label]):
                raise ValueError(f"{where}.learner: '{label}' is tuned or a replay itself; name one that is neither")
            if self.is_tuned(entry):
                raise ValueError(f"{where}: reported runs alone are replayed, so a replay cannot be tuned")
            if entry.replays.seed == "next" and len(self.seeds) < 2:
                raise ValueError(f'{where}.seed: "next" needs at least two seeds')
        return self

    def is_tuned(self, entry: LearnerEntry) -> bool:
        """Whether settings of a learner are chosen on the selection seeds."""
        return bool(entry.tune) if entry.tune is not None else bool(self.tuning) and not nothing_to_tune(entry.name)

    @property
    def n_best(self) -> int:
        """Of how many learners the chosen settings are reported, where these are not all; else 0."""
        best = self.tuning.best if self.tuning else None
        return 0 if best is None else min(best, sum(map(self.is_tuned, self.learners)))


def grid(space: Mapping[str, Sequence[Any]]) -> list[Setting]:
    """List all combinations of the values of some options.

    Example:
        >>> grid({"lr": [0.1, 0.2], "base": ["sgd"]})
        [{'lr': 0.1, 'base': 'sgd'}, {'lr': 0.2, 'base': 'sgd'}]
    """
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]


def _n_settings(tune: Search | Grid | None) -> int | None:
    """How many settings a learner's own description of its tuning tries; None if it leaves that to the study."""
    if isinstance(tune, Search):
        return len(grid(tune.space)) if tune.method == "grid" else tune.trials
    return len(grid(tune)) if tune else None
