"""Runs a study and reports it."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from continual_metaopt.commands.interrupts import ctrl_c_raises
from continual_metaopt.commands.printing import DEFAULT_STUDY, PROGRAM, complain, interruption, said, show
from continual_metaopt.commands.report import report_study
from continual_metaopt.engines import Engine
from continual_metaopt.runs.components import ConfigError
from continual_metaopt.study.backends import Backend
from continual_metaopt.study.expand import Study
from continual_metaopt.study.jobs import RunsFailed, StudyInterrupted
from continual_metaopt.study.load import folder_of, load_studies

if TYPE_CHECKING:
    from continual_metaopt.study.running import PoolOptions


def compare(
    study: Annotated[str, tyro.conf.Positional] = DEFAULT_STUDY,
    /,
    out: Path | None = None,
    source: str | None = None,
    data_root: Path | None = None,
    seeds: tuple[int, ...] | None = None,
    engine: Engine | None = None,
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
        engine: how steps are executed, instead of the study's own way.
        device: where the learners are: cpu, cuda, cuda:N or mps.
        workers: runs at a time; one per processor if not given.
        threads: do the runs in threads of one process, which need less memory, rather than in processes.
        quiet: show neither what the study will take nor progress.
        plan: only say what the study will take, in runs, samples, hours and disk space; measures
            speeds that are not known.
        backend: where the runs are done: on this machine, on a Ray cluster, or by SLURM's array jobs.
        address: of the Ray cluster: auto, HOST:PORT, ray://HOST:PORT, or local for a new one on this machine.
        slurm: options of the array jobs, as KEY=VALUE: minutes, memory_gb, partition, runs_per_task and any other of
            sbatch.
    """
    parts = load_studies(study, source=source, data_root=data_root, seeds=seeds, engine=engine, device=device)
    folder = out or folder_of(parts)

    def report(label: str, runs: list[Path], selection: list[Path]) -> None:
        if label:
            show(f"\n{label}")
        report_study(runs, folder / label, selection)

    from continual_metaopt.study.running import PoolOptions

    pools = PoolOptions(workers, not quiet, threads, _backend(backend, address, slurm, workers, quiet))
    return run_parts(study, parts, folder, pools, report, plan)


def run_parts(
    study: str,
    parts: Mapping[str, Study],
    folder: Path,
    pools: "PoolOptions",
    report: Callable[[str, list[Path], list[Path]], None],
    plan: bool,
) -> int:
    """Run what is left of a study, called so in messages, in a folder, or only ``plan`` it; returns the exit status.

    ``report`` is given the label of each of the study's parts, its runs, and those that served to choose settings.
    """
    from continual_metaopt.runs.process_settings import available_device
    from continual_metaopt.runs.speed import measured_speed
    from continual_metaopt.study.backends.local import n_processors
    from continual_metaopt.study.check import check_study
    from continual_metaopt.study.lengths import splits_of
    from continual_metaopt.study.plan import plan_study, require_disk_space
    from continual_metaopt.study.running import run_studies
    from continual_metaopt.study.speeds import speeds_here

    if pools.workers is not None and pools.workers < 1:
        raise ValueError(f"--workers must be 1 or more, not {pools.workers}; leave it out for one per processor")
    if pools.backend is None:
        for part in parts.values():
            available_device(part.config.device)
    if plan:
        ctrl_c_raises()  # so that a run that is measured removes what it has written
    speeds = partial(speeds_here, measure=measured_speed if plan else None, show=pools.show_progress)
    plans = []
    for label, part in parts.items():
        try:
            n_parameters = check_study(part)
        except ConfigError as error:
            raise ConfigError(f"{study}: {f'{label}: ' if label else ''}{error}") from error
        workers = pools.workers or n_processors()
        plans.append(plan_study(part, [folder, Path("runs")], workers, n_parameters, speeds))
    if plan:
        show("\n\n".join(planned.table() for planned in plans))
        return 0
    require_disk_space(sum(planned.bytes for planned in plans), folder)
    if pools.show_progress:
        splits = dict.fromkeys(splits_of(part.runs["report"]) for part in parts.values())
        complain("\n".join([planned.summary() for planned in plans] + [line for line in splits if line]))
    ctrl_c_raises()
    try:
        results = run_studies(parts, folder, pools)
    except (KeyboardInterrupt, StudyInterrupted):
        raise interruption(folder) from None
    except RunsFailed as error:
        for label in parts:
            runs, selection = (
                [path for path in paths if (folder / label) in path.parents and (path / "config.json").exists()]
                for paths in (error.runs, error.selection)
            )
            if runs:
                try:
                    report(label, runs, selection)
                except OSError as second:  # such as of a full disk, which is why runs failed
                    complain(f"{PROGRAM}: there is no report: {said(second)}")
        raise
    for label, result in results.items():
        report(label, result.runs, result.selection)
    return 0


def _backend(name: str, address: str, slurm: Sequence[str], workers: int | None, quiet: bool) -> Backend | None:
    """What does the runs of a study elsewhere than on this machine."""
    if name == "ray":
        from continual_metaopt.study.backends.ray import RayPool

        return lambda n_runs, folder: RayPool(address, workers, n_runs, not quiet, folder)
    if name == "slurm":
        from continual_metaopt.study.backends.slurm import ArrayJobs, array_options

        options = array_options(slurm)
        return lambda n_runs, folder: ArrayJobs(options, workers, n_runs, not quiet, folder)
    return None
