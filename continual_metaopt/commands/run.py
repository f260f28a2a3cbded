"""Does one run, described on the command line."""

import argparse
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from continual_metaopt.commands.interrupts import ctrl_c_raises
from continual_metaopt.commands.printing import interruption
from continual_metaopt.commands.report import report_study
from continual_metaopt.runs.components import (
    REGISTRIES,
    SUPPLIED,
    ConfigError,
    Kind,
    describe,
    import_modules,
    options_model,
)
from continual_metaopt.runs.config import Execution, RunConfig
from continual_metaopt.runs.outlines import outline_of
from continual_metaopt.study.jobs import StudyInterrupted, run_folder_name

COMPLETION = {"--tyro-print-completion", "--tyro-write-completion"}


def run_command(arguments: list[str]) -> Any:
    """Make the subcommand ``run``, with the options of the stream, network and learner that the arguments name."""
    fields: dict[str, Any] = {}
    completes = not COMPLETION.isdisjoint(arguments)
    if arguments[:1] == ["run"] or completes:  # the others do not need the functions behind the names, nor torch
        import_modules(given(arguments, "imports"))
        for kind in SUPPLIED:
            default = RunConfig.model_fields[kind].default.name
            fields[kind] = _part(kind, next(iter(given(arguments, f"{kind}.name")), default), completes)
    for name in ("seed", *Execution.model_fields, "label"):
        field = RunConfig.model_fields[name]
        default = field.get_default(call_default_factory=True)
        fields[name] = field.annotation, Field(default, description=field.description)
    model: type[BaseModel] = create_model("Run", __config__=ConfigDict(extra="forbid"), **fields)

    def run(description: Annotated[Any, tyro.conf.arg(name="")], out: Path | None = None, quiet: bool = False) -> int:
        from continual_metaopt.runs.outcome import earlier_state
        from continual_metaopt.study.check import check_run
        from continual_metaopt.study.lengths import splits_of
        from continual_metaopt.study.running import run_jobs

        try:
            config = RunConfig(**description.model_dump(mode="json")).resolved()
        except ValidationError as error:
            raise ConfigError(describe(error, "")) from error
        path = out or Path("runs") / run_folder_name(config)
        if earlier_state(path, config) is None:
            check_run(config)
            if (splits := splits_of(config)) and not quiet:
                print(splits, file=sys.stderr)
        path.mkdir(parents=True, exist_ok=True)
        ctrl_c_raises()
        try:
            run_jobs([(config, path)], workers=1, show_progress=not quiet)
        except (KeyboardInterrupt, StudyInterrupted):
            raise interruption(path) from None
        report_study([path], path, [])
        return 0

    run.__doc__ = """Do one run, and write its figures.

    The options depend on --stream.name, --network.name and --learner.name; --help shows those of the names given.

    Args:
        description: what to run.
        out: the run directory; runs/LEARNER-SEED-ID if not given.
        quiet: show no progress.
    """
    run.__annotations__["description"] = Annotated[model, tyro.conf.arg(name="")]
    return run


def given(arguments: list[str], name: str) -> list[str]:
    """Find the values that the arguments give for ``--NAME``, before it is known which other options there are."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{name}", nargs="*", default=[], dest="values")
    values: list[str] = parser.parse_known_args(arguments)[0].values
    return values


def _part(kind: Kind, name: str, completes: bool) -> tuple[Any, Any]:
    """Field of a stream, network or learner with its name, of which a shell is told all there are, and its options."""
    options = options_model(kind, name, outline_of(kind, name))
    type_: Any = Literal[tuple(REGISTRIES[kind])] if completes else str
    model = create_model(kind, __base__=options, name=(type_, Field(name, description=f"name of the {kind}")))
    return model, Field(default_factory=model)
