"""The command ``continual-metaopt``."""

import contextlib
import errno
import inspect
import itertools
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from continual_metaopt import config as configs
from continual_metaopt.analysis.escaping import for_terminal
from continual_metaopt.analysis.files import print_with_replacements, real_folder, with_home
from continual_metaopt.analysis.records import read_status
from continual_metaopt.command import GONE, NOTHING_BEGUN, ctrl_c_raises
from continual_metaopt.config import RunConfig
from continual_metaopt.jobs import RunsFailed, StudyInterrupted, run_folder_name
from continual_metaopt.optim.packaged import MissingPackageError
from continual_metaopt.streams.stream import StreamAbout
from continual_metaopt.study_lock import StudyLocked

if TYPE_CHECKING:
    from continual_metaopt.analysis import Runs
    from continual_metaopt.backends import Backend

DEFAULT_STUDY = "quick"
PROGRAM = "continual-metaopt"
PLAIN_FIELDS = {  # of a run, given as flags of their own
    "seed",
    "engine",
    "device",
    "record_every",
    "record_samples_every",
    "evaluate",
    "diagnostics",
    "diagnostics_every",
    "label",
    "imports",
}
EXIT_FAILED, EXIT_USAGE, EXIT_LOCKED, EXIT_INTERRUPTED = 1, 2, 3, 130
ALL_RECORDED = "All samples so far are recorded; the same command goes on from there."


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments; those of the process if None.

    Returns:
        Exit status: 0, 1 if runs failed, 2 for a mistake in what was asked or a file that cannot be read or written,
        3 if another command works on the study, 130 after Ctrl-C.
    """
    print_with_replacements()
    arguments = with_home(sys.argv[1:] if argv is None else argv)
    try:
        commands = {
            "compare": compare,
            "reproduce": reproduce,
            "run": run_command(arguments),
            "status": status,
            "report": report,
            "explain": explain,
            "export": export,
            "list": show_list,
            "preview": preview_command(arguments),
        }
        result = tyro.extras.subcommand_cli_from_dict(commands, prog=PROGRAM, description=DESCRIPTION, args=arguments)
        return int(result or 0)
    except BrokenPipeError:  # as in `… | head`, which has seen enough
        _stop_printing()
        return 0
    except StudyLocked as error:
        _complain(f"{PROGRAM}: {error}")
        return EXIT_LOCKED
    except RunsFailed as error:
        again = shlex.join([PROGRAM, *arguments])
        _complain(f"{PROGRAM}: {error}\nThis command tries them again: {again}")
        return EXIT_FAILED
    except (ValueError, MissingPackageError) as error:
        _complain(f"{PROGRAM}: {error}")
        return EXIT_USAGE
    except OSError as error:
        _complain(f"{PROGRAM}: {_said(error)}")
        return EXIT_USAGE
    except (ImportError, MemoryError) as error:  # such as of PyTorch's libraries, where there is little memory
        from continual_metaopt.under_way import reason_of

        _complain(f"{PROGRAM}: {reason_of(error)}")
        return EXIT_USAGE
    except StudyInterrupted as error:
        _complain(f"Interrupted. {str(error) or ALL_RECORDED}")
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        _complain(NOTHING_BEGUN)
        return EXIT_INTERRUPTED


def _complain(text: str) -> None:
    """Say what is wrong, if there still is somebody to hear it."""
    with contextlib.suppress(OSError):  # such as of a terminal that was closed
        print(for_terminal(text), file=sys.stderr, flush=True)


def _said(error: OSError) -> str:
    """A sentence about files that cannot be read or written, and what to do if it is because of the disk."""
    from continual_metaopt.under_way import NO_ACCESS, NO_ROOM

    said = (
        f"{error.strerror}: '{error.filename}'" if error.strerror and error.filename else error.strerror or str(error)
    )
    advice = {errno.ENOSPC: NO_ROOM, errno.EDQUOT: NO_ROOM, errno.EROFS: NO_ACCESS}.get(error.errno or 0)
    return f"{said}. {advice}" if advice else said


DESCRIPTION = """Streams non-stationary image tasks, one sample at a time, to learners whose step sizes are fixed or
learned online, and shows what happened. `compare` without arguments runs a small study on embedded data."""


def compare(
    study: Annotated[str, tyro.conf.Positional] = DEFAULT_STUDY,
    /,
    out: Path | None = None,
    source: str | None = None,
    data_root: Path | None = None,
    seeds: tuple[int, ...] | None = None,
    engine: configs.StudyEngine | None = None,
    device: str | None = None,
    workers: int | None = None,
    threads: bool = False,
    quiet: bool = False,
    plan: bool = False,
    backend: Literal["local", "ray", "slurm"] = "local",
    address: str = "auto",
    slurm: tuple[str, ...] = (),
) -> int:
    """Run a study, print the comparison and write its table and figures.

    Runs that have ended in the output folder are not repeated, so the same command goes on after an interruption.

    Args:
        study: name of a packaged study, or the path of a YAML file.
        out: folder of the study's runs and report; runs/NAME if not given.
        source: images to use instead of the study's own, such as cifar100 or parquet:FOLDER.
        data_root: folder of the files of torchvision's data sets.
        seeds: reported seeds, instead of the study's own.
        engine: how steps are executed, instead of the study's own way; "population" lets runs learn side by side.
        device: where the learners are: cpu, cuda, cuda:N or mps.
        workers: runs at a time; one per processor if not given.
        threads: do the runs in threads of one process, which need less memory, rather than in processes.
        quiet: show neither what the study will take nor progress.
        plan: only say what the study will take, in runs, samples, hours and disk space; run nothing.
        backend: where the runs are done: on this machine, on a Ray cluster, or by SLURM's array jobs.
        address: of the Ray cluster: auto, HOST:PORT, ray://HOST:PORT, or local for a new one on this machine.
        slurm: options of the array jobs, as KEY=VALUE: minutes, memory_gb, partition, runs_per_task and any other of
            sbatch.
    """
    parts = configs.load_studies(study, source=source, data_root=data_root, seeds=seeds, engine=engine, device=device)
    label, first = next(iter(parts.items()))
    folder = out or Path("runs") / first.name.removesuffix(f".{label}")

    def show(label: str, runs: list[Path], selection: list[Path]) -> None:
        _report_part(label, runs, folder, selection)

    elsewhere = partial(_backend, backend, address, slurm, workers, quiet)
    return _run_parts(study, parts, folder, workers, quiet, show, plan, threads, elsewhere)


def reproduce(
    experiment: Annotated[Literal["published", "table2", "table3", "robustness", "trajectories"], tyro.conf.Positional],
    /,
    out: Path | None = None,
    source: str | None = None,
    data_root: Path | None = None,
    seeds: tuple[int, ...] | None = None,
    workers: int | None = None,
    quiet: bool = False,
    plan: bool = False,
) -> int:
    """Repeat an experiment of the MetaOptimize paper, and show its numbers beside ours.

    Runs that have ended in the output folder are not repeated.

    Args:
        experiment: published (the continual experiment of the published paper), table2 and table3 (10 and 20 classes
            per task, three base updates), robustness (the initial step size), or trajectories (the six blocks of a
            ResNet-18, here a narrow one).
        out: folder of the runs and the report; runs/EXPERIMENT if not given.
        source: images in place of CIFAR-100, such as parquet:FOLDER.
        data_root: folder of the files of torchvision's data sets.
        seeds: reported seeds, instead of the study's own.
        workers: runs at a time; one per processor if not given.
        quiet: show neither what the study will take nor progress.
        plan: only say what the experiment will take, in runs, samples, hours and disk space; run nothing.
    """
    folder = out or Path("runs") / experiment
    from continual_metaopt.reproduce import check_images, load_parts

    parts = load_parts(experiment, source=source, data_root=data_root, seeds=seeds)
    for warning in dict.fromkeys(map(check_images, parts.values())):
        if warning and not quiet:
            _complain(f"{PROGRAM}: {warning}")
    done: dict[str, list[Path]] = {}

    def show(label: str, runs: list[Path], selection: list[Path]) -> None:
        from continual_metaopt.analysis import load_runs
        from continual_metaopt.analysis.reproduction_report import write_reproduction

        done[label] = [*runs, *selection]
        if len(done) < len(parts):
            return
        loaded = load_runs(*(path for paths in done.values() for path in paths), purpose=None)
        if loaded.table["state"].isin(["running", "failed"]).any():
            return  # an error says so
        text, paths = write_reproduction(loaded, experiment, real_folder(folder / "report"))
        _print("\n".join([text, *(f"wrote {path}" for path in paths)]))

    return _run_parts(experiment, parts, folder, workers, quiet, show, plan)


def _run_parts(
    study: str,
    parts: Mapping[str, configs.StudyConfig],
    folder: Path,
    workers: int | None,
    quiet: bool,
    show: Callable[[str, list[Path], list[Path]], None],
    plan: bool = False,
    threads: bool = False,
    elsewhere: "Callable[[], Backend | None]" = lambda: None,
) -> int:
    """Run what is left of a study, and show each part of it: its label, its runs, and those that chose settings."""
    from continual_metaopt.backends.local import n_processors
    from continual_metaopt.checking import available_device, check_study
    from continual_metaopt.planning import plan_study, require_disk_space, splits_of
    from continual_metaopt.study import PoolOptions, run_studies

    plans = []
    for label, part in parts.items():
        try:
            made = check_study(part)
        except configs.ConfigError as error:
            raise configs.ConfigError(f"{study}: {f'{label}: ' if label else ''}{error}") from error
        plans.append(plan_study(part, [folder, Path("runs")], workers or n_processors(), made))
    if plan:
        _print("\n\n".join(planned.table() for planned in plans))
        return 0
    require_disk_space(sum(planned.bytes for planned in plans), folder)
    backend = elsewhere()
    if backend is None:
        for part in parts.values():
            available_device(part.device)
    if not quiet:
        lines = [planned.summary() for planned in plans]
        lines += dict.fromkeys(filter(None, (splits_of(part.stream, part.seeds[0]) for part in parts.values())))
        _complain("\n".join(lines))
    ctrl_c_raises()
    try:
        options = PoolOptions(workers, show_progress=not quiet, threads=threads, backend=backend)
        results = run_studies(parts, folder, options)
    except (KeyboardInterrupt, StudyInterrupted):
        raise _interruption(folder) from None
    except RunsFailed as error:
        for label in parts:
            runs, selection = (
                [path for path in paths if (folder / label) in path.parents and (path / "config.json").exists()]
                for paths in (error.runs, error.selection)
            )
            if runs:
                try:
                    show(label, runs, selection)
                except OSError as second:  # such as of a full disk, which is why runs failed
                    _complain(f"{PROGRAM}: there is no report: {_said(second)}")
        raise
    for label, result in results.items():
        show(label, result.runs, result.selection)
    return 0


def _interruption(folder: Path) -> BaseException:
    """What to raise after Ctrl-C: whether there are runs to go on with is told."""
    return StudyInterrupted() if next(folder.rglob("status.json"), None) else KeyboardInterrupt()


def _backend(name: str, address: str, slurm: Sequence[str], workers: int | None, quiet: bool) -> "Backend | None":
    """What does the runs of a study elsewhere than on this machine."""
    if name == "ray":
        from continual_metaopt.backends.ray import RayPool

        return lambda n_runs, folder: RayPool(address, workers, n_runs, not quiet, folder)
    if name == "slurm":
        from continual_metaopt.backends.slurm import ArrayJobs, array_options

        options = array_options(slurm)
        return lambda n_runs, folder: ArrayJobs(options, workers, n_runs, not quiet, folder)
    return None


def _report_part(label: str, runs: list[Path], folder: Path, selection: list[Path]) -> None:
    """Report the runs on one stream with one network, under its label if there are several."""
    if label:
        _print(f"\n{label}")
    _report_study(runs, folder / label, selection)


def _report_study(runs: list[Path], folder: Path, selection: list[Path]) -> None:
    """Print and write the comparison of a study's runs, and say after Ctrl-C how to have it later."""
    try:
        _show_report(runs, real_folder(folder / "report"), selection)
    except KeyboardInterrupt:
        again = shlex.join([PROGRAM, "report", str(folder)])
        raise StudyInterrupted(f"All runs are recorded; this command writes their report: {again}") from None
    for path in (*runs, *selection):
        try:
            notes = read_status(path).get("notes", [])
        except ValueError:  # which the report has left out, and said so
            continue
        for note in notes:
            _complain(f"noted: {note}")


