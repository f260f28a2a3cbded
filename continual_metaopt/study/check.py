"""Whether the runs of a study can be made: its streams, its network and its learners, each tried once."""

import copy
from collections.abc import Collection

import torch
from torch import nn

from continual_metaopt.optim.registry import known_of_the_stream, make_optimizer
from continual_metaopt.runs.components import Component, ConfigError, factory_of
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.process_settings import available_device
from continual_metaopt.streams.stream import LearnerInfo
from continual_metaopt.study.config import LearnerEntry, StudyConfig
from continual_metaopt.study.lengths import n_selection_runs, selection_length, stream_sizes
from continual_metaopt.study.plan import kind_of


def check_study(study: StudyConfig) -> int:
    """Make a study's streams, its network and its learners, so that what cannot be made shows before the first run.

    Of settings of a learner that differ only in numbers, one is tried. Nothing is written but decoded images of the
    stream's source.

    Returns:
        The number of the network's parameters.

    Raises:
        ConfigError: something cannot be made; the message names the field.
        FileNotFoundError: the stream's source is not there.
    """
    tried = [(i, e, learner) for i, e in enumerate(study.learners) for learner in _one_of_each_kind(study, e)]
    runs = [(i, study.run(e, learner, study.seeds[0], "report", tuned=False)) for i, e, learner in tried]
    sizes = _sizes(runs[0][1], "stream")
    model = _network(runs[0][1], sizes)
    to_choose = [(e, learner) for _, e, learner in tried if n_selection_runs(study, e)]
    if to_choose and study.tuning:
        _sizes(study.run(*to_choose[0], study.selection_seeds[0], "selection", tuned=False), "tuning.stream")
    selection_length(study)
    for i, run in runs:
        _try_learner(run, model, sizes, f"learners.{i}: learner '{run.learner.name}'")
    return sum(param.numel() for param in model.parameters())


def check_run(config: RunConfig) -> None:
    """Make a run's stream, network and learner, so that what cannot be made shows before anything is recorded.

    Raises:
        ConfigError: something cannot be made; the message names the field.
        ValueError: there is no such device.
        FileNotFoundError: the stream's source is not there.
    """
    if not config.learner.options.get("trajectory", "given"):
        raise ConfigError("learner.trajectory: needed, the directory of a finished run whose step sizes are replayed")
    available_device(config.device)
    sizes = _sizes(config, "stream")
    _try_learner(config, _network(config, sizes), sizes, f"learner '{config.learner.name}'")


def _one_of_each_kind(study: StudyConfig, entry: LearnerEntry) -> Collection[Component]:
    """The learner with settings that are known before the first run; as it was given only if it is run so."""
    untuned = [entry.untuned] if study.reports_untuned(entry) else []
    found: dict[str, Component] = {}
    for learner in untuned + [entry.with_options(setting) for setting in study.next_settings(entry, [])]:
        found.setdefault(kind_of(learner.model_dump(mode="json")), learner)
    return found.values()


def _sizes(run: RunConfig, field: str) -> LearnerInfo:
    try:
        return stream_sizes(run.stream, run.seed)
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a stream of one's own raises
        raise ConfigError(f"{field}: {_said(error)}") from error


def _network(run: RunConfig, sizes: LearnerInfo) -> nn.Module:
    """The network, tried on one sample."""
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            model: nn.Module = factory_of("network", run.network.name)(
                n_outputs=sizes.n_outputs, input_shape=sizes.input_shape, **run.network.options
            )
            copy.deepcopy(model).eval()(torch.zeros(1, *sizes.input_shape))
    except Exception as error:
        shape = " × ".join(map(str, sizes.input_shape))
        raise ConfigError(f"network: '{run.network.name}' does not fit inputs of {shape}: {_said(error)}") from error
    return model


def _try_learner(run: RunConfig, model: nn.Module, sizes: LearnerInfo, where: str) -> None:
    known = known_of_the_stream(run.learner.name, sizes.n_samples, sizes.batch_size)
    try:
        with torch.random.fork_rng(devices=[]):
            make_optimizer(run.learner.name, copy.deepcopy(model), **known, **run.learner.options)
    except Exception as error:
        raise ConfigError(f"{where} cannot be made for the network '{run.network.name}': {_said(error)}") from error


def _said(error: Exception) -> str:
    text = str(error).strip()
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"
