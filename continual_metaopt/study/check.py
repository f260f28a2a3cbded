"""Whether the runs of a study can be made: its streams, its network and its learners, each tried once."""

import copy

import torch
from torch import nn

from continual_metaopt.networks.normalisation import require_batches
from continual_metaopt.optim.registry import known_of_the_stream, make_optimizer
from continual_metaopt.runs.components import Component, ConfigError, factory_of
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.process_settings import available_device
from continual_metaopt.streams.stream import LearnerInfo
from continual_metaopt.study.expand import Study
from continual_metaopt.study.lengths import check_selection_length, stream_sizes
from continual_metaopt.study.plan import kind_of


def check_study(study: Study) -> int:
    """Make a study's streams, its network and its learners, so that what cannot be made shows before the first run.

    Of settings of a learner that differ only in numbers, one is tried. Nothing is written but decoded images of the
    stream's source.

    Returns:
        The number of the network's parameters.

    Raises:
        ConfigError: something cannot be made; the message names the field.
        FileNotFoundError: the stream's source is not there.
    """
    run = study.runs["report"]
    sizes = _sizes(run, "stream")
    model = _network(run, sizes)
    if study.config.tuning and any(learner.n_selection_runs for learner in study.learners):
        _sizes(study.runs["selection"], "tuning.stream")
    check_selection_length(study)
    for learner in study.learners:
        tried: dict[str, Component] = {}
        for known in learner.known:
            tried.setdefault(kind_of(known.model_dump(mode="json")), known)
        for one in tried.values():
            where = f"{learner.where}: learner '{one.name}'"
            _try_learner(run.model_copy(update={"learner": one}), model, sizes, where)
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


def _sizes(run: RunConfig, field: str) -> LearnerInfo:
    try:
        return stream_sizes(run)
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a stream of one's own raises
        raise ConfigError(f"{field}: {_said(error)}") from error


def _network(run: RunConfig, sizes: LearnerInfo) -> nn.Module:
    """Build the network and check that it accepts one sample of the stream."""
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            model: nn.Module = factory_of("network", run.network.name)(
                n_outputs=sizes.n_outputs, input_shape=sizes.input_shape, **run.network.options
            )
            sample = torch.zeros(1, *sizes.input_shape, dtype=getattr(torch, sizes.input_type))
            copy.deepcopy(model).eval()(sample)
    except Exception as error:
        message = f"network: '{run.network.name}' does not fit"
        if sizes.input_type == "int64":
            raise ConfigError(f"{message} text ({_said(error)}); take recurrent or transformer") from error
        if len(sizes.input_shape) == 1 and not isinstance(error, TypeError):
            vector = f"vectors of {sizes.input_shape[0]} numbers"
            raise ConfigError(f"{message} {vector}, but perhaps images; take mlp or linear") from error
        shape = " × ".join(map(str, sizes.input_shape))
        raise ConfigError(f"{message} inputs of {shape}: {_said(error)}") from error
    try:
        require_batches(model, sizes.batch_size)
    except ValueError as error:
        raise ConfigError(f"network: {error}") from error
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
