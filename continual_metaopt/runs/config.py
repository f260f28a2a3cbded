"""What a run is: stream, network, learner, seed, and how it is executed."""

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from continual_metaopt.analysis.records import GIVEN_UP
from continual_metaopt.engines import Engine
from continual_metaopt.learner.metrics.names import Diagnostic
from continual_metaopt.optim.controls.trajectories import with_digest
from continual_metaopt.optim.registry import learns_step_sizes
from continual_metaopt.runs.components import Component, ConfigError, Kind, import_modules, resolve

MAX_SEED = 2**32 - 1  # of NumPy's generators
Device = Annotated[str, Field(pattern=r"^(cpu|mps|cuda(:\d+)?)$")]


def _names_of_diagnostics(given: Any) -> Any:
    if isinstance(given, str):
        given = [given]
    return get_args(Diagnostic) if isinstance(given, Sequence) and "all" in given else given


Diagnostics = Annotated[tuple[Literal[Diagnostic, "all"], ...], BeforeValidator(_names_of_diagnostics)]


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
        if self.learner.name == "metaoptimize":  # so that older runs keep their identity
            content["learner"] |= dict.fromkeys(GIVEN_UP)
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
