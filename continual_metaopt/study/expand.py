"""A study with everything in it resolved, once: checking, planning, running and replaying read this."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from continual_metaopt.optim.registry import search_space
from continual_metaopt.runs.components import Component, ConfigError, import_modules, resolve
from continual_metaopt.runs.config import Execution, RunConfig, resolve_learner
from continual_metaopt.study.config import LearnerEntry, Search, Setting, StudyConfig, grid
from continual_metaopt.study.settings import next_settings, require_optuna

Purpose = Literal["report", "selection"]


@dataclass(frozen=True)
class Candidate:
    """A learner with one of the settings that are tried; all its options are filled in."""

    setting: Setting
    learner: Component


@dataclass(frozen=True)
class PlannedLearner:
    """A learner of a study: what its runs are, and which of its settings are tried.

    Attributes:
        study: the study.
        entry: how the study describes the learner.
        position: its place in the study.
        runs: what all its runs have in common, by their purpose.

    Raises:
        ConfigError: of all attributes: an option is missing or unknown, or does not fit; a package is missing.
    """

    study: StudyConfig
    entry: LearnerEntry
    position: int
    runs: Mapping[Purpose, RunConfig]

    @property
    def label(self) -> str:
        """Its name in tables and figures, before anything is chosen."""
        return self.entry.shown_as

    @property
    def where(self) -> str:
        """What messages about it begin with."""
        return f"learners.{self.position}"

    @cached_property
    def untuned(self) -> Component:
        """The learner as it was given, with all defaults."""
        return self.resolve({})

    @property
    def reports_untuned(self) -> bool:
        """Whether it is reported as it was given: if it is not tuned, or beside its tuned self.

        The latter is so in a study with ``tuning``, once for entries that differ only in how they are tuned.
        """
        before = (entry for entry in self.study.learners[: self.position] if self.study.is_tuned(entry))
        given_before = any(entry.untuned == self.entry.untuned for entry in before)
        return not self.study.is_tuned(self.entry) or (self.study.tuning is not None and not given_before)

    @cached_property
    def search(self) -> Search | None:
        """How its settings are chosen, with nothing left open; None if it is not tuned."""
        entry, tuning = self.entry, self.study.tuning
        if not self.study.is_tuned(entry):
            return None
        if isinstance(entry.tune, dict):
            return Search(method="grid", trials=len(grid(entry.tune)), space=entry.tune)
        given = entry.tune or Search.model_validate({})
        if given.method == "grid":
            return given.model_copy(update={"trials": len(grid(given.space))})
        base = self.untuned.options.get("base")
        try:
            space = given.space or {name: list(values) for name, values in search_space(entry.name, base).items()}
            method = given.method or (tuning.method if tuning else "random")
            if method == "tpe":
                require_optuna()
        except ValueError as error:
            raise ConfigError(f"{self.where}: {error}") from error
        if not space:
            raise ConfigError(f"{self.where}: the learner '{entry.name}' has nothing to tune; leave tune out")
        return Search(method=method, trials=given.trials or (tuning.trials if tuning else None), space=space)

    @cached_property
    def candidates(self) -> list[Candidate]:
        """What is tried first, whatever the scores; nothing if it is not tuned."""
        return self.next_candidates([])

    @property
    def known(self) -> list[Component]:
        """The learner in all forms that are known before the first run."""
        untuned = [self.untuned] if self.reports_untuned else []
        return untuned + [candidate.learner for candidate in self.candidates]

    @property
    def n_selection_runs(self) -> int:
        """Runs that serve to choose its setting; there may be fewer if its space has no more settings."""
        return (self.search.trials or 0) * len(self.study.selection_seeds) if self.search else 0

    @property
    def n_reported_runs(self) -> int:
        """Runs that are reported: with its chosen setting, with its untuned one, or both.

        Where the study reports the chosen settings of its best learners alone, those runs are not among them.
        """
        reports_chosen = self.study.is_tuned(self.entry) and not self.study.n_best
        return len(self.study.seeds) * (self.reports_untuned + reports_chosen)

    def next_candidates(self, finished: Sequence[tuple[Setting, float]]) -> list[Candidate]:
        """Say what to try next; nothing if it is not tuned, or all has been tried.

        Args:
            finished: the settings of all rounds before, in their order, each with its score.
        """
        if self.search is None:
            return []
        given = self.untuned.options if self.search.method != "grid" else {}
        untuned = {name: given.get(name) for name in self.search.space}
        settings = next_settings(self.search, untuned, finished, (self.study.name, self.label))
        return [Candidate(setting, self.resolve(setting)) for setting in settings]

    def resolve(self, setting: Setting) -> Component:
        """Fill in the learner's options, with some of them in place of those that were given."""
        return resolve_learner(self.entry.with_options(setting), f"{self.where}: ")

    def run(self, seed: int, learner: Component | Candidate, purpose: Purpose = "report") -> RunConfig:
        """Describe a run; that of a candidate says in its label what was chosen or is tried."""
        chosen: Setting = {}
        if isinstance(learner, Candidate):
            chosen, learner = learner.setting, learner.learner
        label = ", ".join([self.label, *(f"{name} = {value}" for name, value in chosen.items())])
        differences = {"learner": learner, "seed": seed, "label": label, "tuned": tuple(chosen)}
        return self.runs[purpose].model_copy(update=differences)