def status(directory: Annotated[Path, tyro.conf.Positional], /) -> int:
    """Say how a study, or the runs in any folder, are getting on: what runs and how fast, what failed and why.

    The exit status is 1 if runs failed or are damaged, and 0 otherwise: a run that diverged has a result, and one that
    was interrupted can go on.

    Args:
        directory: a study's folder, or any folder with run directories in it.
    """
    from continual_metaopt.overview import overview

    found = overview(directory)
    _print(found.text())
    return 0 if found.is_sound else EXIT_FAILED


def report(
    directory: Annotated[Path, tyro.conf.Positional],
    /,
    out: Path | None = None,
    diverged: Literal["chance", "exclude"] = "chance",
) -> int:
    """Print the comparison of finished runs, and write its table and figures.

    Args:
        directory: a study's folder, or any folder with run directories in it.
        out: where to write; DIRECTORY/report if not given.
        diverged: count what a diverged run did not see as chance, or exclude diverged runs from all averages.
    """
    from continual_metaopt.overview import studies_in

    ctrl_c_raises()
    parts = [path.parent for path in studies_in(directory)]
    for part in parts if directory not in parts else ():
        _print(f"\n{part.name}")
        folder = out / part.name if out else part / "report"
        _show_report([part], real_folder(folder), diverged=diverged)
    if not parts or directory in parts:
        _show_report([directory], out or real_folder(directory / "report"), diverged=diverged)
    return 0


