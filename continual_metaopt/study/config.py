"""Typed, validated descriptions of runs and studies.

A stream, network or learner is described by its name and its options. Which options there are is read off the function
that makes it, so that each is declared in one place only.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from continual_metaopt.engines import Engine
from continual_metaopt.optim.packaged import MissingPackageError
from continual_metaopt.optim.registry import learner_factory, nothing_to_tune, search_space
from continual_metaopt.runs.components import Component, ConfigError, Kind, resolve
from continual_metaopt.runs.config import MAX_SEED, Device, Diagnostics, RunConfig
from continual_metaopt.streams.registry import BrokenNameError, UnknownNameError, unknown_name
from continual_metaopt.study.settings import next_settings, require_optuna
from continual_metaopt.study.tuning import Search, Setting, Tuning, grid

Grid = dict[str, list[Any]]


def _kind_of_tuning(given: Any) -> str:
    searches = isinstance(given, Search) or (isinstance(given, Mapping) and given.keys() & Search.model_fields.keys())
    return "search" if searches else "grid"


class Replay(BaseModel):
    """Which of a study's reported runs a learner replays.

    Attributes:
        learner: label of another learner.
        seed: "same" for its run on the same seed, "next" for that on the next of the study's seeds, or after the last
            on the first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    learner: str
    seed: Literal["same", "next"] = "same"


class LearnerEntry(Component):
    """A learner of a study: a component with a label and perhaps options to tune.

    Attributes:
        label: name in tables and figures; the registered name if empty.
        tune: values to try of some options, or a ``Search``; the study's ``tuning`` if not given, and {} for none. The
            setting with the highest average online accuracy, or the lowest mean loss in a regression, on the selection
            seeds is run on the reported seeds.
        replays: the runs whose step sizes it replays, which are done before; it has an option ``trajectory`` for them.
    """

    label: str = ""
    replays: Replay | None = None
    tune: (
        Annotated[Annotated[Search, Tag("search")] | Annotated[Grid, Tag("grid")], Discriminator(_kind_of_tuning)]
        | None
    ) = None

    @property
    def untuned(self) -> Component:
        """The learner with the options that were given."""
        return self.with_options({})

    def with_options(self, setting: Setting) -> Component:
        """The learner with some options in place of those that were given."""
        given = {name: value for name, value in self.options.items() if name not in ("label", "tune")}
        return Component(name=self.name, **given | setting)

    def candidates(self) -> list[Component]:
        """The learner in every combination of the values to try; as it was given where they are not listed."""
        return [self.with_options(setting) for setting in grid(self.tune if isinstance(self.tune, dict) else {})]


