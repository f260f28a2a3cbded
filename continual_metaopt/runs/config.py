"""What a run is: stream, network, learner, seed, and how it is executed."""

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from continual_metaopt.analysis.run_directory import ADDED, GIVEN_UP
from continual_metaopt.engines import Engine
from continual_metaopt.learner.metrics.names import Diagnostic
from continual_metaopt.optim.controls.trajectories import with_digest
from continual_metaopt.optim.registry import learns_step_sizes
from continual_metaopt.runs.components import Component, ConfigError, import_modules, resolve

MAX_SEED = 2**32 - 1  # of NumPy's generators
Device = Annotated[str, Field(pattern=r"^(cpu|mps|cuda(:\d+)?)$")]


def _names_of_diagnostics(given: Any) -> Any:
    if isinstance(given, str):
        given = [given]
    return get_args(Diagnostic) if isinstance(given, Sequence) and "all" in given else given


Diagnostics = Annotated[
    tuple[Literal[Diagnostic, "all"], ...],
    BeforeValidator(_names_of_diagnostics),
]


class Execution(BaseModel):
    """How a run is executed and what it records: what all runs of a study have in common, whatever they learn from."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    engine: Engine = "auto"
    """how the learner's steps are executed: "auto" for the fastest that fits, or "torch", "fused", "compiled"."""
    device: Device = "cpu"
    """where the learner is: "cpu", "cuda", "cuda:N" or "mps"."""
    record_every: int = Field(50, ge=10)
    """distance in steps between recorded step sizes, at least 10."""
    record_samples_every: int = Field(1, ge=1)
    """distance in steps between the samples that are recorded one by one; all are counted."""
    evaluate: bool = True
    """whether held-out accuracy is measured at the end of each experience."""
    diagnostics: Diagnostics = ()
    """what to measure inside the network while it learns, see docs/diagnostics.md; "all" for everything."""
    diagnostics_every: int = Field(1000, ge=1)
    """distance in steps between diagnostics; whole mini-batches where samples come in these."""
    imports: list[str] = Field(default_factory=list)
    """modules that register streams, networks or learners of one's own."""


class RunConfig(Execution):
    """One run: stream × network × learner × seed.

    Example:
        >>> run = RunConfig(stream={"name": "tracking"}, learner={"name": "fixed", "lr": 0.1}, seed=3).resolved()
        >>> run.label, run.learner.options["weight_decay"], run.run_id
        ('fixed', 0.01, '3e4e65abb9c8')
    """

    stream: Component = Component(name="permuted_inputs")
    """the stream and its options."""
    network: Component = Component(name="mlp")
    """the network and its options."""
    learner: Component = Component(name="metaoptimize")
    """the optimizer and its options."""
    seed: int = Field(0, ge=0, le=MAX_SEED)
    """of stream, initial weights and learner alike."""
    label: str = ""
    """name of the learner in tables and figures; its registered name if empty."""
    study: str = ""
    """name of the study."""
    entry: str = ""
    """label of the learner without the values that were chosen or tried for this run."""
    tuned: tuple[str, ...] = ()
    """names of the options whose values were chosen by tuning, or are tried."""
    purpose: Literal["report", "selection"] = "report"
    """"report", or "selection" for a run that only serves to choose a setting."""
    order: int = 0
    """place of the learner in tables and figures."""

    @property
    def run_id(self) -> str:
        """Hash of everything that decides the result."""
        decisive = {"stream", "network", "learner", "seed", "record_every", "evaluate"}
        content = self.model_dump(mode="json", include=decisive)
        if self.record_samples_every != 1:
            content["record_samples_every"] = self.record_samples_every
        execution = {"engine": self.engine, "device": self.device}
        if execution != {"engine": "auto", "device": "cpu"}:  # rounding differs
            content |= execution
        if self.diagnostics:
            content |= {"diagnostics": sorted(set(self.diagnostics)), "diagnostics_every": self.diagnostics_every}
        for name in ("data_root", "memory_limit"):  # where files and pixels lie does not decide what they hold
            content["stream"].pop(name, None)
        if self.learner.name == "metaoptimize":  # so that older runs keep their identity
            content["learner"] |= dict.fromkeys(GIVEN_UP)
            content["learner"] = {k: v for k, v in content["learner"].items() if k not in ADDED or v != ADDED[k]}
        if content["learner"].get("digest"):  # of what is replayed, wherever it lies
            content["learner"].pop("trajectory", None)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def learned_step_sizes(self) -> bool:
        """Whether the learner adapts its step sizes."""
        return learns_step_sizes(self.learner.name, self.learner.options)

    def resolved(self) -> "RunConfig":
        """The same run with a label, and with every option's default filled in.

        Raises:
            ConfigError: an option is unknown or its value does not fit; the message names the field.
        """
        import_modules(self.imports)
        parts = {
            "stream": resolve("stream", self.stream, "stream"),
            "network": resolve("network", self.network, "network"),
            "learner": resolve_learner(self.learner),
        }
        return self.model_copy(update={"label": self.label or self.learner.name, **parts})


def resolve_learner(learner: Component, where: str = "") -> Component:
    """Fill in a learner's defaults, and the digest of the trajectory that it replays, if it does.

    Raises:
        ConfigError: an option is unknown or its value does not fit; the message begins with ``where`` and the field.
    """
    resolved = resolve("learner", learner, f"{where}learner")
    try:
        return Component(name=resolved.name, **with_digest(resolved.options))
    except ValueError as error:
        raise ConfigError(f"{where}learner.trajectory: {error}") from error
