"""Results of a versioned benchmark, as files that others can produce, submit and compare.

A definition fixes the stream, its shuffles and scaling, the network with its head, the seeds and the metric. A result
file says what one learner reached under it, with everything that is needed to judge and to repeat it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from continual_metaopt.analysis.files import write_whole
from continual_metaopt.analysis.records import read_status
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.statistics import mean_interval, online_accuracy
from continual_metaopt.analysis.tables import interval_text
from continual_metaopt.analysis.tuning import chosen_setting, selection_of

SCHEMA_VERSION = 1
TOLD_ENDING = "_told"  # of the names of learners that are told where experiences begin

Fraction = Annotated[float, Field(ge=0, le=1)]


class Definition(BaseModel):
    """A benchmark that stays what it is: any change of it is a new version.

    Attributes:
        name: with its version, such as "class-split-100x10 v1".
        stream: name and version of the stream's definition, which fixes its shuffles and the scaling of images.
        stream_info: what a run must have recorded about the stream.
        stream_options: options that the stream must have.
        network: registered name and options of the network.
        seeds: of stream, initial weights and learner alike, all required.
        metric: what results are compared by.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    stream: str
    stream_info: dict[str, Any]
    stream_options: dict[str, Any]
    network: dict[str, Any]
    seeds: tuple[int, ...]
    metric: str = "average online accuracy"


DEFINITIONS = {
    definition.name: definition
    for definition in (
        Definition(
            name="class-split-100x10 v1",
            stream="class_split v1",
            stream_info={
                "n_experiences": 10,
                "n_outputs": 10,
                "n_samples": 50_000,
                "input_shape": [3, 32, 32],
                "boundaries": [5000 * experience for experience in range(10)],
                "task": "classification",
                "stationary": None,
                "batch_size": 1,
            },
            stream_options={
                "classes_per_experience": 10,
                "classes": None,
                "labels": "within",
                "replacement": False,
                "n_experiences": None,
                "samples_per_experience": None,
                "transition_width": 0,
            },
            network={"name": "paper_cnn", "growing_head": False},
            seeds=(0, 1, 2, 3, 4),
        ),
    )
}
# of options that runs of earlier versions did not record, since there was no other choice
_ABSENT: dict[str, Any] = {"replacement": False, "transition_width": 0, "growing_head": False, "batch_size": 1}


class SeedResult(BaseModel):
    """What one run reached.

    Attributes:
        seed: of the run.
        stream_fingerprint: of all samples and their order.
        state: "finished", or "diverged" for a run whose remaining samples count as chance.
        online_accuracy: mean over all samples of whether the prediction made before learning was right.
        experience_accuracy: the same for each experience.
    """

    model_config = ConfigDict(extra="forbid")
    seed: int = Field(ge=0)
    stream_fingerprint: str
    state: Literal["finished", "diverged"]
    online_accuracy: Fraction
    experience_accuracy: list[Fraction]


class TuningBudget(BaseModel):
    """What choosing the settings took.

    Attributes:
        seeds: on which settings were chosen, none of the reported ones; none if nothing was chosen.
        runs: number of runs.
        samples: of all these runs together.
    """

    model_config = ConfigDict(extra="forbid")
    seeds: list[int]
    runs: int = Field(ge=0)
    samples: int = Field(ge=0)


class Result(BaseModel):
    """A result file: one learner under one definition.

    Attributes:
        schema_version: of this form.
        definition: name and version of the benchmark.
        label: of the learner; says "told" if it is told where experiences begin.
        source: name of the images.
        source_hash: hash over the source's stored bytes and labels.
        told: whether the learner is told where experiences begin.
        learner: registered name and all options.
        chosen: those of the options that were chosen by tuning.
        tuning: what that took.
        engine: how steps were executed, by seed.
        seeds: what each run reached.
        versions: of Python and the packages that matter.
    """

    model_config = ConfigDict(extra="forbid", title="Result of a continual-metaopt benchmark")
    schema_version: Literal[1] = 1
    definition: str
    label: str = Field(min_length=1)
    source: str
    source_hash: str
    told: bool
    learner: dict[str, Any]
    chosen: dict[str, Any]
    tuning: TuningBudget
    engine: dict[int, str]
    seeds: list[SeedResult] = Field(min_length=1)
    versions: dict[str, str]


