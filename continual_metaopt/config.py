"""Typed, validated descriptions of runs and studies.

A stream, network or learner is described by its name and its options. Which options there are is read off the function
that makes it, so that each is declared in one place only.
"""

import copy
import functools
import hashlib
import importlib
import inspect
import itertools
import json
import re
import reprlib
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from continual_metaopt.diagnostic_names import Diagnostic
from continual_metaopt.engines import Engine
from continual_metaopt.networks import NETWORKS
from continual_metaopt.optim.packaged import MissingPackageError
from continual_metaopt.optim.registry import known_of_the_stream, learner_factory, learns_step_sizes
from continual_metaopt.optim.search_spaces import NOTHING_TO_TUNE, search_space
from continual_metaopt.streams import STREAMS
from continual_metaopt.streams.registry import BrokenNameError, UnknownNameError, unknown_name
from continual_metaopt.streams.sources import SourceSpec
from continual_metaopt.study_files import StudyFileError, parse_study, read_study_text
from continual_metaopt.trajectories import with_digest
from continual_metaopt.tuning import Search, Setting, Tuning, grid, next_settings, require_optuna

MAX_SEED = 2**32 - 1  # of NumPy's generators

Kind = Literal["stream", "network", "learner"]

StudyEngine = Literal[Engine, "population"]
Device = Annotated[str, Field(pattern=r"^(cpu|mps|cuda(:\d+)?)$")]


def _names_of_diagnostics(given: Any) -> Any:
    if isinstance(given, str):
        given = [given]
    return get_args(Diagnostic) if isinstance(given, Sequence) and "all" in given else given


Diagnostics = Annotated[tuple[Literal[Diagnostic, "all"], ...], BeforeValidator(_names_of_diagnostics)]

# Arguments that a run supplies itself, by kind of component.
SUPPLIED: dict[Kind, set[str]] = {
    "stream": {"seed"},
    "network": {"n_outputs", "input_shape"},
    "learner": {"model", "n_samples", "batch_size"},
}


_SHORTENED = reprlib.Repr()  # of what was given, in messages
_SHORTENED.maxstring = _SHORTENED.maxother = 200
_SHORTENED.maxlist = _SHORTENED.maxdict = 20


class ConfigError(ValueError):
    """A description of a run or study is wrong; the message names the field."""


class Component(BaseModel):
    """A stream, network or learner: its name, and its options as further fields."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The options that were given."""
        return dict(self.model_extra or {})