class StudyConfig(BaseModel):
    """A study: learners compared on one stream with one network, over several seeds.

    Attributes:
        name: of the study.
        description: what it is for.
        stream: the stream and its options.
        network: the network and its options.
        learners: what is compared.
        seeds: reported seeds.
        selection_seeds: seeds on which tuned options are chosen; none of the reported ones.
        tuning: what all learners are given to be tuned with. Tuned learners are reported with their untuned settings
            too then, and with their tuned ones if these are among the best, where it says of how many.
        engine: how the learners' steps are executed, as of a run.
        device: where the learners are: "cpu", "cuda", "cuda:N" or "mps".
        record_every: distance in steps between recorded step sizes, at least 10.
        record_samples_every: distance in steps between the samples that are recorded one by one; all are counted.
        evaluate: whether held-out accuracy is measured at the end of each experience.
        diagnostics: what to measure inside the networks while they learn, as of a run.
        diagnostics_every: distance in steps between diagnostics; whole mini-batches where samples come in these.
        imports: modules that register streams, networks or learners of one's own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(min_length=1, pattern=r"^\w[\w.-]*$")
    description: str = ""
    stream: Component
    network: Component
    learners: list[LearnerEntry] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    selection_seeds: list[int] = Field(default_factory=list)
    tuning: Tuning | None = None
    engine: Engine = "auto"
    device: Device = "cpu"
    record_every: int = Field(50, ge=10)
    record_samples_every: int = Field(1, ge=1)
    evaluate: bool = True
    diagnostics: Diagnostics = ()
    diagnostics_every: int = Field(1000, ge=1)
    imports: list[str] = Field(default_factory=list)

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
        labels = [entry.label or entry.name for entry in self.learners]
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
        by_label = {entry.label or entry.name: entry for entry in self.learners}
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

    @property
    def components(self) -> dict[Kind, Component]:
        """The stream and the network, which all runs share."""
        return {"stream": self.stream, "network": self.network}

    def is_tuned(self, entry: LearnerEntry) -> bool:
        """Whether settings of a learner are chosen on the selection seeds."""
        return bool(entry.tune) if entry.tune is not None else bool(self.tuning) and not nothing_to_tune(entry.name)

    def reports_untuned(self, entry: LearnerEntry) -> bool:
        """Whether a learner is reported as it was given: if it is not tuned, or beside its tuned self.

        The latter is so in a study with ``tuning``, once for entries that differ only in how they are tuned.
        """
        before = self.learners[: self.learners.index(entry)]
        given_before = any(self.is_tuned(other) and other.untuned == entry.untuned for other in before)
        return not self.is_tuned(entry) or (self.tuning is not None and not given_before)

    def search(self, entry: LearnerEntry) -> Search | None:
        """How settings of a learner are chosen, with nothing left open; None if it is not tuned.

        Raises:
            ConfigError: there is nothing to try, a package is missing for it, or an option does not fit.
        """
        if not self.is_tuned(entry):
            return None
        if isinstance(entry.tune, dict):
            return Search(method="grid", trials=len(grid(entry.tune)), space=entry.tune)
        given = entry.tune or Search.model_validate({})
        if given.method == "grid":
            return given.model_copy(update={"trials": len(grid(given.space))})
        where = f"learners.{self.learners.index(entry)}"
        base = resolve("learner", entry.untuned, f"{where}: learner").options.get("base")
        try:
            space = given.space or {name: list(values) for name, values in search_space(entry.name, base).items()}
            method = given.method or (self.tuning.method if self.tuning else "random")
            if method == "tpe":
                require_optuna()
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from error
        if not space:
            raise ConfigError(f"{where}: the learner '{entry.name}' has nothing to tune; leave tune out")
        return Search(method=method, trials=given.trials or (self.tuning.trials if self.tuning else None), space=space)

    def next_settings(self, entry: LearnerEntry, finished: Sequence[tuple[Setting, float]]) -> list[Setting]:
        """The settings of a learner to try next; none if it is not tuned, or all have been tried.

        Args:
            entry: the learner.
            finished: the settings of all rounds before, in their order, each with its score.
        """
        search = self.search(entry)
        if search is None:
            return []
        where = f"learners.{self.learners.index(entry)}: learner"
        resolved = resolve("learner", entry.untuned, where).options if search.method != "grid" else {}
        untuned = {name: resolved.get(name) for name in search.space}
        return next_settings(search, untuned, finished, (self.name, entry.label or entry.name))

    def run(
        self,
        entry: LearnerEntry,
        learner: Component,
        seed: int,
        purpose: Literal["report", "selection"],
        tuned: bool = True,
    ) -> RunConfig:
        """One run of a learner of this study, with all defaults filled in.

        Args:
            entry: the learner.
            learner: the same with the setting of this run.
            seed: of the run.
            purpose: "selection" for a run that only serves to choose a setting.
            tuned: whether it is the setting of a tuned learner, which its label tells; False for its untuned one.
        """
        position = self.learners.index(entry)
        if entry.replays is not None:
            _require_trajectory(entry.name, f"learners.{position}")
        search = self.search(entry) if tuned else None
        options = tuple(search.space) if search else ()
        label = entry.label or entry.name
        stream = self.stream
        if purpose == "selection" and self.tuning:
            stream = Component(name=stream.name, **stream.options | self.tuning.stream)
        return RunConfig(
            stream=stream,
            network=self.network,
            learner=learner,
            seed=seed,
            engine=self.engine,
            device=self.device,
            record_every=self.record_every,
            record_samples_every=self.record_samples_every,
            evaluate=self.evaluate,
            diagnostics=self.diagnostics,
            diagnostics_every=self.diagnostics_every,
            label=", ".join([label, *(f"{name} = {learner.options[name]}" for name in options)]),
            study=self.name,
            entry=label,
            tuned=options,
            purpose=purpose,
            order=position,
            imports=tuple(self.imports),
        ).resolved(f"learners.{position}: ")


def _require_trajectory(name: str, where: str) -> None:
    try:
        options = inspect.signature(learner_factory(name)).parameters
    except (UnknownNameError, BrokenNameError, MissingPackageError):
        return  # which resolving says
    if "trajectory" not in options:
        raise ConfigError(f"{where}.replays: the learner '{name}' has no option trajectory")


def _n_settings(tune: Search | Grid | None) -> int | None:
    """How many settings a learner's own description of its tuning tries; None if it leaves that to the study."""
    if isinstance(tune, Search):
        return len(grid(tune.space)) if tune.method == "grid" else tune.trials
    return len(grid(tune)) if tune else None