@dataclass(frozen=True)
class Study:
    """A study whose runs can be described.

    Attributes:
        config: what its file says.
        learners: what is compared.
        runs: what all its runs have in common, by their purpose, with the first seed.
    """

    config: StudyConfig
    learners: list[PlannedLearner]
    runs: Mapping[Purpose, RunConfig]

    @property
    def n_runs(self) -> int:
        """All runs; there may be fewer if a search space has no more settings."""
        of_learners = (learner.n_selection_runs + learner.n_reported_runs for learner in self.learners)
        return sum(of_learners) + self.config.n_best * len(self.config.seeds)


def expand(config: StudyConfig) -> Study:
    """Resolve all that a study names, with the settings that are tried before there is any score.

    Raises:
        ConfigError: something does not exist, or does not fit; the message names the field.

    Example:
        >>> learner = {"name": "fixed", "tune": {"lr": [0.01, 0.1]}}
        >>> study = {"name": "a", "stream": {"name": "tracking"}, "network": {"name": "linear"}, "learners": [learner]}
        >>> expanded = expand(StudyConfig(**study, seeds=[0, 1], selection_seeds=[100]))
        >>> expanded.n_runs, [candidate.setting for candidate in expanded.learners[0].candidates]
        (4, [{'lr': 0.01}, {'lr': 0.1}])
    """
    import_modules(config.imports)
    stream, network = resolve("stream", config.stream, "stream"), resolve("network", config.network, "network")
    common = {name: getattr(config, name) for name in Execution.model_fields}
    reported = RunConfig(stream=stream, network=network, seed=config.seeds[0], study=config.name, **common)
    runs: dict[Purpose, RunConfig] = {"report": reported}
    if config.selection_seeds:
        if config.tuning:
            shorter = Component(name=config.stream.name, **config.stream.options | config.tuning.stream)
            stream = resolve("stream", shorter, "stream")
        differences = {"stream": stream, "seed": config.selection_seeds[0], "purpose": "selection"}
        runs["selection"] = reported.model_copy(update=differences)
    learners = []
    for position, entry in enumerate(config.learners):
        of_learner = {"entry": entry.shown_as, "order": position}
        own = {purpose: run.model_copy(update=of_learner) for purpose, run in runs.items()}
        learner = PlannedLearner(config, entry, position, own)
        _ = learner.known  # which raises what is wrong
        if entry.replays and "trajectory" not in learner.untuned.options:
            raise ConfigError(f"{learner.where}.replays: the learner '{entry.name}' has no option trajectory")
        learners.append(learner)
    return Study(config, learners, runs)