class RunConfig(BaseModel):
    """One run: stream × network × learner × seed.

    Attributes:
        stream: the stream and its options.
        network: the network and its options.
        learner: the optimizer and its options.
        seed: of stream, initial weights and learner alike.
        engine: how the learner's steps are executed: "auto" for the fastest that fits, or "torch", "fused", "compiled".
        device: where the learner is: "cpu", "cuda", "cuda:N" or "mps".
        record_every: distance in steps between recorded step sizes, at least 10.
        record_samples_every: distance in steps between the samples that are recorded one by one; all are counted.
        evaluate: whether held-out accuracy is measured at the end of each experience.
        diagnostics: what to measure inside the network while it learns, see docs/diagnostics.md; "all" for everything.
        diagnostics_every: distance in steps between diagnostics; whole mini-batches where samples come in these.
        label: name of the learner in tables and figures; its registered name if empty.
        study: name of the study.
        entry: label of the learner without the values that were chosen or tried for this run.
        tuned: names of the options whose values were chosen by tuning, or are tried.
        purpose: "report", or "selection" for a run that only serves to choose a setting.
        order: place of the learner in tables and figures.
        imports: modules that register streams, networks or learners of one's own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    stream: Component = Component(name="permuted_inputs")
    network: Component = Component(name="mlp")
    learner: Component = Component(name="metaoptimize")
    seed: int = Field(0, ge=0, le=MAX_SEED)
    engine: Engine = "auto"
    device: Device = "cpu"
    record_every: int = Field(50, ge=10)
    record_samples_every: int = Field(1, ge=1)
    evaluate: bool = True
    diagnostics: Diagnostics = ()
    diagnostics_every: int = Field(1000, ge=1)
    label: str = ""
    study: str = ""
    entry: str = ""
    tuned: tuple[str, ...] = ()
    purpose: Literal["report", "selection"] = "report"
    order: int = 0
    imports: tuple[str, ...] = ()

    @property
    def run_id(self) -> str:
        """Hash of everything that decides the result."""
        decisive = ("stream", "network", "learner", "seed", "record_every", "evaluate")
        content = {name: value for name, value in self.model_dump(mode="json").items() if name in decisive}
        if self.record_samples_every != 1:
            content["record_samples_every"] = self.record_samples_every
        execution = {"engine": self.engine, "device": self.device}
        if execution != {"engine": "auto", "device": "cpu"}:  # rounding differs
            content |= execution
        if self.diagnostics:
            content |= {"diagnostics": sorted(set(self.diagnostics)), "diagnostics_every": self.diagnostics_every}
        for name in ("data_root", "memory_limit"):  # where files and pixels lie does not decide what they hold
            content["stream"].pop(name, None)
        if content["learner"].get("digest"):  # of what is replayed, wherever it lies
            content["learner"].pop("trajectory", None)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def learned_step_sizes(self) -> bool:
        """Whether the learner adapts its step sizes."""
        return learns_step_sizes(self.learner.name, self.learner.options)

    def resolved(self, where: str = "") -> "RunConfig":
        """The same run with a label, and with every option's default filled in.

        Args:
            where: what messages about the learner begin with.

        Raises:
            ConfigError: an option is unknown or its value does not fit; the message names the field.
        """
        import_modules(self.imports)
        components: dict[Kind, Component] = {
            "stream": self.stream,
            "network": self.network,
            "learner": self.learner,
        }
        resolved = {
            kind: resolve(kind, component, f"{where}{kind}" if kind == "learner" else kind)
            for kind, component in components.items()
        }
        learner = resolved["learner"]
        try:
            resolved["learner"] = Component(name=learner.name, **with_digest(learner.options))
        except ValueError as error:
            raise ConfigError(f"{where}learner.trajectory: {error}") from error
        return self.model_copy(update={"label": self.label or self.learner.name} | resolved)


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
        engine: as of a run, or "population" to let runs of equal networks learn side by side in one process.
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
    engine: StudyEngine = "auto"
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
    def _diagnostics_are_possible(self) -> "StudyConfig":
        if self.diagnostics and self.engine == "population":
            raise ValueError("diagnostics: none are possible with engine: population; use engine: auto")
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
        return bool(entry.tune) if entry.tune is not None else bool(self.tuning) and entry.name not in NOTHING_TO_TUNE

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
            engine="auto" if self.engine == "population" else self.engine,
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


def load_study(
    study: str | Path,
    *,
    source: str | None = None,
    data_root: str | Path | None = None,
    seeds: Sequence[int] | None = None,
    engine: StudyEngine | None = None,
    device: str | None = None,
) -> StudyConfig:
    """Read a study of one stream and one network from a YAML file, or a packaged one by name.

    Args:
        study: path or name.
        source: the stream's source, instead of the one in the file.
        data_root: the stream's data_root, likewise.
        seeds: the reported seeds, likewise.
        engine: how steps are executed, likewise.
        device: where the learners are, likewise.

    Raises:
        FileNotFoundError: no such file.
        UnknownNameError: no packaged study of this name.
        ConfigError: the study is not valid; the message names file and field. Or it has several streams or networks.
    """
    parts = load_studies(study, source=source, data_root=data_root, seeds=seeds, engine=engine, device=device)
    if len(parts) > 1:
        raise ConfigError(f"{study}: has several streams or networks ({', '.join(parts)}); load_studies reads them all")
    return next(iter(parts.values()))


def load_studies(
    study: str | Path,
    *,
    source: str | None = None,
    data_root: str | Path | None = None,
    seeds: Sequence[int] | None = None,
    engine: StudyEngine | None = None,
    device: str | None = None,
) -> dict[str, StudyConfig]:
    """Read a study with any number of streams and networks, each combination of which is a study of its own.

    Args:
        study: path or name.
        source: the streams' source, instead of those in the file.
        data_root: the streams' data_root, likewise.
        seeds: the reported seeds, likewise.
        engine: how steps are executed, likewise.
        device: where the learners are, likewise.

    Returns:
        Each combination by its label, such as "drifting-mlp" of the stream "drifting" and the network "mlp"; the label
        holds only what the study has a list of, and is empty if it has none.

    Raises:
        FileNotFoundError, UnknownNameError, ConfigError: as ``load_study``.
    """
    path = Path(study)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise FileNotFoundError(f"no study file at '{path}'")
        read = functools.partial(read_study_text, path)
    else:
        known = packaged_studies()
        if str(study) not in known:
            raise UnknownNameError(unknown_name("study", str(study), list(known)) + " (or the path of a .yaml file)")
        read = functools.partial(known.__getitem__, str(study))
    try:
        content = parse_study(read())
    except StudyFileError as error:
        raise ConfigError(f"{study}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{study}: expected fields such as 'stream:' and 'learners:'")
    fields = {"seeds": None if seeds is None else list(seeds), "engine": engine, "device": device}
    content |= {name: value for name, value in fields.items() if value is not None}
    given = {"source": source, "data_root": None if data_root is None else str(data_root)}
    parts = {}
    try:
        for label, part in _combinations(content).items():
            if isinstance(part.get("stream"), dict):
                part["stream"] |= {name: value for name, value in given.items() if value is not None}
            parts[label] = _valid_study(part, f"{label}: " if label else "")
    except ConfigError as error:
        raise ConfigError("\n".join(f"{study}: {line}" for line in str(error).splitlines())) from error
    return parts


def _combinations(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The content of a study file for each combination of its streams and networks, by label."""
    choices: list[list[tuple[str | None, str, Any]]] = []
    for kind, kinds in (("stream", "streams"), ("network", "networks")):
        if kinds in content:
            if kind in content:
                raise ConfigError(f"{kinds}: give either {kind} or {kinds}")
            choices.append([(label, kind, component) for label, component in _labelled(content[kinds], kinds).items()])
        elif kind in content:
            choices.append([(None, kind, content[kind])])
    common = {field: value for field, value in content.items() if field not in ("streams", "networks")}
    parts = {}
    for combination in itertools.product(*choices):
        label = "-".join(label for label, _, _ in combination if label is not None)
        name = {"name": f"{content.get('name')}.{label}"} if label else {}
        parts[label] = common | {kind: copy.deepcopy(component) for _, kind, component in combination} | name
    return parts