def explain(run: Annotated[Path, tyro.conf.Positional], /) -> int:
    """Say in words what happened to a run: how it ended, what went wrong first, how its step sizes moved.

    Args:
        run: a run directory.
    """
    from continual_metaopt.analysis.explain import explain as in_words

    _print(in_words(run).rstrip("\n"))
    return 0


def export(
    directory: Annotated[Path, tyro.conf.Positional],
    /,
    format: Literal["csv", "parquet", "tensorboard", "wandb"] = "csv",
    out: Path | None = None,
    purpose: Literal["report", "selection", "all"] = "report",
) -> int:
    """Write runs in another tool's format: tidy tables, TensorBoard's event files, or offline runs for wandb sync.

    Args:
        directory: a study's folder, or any folder with run directories in it.
        format: of what is written.
        out: a folder, which an earlier export may have written; DIRECTORY/export/FORMAT if not given.
        purpose: which runs; "selection" are those that only served to choose a setting.
    """
    from continual_metaopt.analysis.export import export as write_export
    from continual_metaopt.analysis.runs import load_runs

    runs = load_runs(directory, purpose=None if purpose == "all" else purpose).readable()
    _say_left_out(runs)
    try:
        for path in write_export(runs, out or real_folder(directory / "export") / format, format):
            _print(f"wrote {path}")
    except ModuleNotFoundError as error:
        _complain(f"{PROGRAM}: {error}")
        return EXIT_USAGE
    return 0