def make_result(runs: Runs, selection: Runs | None, definition: str, label: str | None = None) -> Result:
    """Make a result of the runs of one learner.

    Args:
        runs: reported runs, of this learner and perhaps others.
        selection: runs that served to choose settings; None if nothing was chosen.
        definition: name and version of the benchmark.
        label: of the learner; None if there is only one.

    Returns:
        The result, which is valid.

    Raises:
        ValueError: there is no such definition or learner, or its runs do not follow the definition; the message says
            what is different.
    """
    known = _definition(definition)
    chosen_label = _label(runs, label)
    of_learner = runs.select(label=chosen_label)
    of_learner.require_one_stream()
    for path, config in of_learner.configs.items():
        _require_definition(known, path, config)
    _require_one_learner(of_learner)
    scores = online_accuracy(of_learner).set_index("run")
    accuracy, states = scores["online_accuracy"], scores["state"].to_dict()
    unfinished = accuracy.index[accuracy.isna()]
    if len(unfinished):
        raise ValueError(f"{unfinished[0]}: the run is {states[unfinished[0]]}; bring it to an end first")
    first = next(iter(of_learner.configs.values()))
    told = str(first["learner"]["name"]).endswith(TOLD_ENDING)
    paths = sorted(of_learner.configs, key=lambda path: of_learner.configs[path]["seed"])
    result = Result(
        definition=known.name,
        label=chosen_label,
        source=first["stream_info"]["source"],
        source_hash=first["stream_info"].get("source_hash") or "",
        told=told,
        learner=first["learner"],
        chosen=chosen_setting(first),
        tuning=_tuning(selection, first),
        engine={of_learner.configs[path]["seed"]: _engine(Path(path)) for path in paths},
        seeds=[
            SeedResult(
                seed=of_learner.configs[path]["seed"],
                stream_fingerprint=of_learner.configs[path]["stream_info"]["fingerprint"],
                state=states[path],
                online_accuracy=float(accuracy[path]),
                experience_accuracy=_by_experience(of_learner, path),
            )
            for path in paths
        ],
        versions={name: str(version) for name, version in first["versions"].items()},
    )
    check_result(result, chosen_label)
    return result


def check_result(result: Result, name: str) -> None:
    """Check what the schema cannot say.

    Args:
        result: what is checked.
        name: of the file or the learner, with which messages begin.

    Raises:
        ValueError: seeds are missing, superfluous or were used to choose settings; a told learner does not say so;
            settings were chosen, but not what that took; averages do not agree; or the source has no hash.
    """
    known = _definition(result.definition)
    seeds = [one.seed for one in result.seeds]
    missing = [seed for seed in known.seeds if seed not in seeds]
    if missing:
        raise ValueError(
            f"{name}: {known.name} needs the seeds {_listed(known.seeds)}, but {_listed(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing; run {'it' if len(missing) == 1 else 'them'} too"
        )
    if len(seeds) != len(known.seeds):
        raise ValueError(
            f"{name}: {known.name} has the seeds {_listed(known.seeds)}, each once, and no others, not {_listed(seeds)}"
        )
    told = result.told or str(result.learner.get("name", "")).endswith(TOLD_ENDING)
    if told and not re.search("(?<![a-z])told(?![a-z])", result.label):
        raise ValueError(
            f"{name}: the learner is told where experiences begin, so its label must say 'told', which "
            f"{result.label!r} does not"
        )
    shared = sorted(set(seeds) & set(result.tuning.seeds))
    if shared:
        plural = "s" * (len(shared) > 1)
        raise ValueError(f"{name}: settings were chosen on the reported seed{plural} {_listed(shared)}; use others")
    if result.chosen and not result.tuning.runs:
        raise ValueError(
            f"{name}: {', '.join(result.chosen)} {'were' if len(result.chosen) > 1 else 'was'} chosen by tuning, but "
            "the runs that served for it are not there; give their folder as well"
        )
    if not result.source_hash:
        raise ValueError(f"{name}: the runs did not record what their images hold (source_hash); repeat them")
    n_experiences = known.stream_info["n_experiences"]
    for one in result.seeds:
        if len(one.experience_accuracy) != n_experiences:
            raise ValueError(
                f"{name}: seed {one.seed} has accuracies of {len(one.experience_accuracy)} experiences, not "
                f"{n_experiences}"
            )
        if abs(float(np.mean(one.experience_accuracy)) - one.online_accuracy) > 1e-6:
            raise ValueError(
                f"{name}: the accuracy of seed {one.seed}, {one.online_accuracy:.4f}, is not the mean of its "
                f"experiences, {np.mean(one.experience_accuracy):.4f}"
            )