def _labelled(components: Any, field: str) -> dict[str, Any]:
    """Streams or networks by their labels, which are their names if they have none."""
    if not isinstance(components, list) or not components or not all(isinstance(c, dict) for c in components):
        raise ConfigError(f"{field}: expected a list of entries such as {{name: …}}")
    labelled: dict[str, Any] = {}
    for number, component in enumerate(components):
        label = str(component.get("label", component.get("name", "")))
        if not re.fullmatch(r"\w[\w.-]*", label):
            raise ConfigError(
                f"{field}.{number}: needs a label of letters, digits, '.', '_' and '-' that begins with a letter, a "
                f"digit or '_' (given: {label!r})"
            )
        if label in labelled:
            raise ConfigError(f"{field}: several have the label '{label}'; give each its own")
        labelled[label] = {option: value for option, value in component.items() if option != "label"}
    return labelled


def _valid_study(content: dict[str, Any], where: str) -> StudyConfig:
    """A study whose runs can be described.

    Raises:
        ConfigError: it is not valid; each line of the message begins with ``where`` and the field.
    """
    try:
        config = StudyConfig.model_validate(content)
        import_modules(config.imports)
        for entry in config.learners:
            if config.is_tuned(entry):
                for setting in config.next_settings(entry, []):
                    config.run(entry, entry.with_options(setting), config.selection_seeds[0], "selection")
            if config.reports_untuned(entry):
                config.run(entry, entry.untuned, config.seeds[0], "report", tuned=False)
    except ValidationError as error:
        raise ConfigError(describe(error, where)) from error
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from error
    return config


def import_modules(names: Sequence[str]) -> None:
    """Import modules, installed ones or from the working directory, for what they register.

    Raises:
        ConfigError: a module is not there, or fails.
    """
    for name in names:
        if "" not in sys.path:
            sys.path.insert(0, "")
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a user's module raises
            raise ConfigError(f"imports: cannot import '{name}' ({type(error).__name__}: {error})") from error


def study_description(text: str) -> str:
    """What a study's YAML text says it is for."""
    return str(parse_study(text).get("description", ""))


def packaged_studies() -> dict[str, str]:
    """Name and YAML text of the studies that come with the package."""
    folder = resources.files("continual_metaopt") / "studies"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8") for file in files}