def show_list(kind: Annotated[Literal["streams", "networks", "learners", "studies"], tyro.conf.Positional], /) -> int:
    """List what can be named in studies and on the command line.

    Args:
        kind: what to list.
    """
    from continual_metaopt.networks import NETWORKS
    from continual_metaopt.optim.registry import LEARNERS, PYTORCH_OPTIMIZER_PREFIX, TORCH_PREFIX
    from continual_metaopt.streams import STREAMS

    if kind == "studies":
        entries = {name: configs.study_description(text) for name, text in configs.packaged_studies().items()}
    else:
        entries = {"streams": STREAMS, "networks": NETWORKS, "learners": LEARNERS}[kind].descriptions()
    if kind == "learners":
        entries |= {
            f"{TORCH_PREFIX}NAME": "any optimizer of torch.optim, such as torch:AdamW",
            f"{PYTORCH_OPTIMIZER_PREFIX}NAME": "any optimizer of pytorch-optimizer that is given parameters",
        }
    if kind == "streams":
        described = {name: about for name in STREAMS.own if (about := getattr(STREAMS[name], "about", None))}
        print(_stream_table(described))
        entries = {name: description for name, description in entries.items() if name not in described}
    width = max(map(len, entries), default=0)
    _print("\n".join(f"{name:{width}}  {description}" for name, description in entries.items()))
    return 0