def compare_results(results: Mapping[str, Result]) -> pd.DataFrame:
    """Compare result files.

    Args:
        results: name (of the file) → result, at least one.

    Returns:
        One row per result, the best first: label, file, seeds, online_accuracy and online_accuracy_ci (%, half width of
        the 95 % interval over seeds), difference and difference_ci (to the best, in percentage points, paired by seed;
        NaN for itself), tuning_runs, tuning_samples, told, diverged (number of runs).

    Raises:
        ValueError: a result is not valid, or they are of different definitions or streams.
    """
    if not results:
        raise ValueError("there are no results to compare")
    for name, result in results.items():
        check_result(result, name)
    first_name, first = next(iter(results.items()))
    for name, result in results.items():
        if result.definition != first.definition:
            raise ValueError(
                f"{first_name} is a result of {first.definition} and {name} of {result.definition}: "
                "only results of one definition can be compared"
            )
        theirs, ours = _fingerprints(result), _fingerprints(first)
        different = [seed for seed in ours if theirs[seed] != ours[seed]]
        if different or result.source_hash != first.source_hash:
            images = "other images" if result.source_hash != first.source_hash else "the same images in another order"
            raise ValueError(
                f"{first_name} and {name} are of different streams: {name} has {images} "
                f"(source_hash {first.source_hash} and {result.source_hash}; fingerprints differ for "
                f"{f'the seeds {_listed(different)}' if different else 'no seed'})"
            )
    accuracy = {
        name: pd.Series({one.seed: 100 * one.online_accuracy for one in result.seeds}).sort_index()
        for name, result in results.items()
    }
    order = sorted(results, key=lambda name: -accuracy[name].mean())
    rows = []
    for name in order:
        result = results[name]
        mean, half_width = mean_interval(accuracy[name].to_numpy())
        difference = mean_interval((accuracy[name] - accuracy[order[0]]).to_numpy())
        gap, gap_ci = difference if name != order[0] else (np.nan, np.nan)
        rows.append(
            {
                "label": result.label,
                "file": name,
                "seeds": len(result.seeds),
                "online_accuracy": mean,
                "online_accuracy_ci": half_width,
                "difference": gap,
                "difference_ci": gap_ci,
                "tuning_runs": result.tuning.runs,
                "tuning_samples": result.tuning.samples,
                "told": result.told,
                "diverged": sum(one.state == "diverged" for one in result.seeds),
            }
        )
    return pd.DataFrame(rows)


def comparison_columns(table: pd.DataFrame) -> dict[str, list[str]]:
    """A comparison as texts, to be printed.

    Args:
        table: from `compare_results`.
    """

    def with_interval(column: str, sign: str = "") -> list[str]:
        pairs = zip(table[column], table[f"{column}_ci"], strict=True)
        return [interval_text(value, half_width, f"{sign}.2f") for value, half_width in pairs]

    return {
        "learner": list(table["label"]),
        "file": list(table["file"]),
        "online accuracy (%)": with_interval("online_accuracy"),
        "− best": with_interval("difference", "+"),
        "tuning runs": [str(runs) for runs in table["tuning_runs"]],
        "tuning samples": [f"{samples:,}" for samples in table["tuning_samples"]],
        "told": ["yes" if told else "" for told in table["told"]],
        "diverged": [str(count) for count in table["diverged"]],
    }


def write_result(result: Result, path: str | os.PathLike[str]) -> Path:
    """Write a result file.

    Args:
        result: what is written.
        path: of the JSON file.

    Returns:
        The path.

    Raises:
        OSError: it cannot be written.
    """
    text = result.model_dump_json(indent=2) + "\n"
    return write_whole(Path(path), partial(Path.write_text, data=text, encoding="utf-8"))