def resolve(kind: Kind, component: Component, where: str) -> Component:
    """Check a component's options against the function that makes it, and fill in the defaults.

    Raises:
        ConfigError: unknown name, unknown option, or a value that does not fit; the message begins with ``where``.
    """
    try:
        factory = factory_of(kind, component.name)
    except (UnknownNameError, BrokenNameError, MissingPackageError) as error:
        raise ConfigError(f"{where}.name: {error}") from error
    known = kind, factory, repr(component)
    if known in _resolved:
        return _resolved[known]
    try:
        options = options_model(kind, component.name, factory)(**component.options).model_dump(mode="json")
    except ValidationError as error:
        raise ConfigError(describe(error, f"{where}.")) from error
    if kind == "learner":
        _try_learner(component.name, factory, options, where)
    if len(_resolved) >= MOST_RESOLVED:
        _resolved.clear()
    _resolved[known] = Component(name=component.name, **options)
    return _resolved[known]


MOST_RESOLVED = 1000
_resolved: dict[tuple[Kind, Any, str], Component] = {}  # a study describes the same components for each of its runs


def factory_of(kind: Kind, name: str) -> Any:
    """The function or class that makes a component.

    Raises:
        UnknownNameError: no component of this name.
        MissingPackageError: a learner's package is not installed.
    """
    if kind == "learner":
        return learner_factory(name)
    return {"stream": STREAMS, "network": NETWORKS}[kind][name]


@functools.lru_cache(maxsize=256)  # a study describes the same components for each of its runs
def options_model(kind: Kind, name: str, factory: Any) -> type[BaseModel]:
    """A model of the options of a component, read off the signature and docstring of the function that makes it."""
    function = factory.__init__ if inspect.isclass(factory) else factory
    descriptions = argument_descriptions(inspect.getdoc(factory) or "")
    fields: dict[str, Any] = {}
    extra: Literal["allow", "forbid"] = "forbid"
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self" or parameter.name in SUPPLIED[kind]:
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            extra = "allow" if parameter.kind is parameter.VAR_KEYWORD else extra
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        hint = _type_of(parameter, function)
        fields[parameter.name] = (
            str if hint == SourceSpec else hint,  # a description names its source; arrays are for Python
            Field(default, description=descriptions.get(parameter.name, "")),
        )
    settings = ConfigDict(extra=extra, arbitrary_types_allowed=True, allow_inf_nan=False)
    return create_model(f"{kind}_{name}", __config__=settings, **fields)


def _type_of(parameter: inspect.Parameter, function: Any) -> Any:
    """An argument's type; Any if it is not declared, or with a name that exists only for type checkers."""
    if isinstance(parameter.annotation, str):
        try:
            return eval(parameter.annotation, getattr(function, "__globals__", {}))
        except NameError:
            return Any
    return Any if parameter.annotation is parameter.empty else parameter.annotation


def argument_descriptions(docstring: str) -> dict[str, str]:
    """What a Google-style docstring, not indented, says about each argument; nothing if it is of no such style."""
    import docstring_parser

    style = docstring_parser.DocstringStyle.GOOGLE
    try:
        parsed = docstring_parser.parse(f"Options.\n\n{docstring}", style=style)  # it wants something before a section
    except docstring_parser.ParseError:
        return {}
    return {entry.arg_name: " ".join((entry.description or "").split()) for entry in parsed.params}


def describe(error: ValidationError, prefix: str) -> str:
    """One line per mistake: which field, and what is wrong with it."""
    lines = []
    for mistake in error.errors():
        field = ".".join(str(part) for part in mistake["loc"])
        message = mistake["msg"].removeprefix("Value error, ")
        if mistake["type"] == "extra_forbidden":
            message = "there is no such option"
        given = (
            ""
            if mistake["type"] in ("missing", "extra_forbidden") or not field
            else f" (given: {_SHORTENED.repr(mistake['input'])})"
        )
        lines.append(f"{prefix}{field}: {message}{given}" if field else f"{prefix}{message}")
    return "\n".join(lines)


def _try_learner(name: str, factory: Any, options: Mapping[str, Any], where: str) -> None:
    """Make the optimizer for a tiny network, so that values out of range show before anything has run."""
    import torch

    if not isinstance(options.get("step_sizes", ""), str) or getattr(factory, "names_blocks", False):
        return  # names in the real network
    try:
        with torch.random.fork_rng(devices=[]):
            factory(torch.nn.Linear(1, 1), **known_of_the_stream(name, n_samples=1), **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where} '{name}': {error}") from error