def _stream_table(streams: Mapping[str, StreamAbout]) -> str:
    """What streams say about themselves, in at most 100 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, leading=1)
    longest = max(map(len, streams))
    # no name of a stream or an option is broken
    widths = {"stream (source)": longest, "what changes": 34 - longest, "when": 14, "length": 22, "head": 22}
    for heading, width in widths.items():
        table.add_column(heading, width=width, overflow="fold")
    for name, about in streams.items():
        table.add_row(*map(Text, (f"{name}\n({about.source})", about.changes, about.when, about.length, about.head)))
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def run_command(arguments: list[str]) -> Any:
    """The subcommand ``run``, with the options of the stream, network and learner that the arguments name."""
    parts: dict[str, Any] = {}
    if arguments[:1] == ["run"]:  # the others do not need the functions behind the names, nor torch
        configs.import_modules(_given(arguments, "imports"))
        for kind in configs.SUPPLIED:
            default = RunConfig.model_fields[kind].default.name
            parts[kind] = _part(kind, next(iter(_given(arguments, f"{kind}.name")), default))

    def run(description: Annotated[Any, tyro.conf.arg(name="")], out: Path | None = None, quiet: bool = False) -> int:
        from continual_metaopt.checking import check_run
        from continual_metaopt.planning import splits_of
        from continual_metaopt.study import run_jobs
        from continual_metaopt.under_way import earlier_state

        try:
            config = RunConfig(**description.model_dump(mode="json")).resolved()
        except ValidationError as error:
            raise configs.ConfigError(configs.describe(error, "")) from error
        path = out or Path("runs") / run_folder_name(config)
        if earlier_state(path, config) is None:
            check_run(config)
            if (splits := splits_of(config.stream, config.seed)) and not quiet:
                print(splits, file=sys.stderr)
        path.mkdir(parents=True, exist_ok=True)
        ctrl_c_raises()
        try:
            run_jobs([(config, path)], workers=1, show_progress=not quiet)
        except (KeyboardInterrupt, StudyInterrupted):
            raise _interruption(path) from None
        _report_study([path], path, [])
        return 0

    run.__doc__ = """Do one run, and write its figures.

    The options depend on --stream.name, --network.name and --learner.name; --help shows those of the names given.

    Args:
        description: what to run.
        out: the run directory; runs/LEARNER-SEED-ID if not given.
        quiet: show no progress.
    """
    run.__annotations__["description"] = Annotated[_run_model(parts), tyro.conf.arg(name="")]
    return run


def preview_command(arguments: list[str]) -> Any:
    """The subcommand ``preview``, with the options of the stream that the arguments name."""
    from continual_metaopt.streams import STREAMS

    model: type[BaseModel] = BaseModel
    if arguments[:1] == ["preview"]:
        configs.import_modules(_given(arguments, "imports"))
        given = [argument for argument in arguments[1:] if not argument.startswith("-")]
        name = next((argument for argument in given if argument in STREAMS), next(iter(given), None))
        if name is not None:
            options = configs.options_model("stream", name, configs.factory_of("stream", name))
            seed = (int, Field(0, ge=0, description="of the stream"))
            model = create_model("Preview", __base__=options, seed=seed)

    def preview(
        stream: Annotated[str, tyro.conf.Positional],
        /,
        options: Annotated[Any, tyro.conf.arg(name="")],
        out: Path = Path("preview"),
        imports: tuple[str, ...] = (),
    ) -> int:
        from continual_metaopt.previews import write_previews
        from continual_metaopt.streams import plan_stream

        planned = plan_stream(stream, **options.model_dump())
        for path in write_previews(planned, stream, out):
            _print(f"wrote {path}")
        sizes = planned.info.for_learner
        counts = {"sample": sizes.n_samples, "experience": len(planned.train), "output": sizes.n_outputs}
        facts = [f"{n:,} {what}{'s' * (n != 1)}" for what, n in counts.items()]
        _print(", ".join([*facts, f"fingerprint {planned.info.fingerprint}"]))
        if planned.info.splits:
            _print(planned.info.said_of_splits())
        return 0

    preview.__doc__ = """Draw a stream: samples of each experience, and a timeline of what changes.

    The options are those of the stream, which is named first; `preview STREAM --help` shows them.

    Args:
        stream: name of the stream.
        options: of the stream.
        out: a folder for two PNG files, or a file name ending with .png, .pdf or .svg, whose stem begins both names.
        imports: modules that register streams of one's own.
    """
    preview.__annotations__["options"] = Annotated[model, tyro.conf.arg(name="")]
    return preview


def _given(arguments: list[str], name: str) -> list[str]:
    """The values that the arguments give for ``--NAME``."""
    for i, argument in enumerate(arguments):
        if argument == f"--{name}":
            return list(itertools.takewhile(lambda value: not value.startswith("--"), arguments[i + 1 :]))
        if argument.startswith(f"--{name}="):
            return [argument.partition("=")[2]]
    return []


def _part(kind: configs.Kind, name: str) -> tuple[Any, Any]:
    """Field of a stream, network or learner with its name and options."""
    options = configs.options_model(kind, name, configs.factory_of(kind, name))
    model = create_model(kind, __base__=options, name=(str, Field(name, description=f"name of the {kind}")))
    return model, Field(default_factory=model)


def _run_model(parts: dict[str, Any]) -> type[BaseModel]:
    descriptions = configs.argument_descriptions(inspect.getdoc(RunConfig) or "")
    plain = {
        name: (field.annotation, Field(field.default, description=descriptions.get(name, "")))
        for name, field in RunConfig.model_fields.items()
        if name in PLAIN_FIELDS
    }
    fields: dict[str, Any] = parts | plain
    return create_model("Run", __config__=ConfigDict(extra="forbid"), **fields)


def _show_report(
    runs: list[Path], out: Path, selection: Sequence[Path] = (), diverged: Literal["chance", "exclude"] = "chance"
) -> None:
    """Print and write the comparison of runs; those at or below the paths that chose settings tell what that took."""
    from continual_metaopt.analysis import comparison_table, format_table, load_runs, write_report
    from continual_metaopt.analysis.report import by_stream_and_network
    from continual_metaopt.analysis.tables import caption

    found = load_runs(*runs, *selection, purpose=None).readable()
    loaded, tried = found.select(purpose="report"), found.select(purpose="selection")
    if not len(loaded):
        load_runs(*runs)  # which says what is missing
    paths = write_report(loaded, out, diverged=diverged, selection=tried)  # whatever becomes of what is printed
    parts = by_stream_and_network(loaded)
    for title, part in parts.items():
        table = comparison_table(part, diverged=diverged, selection=tried)
        if len(parts) > 1:
            _print(f"\n{title}\n")
        _print(format_table(table, "terminal"))
        _print(re.sub(r"\s+", " ", caption(table)))
    _print("\n".join(f"wrote {path}" for path in paths))
    _say_left_out(found)
    if n := found.n_superseded:
        _complain(f"left out: {n} run{'s' * (n != 1)} of earlier versions of the study")


def _say_left_out(runs: "Runs") -> None:
    for reason in runs.left_out.values():
        _complain(f"left out: {reason}")


def _print(text: str) -> None:
    """Print, unless nobody reads it any more; output that cannot be written keeps no file from being written."""
    try:
        print(for_terminal(text), flush=True)
    except OSError as error:
        if error.errno not in GONE:
            _complain(f"{PROGRAM}: the output cannot be written: {error.strerror}")
        _stop_printing()


def _stop_printing() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
