"""What a run begins with: stream, network and optimizer, or all of it as arrays where compiled code can do the run.

This needs torch, but not Avalanche. The run itself may happen in another process.
"""

import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from continual_metaopt.analysis.files import open_regular
from continual_metaopt.analysis.run_directory import CHECKPOINT, COMPILED_CHECKPOINT
from continual_metaopt.engines.compiled.engine import CompiledEngine, compiled_or_why_not
from continual_metaopt.engines.undisturbed import SHARED
from continual_metaopt.networks.losses import criterion_of
from continual_metaopt.networks.normalisation import require_batches
from continual_metaopt.optim.metaoptimize import MetaOptimize
from continual_metaopt.optim.registry import known_of_the_stream, make_optimizer
from continual_metaopt.runs.compiled_run import PreparedRun, read_compiled_checkpoint
from continual_metaopt.runs.components import factory_of, import_modules
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.damage import load_checkpoint, of_another_version
from continual_metaopt.streams import plan_stream


class Beginning:
    """Make stream, network and optimizer of a run with a resolved description; random numbers stay as they were.

    Attributes:
        stream, model, optimizer: what the description says.
        criterion: the loss.
        random: state of PyTorch's random numbers that the run begins with.
    """

    def __init__(self, config: RunConfig) -> None:
        import_modules(config.imports)
        self._run_id = config.run_id
        self.stream = plan_stream(config.stream.name, **config.stream.options, seed=config.seed)
        sizes = self.stream.info.for_learner
        self.criterion = criterion_of(sizes.task)
        with SHARED, torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model: nn.Module = factory_of("network", config.network.name)(
                n_outputs=sizes.n_outputs, input_shape=sizes.input_shape, **config.network.options
            )
            require_batches(self.model, sizes.batch_size)
            known = known_of_the_stream(config.learner.name, sizes.n_samples, sizes.batch_size)
            self.optimizer: Optimizer = make_optimizer(
                config.learner.name, self.model, **known, **config.learner.options
            )
            self.random = torch.get_rng_state()

    @property
    def n_parameters(self) -> int:
        """Count the trainable parameters."""
        return sum(param.numel() for param in self.model.parameters() if param.requires_grad)

    def restore(self, path: Path) -> dict[str, Any] | None:
        """Bring network, optimizer and random numbers to the last checkpoint in a run directory.

        Returns:
            How far the run was then (``RunUnderWay.progress``); None if there is no checkpoint that is whole.

        Raises:
            ValueError: the checkpoint does not fit, because another version of this package wrote it.
        """
        checkpoint = load_checkpoint(path, CHECKPOINT, _read_checkpoint, self._run_id, self.stream.info)
        if checkpoint is not None:
            try:
                self.model.load_state_dict(checkpoint.pop("model"))
                self.optimizer.load_state_dict(checkpoint.pop("optimizer"))
                self.random = checkpoint.pop("random")
            except (KeyError, ValueError, RuntimeError) as error:
                raise ValueError(of_another_version(path / CHECKPOINT)) from error
            return checkpoint
        checkpoint = load_checkpoint(
            path, COMPILED_CHECKPOINT, read_compiled_checkpoint, self._run_id, self.stream.info
        )
        if checkpoint is not None:
            learned = checkpoint.pop("learned")
            shape = self.stream.info.for_learner.input_shape
            engine = CompiledEngine(self.model, cast(MetaOptimize, self.optimizer), self.criterion, shape)
            engine.load()  # makes the optimizer's state
            made = engine.learner.learned
            if [(array.shape, array.dtype) for array in learned] != [(array.shape, array.dtype) for array in made]:
                raise ValueError(of_another_version(path / COMPILED_CHECKPOINT))
            engine.learner.learned = learned
            engine.store()
            return checkpoint
        return None


def _read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what ``torch.save`` wrote, once its size is known.

    Raises:
        ValueError: it is compressed, or tensors are larger than the file.
    """
    with open_regular(path) as file:
        n_bytes = os.fstat(file.fileno()).st_size
        with zipfile.ZipFile(file) as content:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in content.infolist()):
                raise ValueError("it is compressed, as this package's are not")
        file.seek(0)
        for tensor in _tensors(torch.load(file, weights_only=True, map_location="meta")):  # which takes no memory
            if max(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()) > n_bytes:
                raise ValueError(f"it has {n_bytes:,} bytes, but a tensor of the shape {tuple(tensor.shape)}")
        file.seek(0)
        checkpoint: dict[str, Any] = torch.load(file, weights_only=True)
    return checkpoint


def _tensors(content: Any) -> Iterator[torch.Tensor]:
    """Find all tensors in lists and dictionaries."""
    if isinstance(content, torch.Tensor):
        yield content
    elif isinstance(content, Mapping | list | tuple):
        for part in content.values() if isinstance(content, Mapping) else content:
            yield from _tensors(part)


def prepare(config: RunConfig, path: Path) -> PreparedRun | None:
    """Make a run's arrays for compiled code, from its resolved description or the last checkpoint in its directory.

    Returns:
        None if the run is not to be compiled, or cannot be without torch, or its optimizer is told of experiences;
        ``OnlineLearner`` then chooses the engine.
    """
    if config.engine not in ("auto", "compiled") or config.device != "cpu" or config.diagnostics:
        return None
    begun = Beginning(config)
    if hasattr(begun.optimizer, "begin_experience"):
        return None
    first = begun.stream.train[0].batch(slice(0, 1))
    sample = [torch.from_numpy(part) for part in first]
    batch_size, any_speed = begun.stream.info.for_learner.batch_size, config.engine == "compiled"
    engine, _ = compiled_or_why_not(
        begun.model, begun.optimizer, begun.criterion, sample, batch_size, only_if_faster=not any_speed
    )
    if engine is None or engine.learner.outside is not None:
        return None
    checkpoint = begun.restore(path)
    engine.load()
    return PreparedRun(config, engine.learner, begun.n_parameters, checkpoint)