def read_result(path: str | os.PathLike[str]) -> Result:
    """Read a result file.

    Args:
        path: of the JSON file.

    Returns:
        The result, of the right form; `check_result` checks its content.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or not a result; the message names the field.
    """
    file = Path(path)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: is not JSON ({error})") from error
    try:
        return Result.model_validate(content)
    except ValidationError as error:
        mistake = error.errors()[0]
        where = ".".join(map(str, mistake["loc"])) or "the file"
        raise ValueError(f"{file}: is not a result file: {where}: {mistake['msg']}") from error


def schema() -> dict[str, Any]:
    """The JSON schema of result files."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Result.model_json_schema()}


def _definition(name: str) -> Definition:
    if name not in DEFINITIONS:
        raise ValueError(f"there is no benchmark {name!r}; there {_are(list(DEFINITIONS))}")
    return DEFINITIONS[name]


def _are(names: Sequence[str]) -> str:
    return f"is {names[0]!r}" if len(names) == 1 else f"are {', '.join(map(repr, names))}"


def _label(runs: Runs, label: str | None) -> str:
    if label is None and len(runs.labels) != 1:
        raise ValueError(f"a result file is of one learner; choose with --label: {'; '.join(runs.labels)}")
    if label is not None and label not in runs.labels:
        raise ValueError(f"no run is labelled {label!r}; the labels are: {'; '.join(runs.labels)}")
    return label if label is not None else runs.labels[0]


def _require_definition(definition: Definition, path: str, config: Mapping[str, Any]) -> None:
    info = config["stream_info"]
    network = config["network"]
    wanted = {"stream_info.definition": (definition.stream, info["definition"])}
    for part, required in (
        ("stream_info", definition.stream_info),
        ("stream", definition.stream_options),
        ("network", definition.network),
    ):
        recorded = config[part]
        for key, value in required.items():
            wanted[f"{part}.{key}"] = (value, recorded.get(key, _ABSENT.get(key)))
    for field, (value, found) in wanted.items():
        if found != value:
            raise ValueError(
                f"{path}: does not follow {definition.name}: {field} is {json.dumps(found)}, not {json.dumps(value)}"
            )
    unknown = sorted(network.keys() - definition.network.keys())
    if unknown:
        raise ValueError(f"{path}: does not follow {definition.name}: the network has the option {unknown[0]!r}")


def _require_one_learner(runs: Runs) -> None:
    first_path, first = next(iter(runs.configs.items()))
    for path, config in runs.configs.items():
        if config["learner"] != first["learner"]:
            raise ValueError(f"{first_path} and {path} have different settings; a result file is of one setting")


def _tuning(selection: Runs | None, config: Mapping[str, Any]) -> TuningBudget:
    tried = selection_of(selection, config) if selection is not None and chosen_setting(config) else None
    if tried is None or not len(tried):  # the untuned setting of a tuned learner was not chosen
        return TuningBudget(seeds=[], runs=0, samples=0)
    seeds = sorted({int(seed) for seed in tried.table["seed"]})
    return TuningBudget(seeds=seeds, runs=len(tried), samples=int(tried.table["n_samples"].sum()))


def _engine(run: Path) -> str:
    engine = read_status(run).get("engine") or {}
    return str(engine.get("name", "unknown"))


def _by_experience(runs: Runs, path: str) -> list[float]:
    """Accuracy of each experience; what a diverged run did not see counts as chance."""
    info = runs.configs[path]["stream_info"]
    lengths = np.diff([*info["boundaries"], info["n_samples"]])
    n_seen, n_correct = np.zeros(len(lengths)), np.zeros(len(lengths))
    rows = runs.read(path, "experiences", ["experience", "n_samples", "n_correct"])
    for experience, n_samples, correct in rows.itertuples(index=False, name=None):
        if n_samples == lengths[experience]:
            n_seen[experience], n_correct[experience] = n_samples, correct
    of_run = runs.correct_counts.loc[path]
    unfinished = np.flatnonzero(n_seen == 0)[:1]  # where the run diverged
    n_seen[unfinished] = of_run["n_rows"] - n_seen.sum()
    n_correct[unfinished] = of_run["n_correct"] - n_correct.sum()
    return [float(part) for part in (n_correct + (lengths - n_seen) / info["n_outputs"]) / lengths]


def _fingerprints(result: Result) -> dict[int, str]:
    return {one.seed: one.stream_fingerprint for one in result.seeds}


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
