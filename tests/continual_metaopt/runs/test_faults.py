"""What goes wrong on a machine: it is said clearly, and nothing that was recorded is lost."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from continual_metaopt.analysis import load_runs
from continual_metaopt.analysis.run_directory import TABLES
from continual_metaopt.engines.compiled import learner as compiled_learner
from continual_metaopt.runs import directory as recording
from continual_metaopt.runs import files, tables, under_way
from continual_metaopt.runs.damage import notes_on_damages
from continual_metaopt.runs.directory import RunDirectory
from continual_metaopt.runs.files import read_json
from continual_metaopt.runs.outcome import NO_MEMORY, NO_ROOM, earlier_state, fail, reason_of
from continual_metaopt.runs.run import run_one
from continual_metaopt.runs.tables import ROW_GROUP
from tests.continual_metaopt.conftest import environment, exactly, files_of, read_tables
from tests.continual_metaopt.runs.conftest import PORTION, assert_same_run, config_of, portions_of, stop_at
from tests.continual_metaopt.runs.test_directory import ENGINE, add_experience, portion, save, with_parts

GOES_ON = "the same command then goes on from the last checkpoint"


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after 40 of its samples, twice: the records are two parts each."""
    path = tmp_path_factory.mktemp("interrupted") / "run"
    with portions_of(PORTION):
        for _ in range(2):
            assert run_one(config_of(), path, should_stop=stop_at(1)) == "failed"
    return path


# -------------------------------------------------------------------------------------------------------- damaged files


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "garbage": lambda content: b"\x00\xff" * len(content),
}


@pytest.mark.parametrize(
    ("name", "damage"),  # a checkpoint in every way, the other files in some
    [
        *(("checkpoint.npz", damage) for damage in DAMAGES),
        ("samples/part-00001.parquet", "truncated"),
        ("samples/part-00001.parquet", "garbage"),
        ("status.json", "empty"),
    ],
)
def test_a_damaged_file_is_set_aside_and_said(
    finished: Path, interrupted: Path, tmp_path: Path, name: str, damage: str
) -> None:
    run = Path(shutil.copytree(interrupted, tmp_path / "run"))
    (run / name).write_bytes(DAMAGES[damage]((run / name).read_bytes()))
    before = files_of(run)

    assert run_one(config_of(), run) == "finished"

    (note,) = read_json(run / "status.json")["notes"]
    kept, then = ("it", "goes on without it") if name == "status.json" else ("what was recorded", "begins again")
    beginning, end = f"'{run / name}' is damaged (", f"); {kept} is kept in '{run / 'damaged'}', and the run {then}"
    assert note.startswith(beginning)
    assert note.endswith(end)
    assert_same_run(run, finished)
    moved = {
        key.removeprefix("damaged/"): value[1] for key, value in files_of(run).items() if key.startswith("damaged")
    }
    assert moved.pop("reason.txt").decode() == note + "\n"
    expected = {"status.json"} if name == "status.json" else before.keys()
    assert moved == {key: before[key][1] for key in expected}  # nothing is lost
    assert load_runs(run).table["state"].tolist() == ["finished"]


def test_a_part_that_is_missing_is_said(finished: Path, interrupted: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(interrupted, tmp_path / "run"))
    part = run / "step_sizes" / "part-00000.parquet"
    part.unlink()

    assert run_one(config_of(), run) == "finished"

    assert read_json(run / "status.json")["notes"] == [
        f"'{part}' is missing; what was recorded is kept in '{run / 'damaged'}', and the run begins again"
    ]
    assert_same_run(run, finished)


def test_the_checkpoint_of_another_run_is_not_gone_on_with(interrupted: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert run_one(config_of(seed=1), run, should_stop=stop_at(1)) == "failed"
    shutil.copy(interrupted / "checkpoint.npz", run)

    assert run_one(config_of(seed=1), run, should_stop=stop_at(1)) == "failed"

    assert read_json(run / "status.json")["notes"] == [
        f"'{run / 'checkpoint.npz'}' is damaged (it belongs to run {config_of().run_id}); what was recorded is kept in "
        f"'{run / 'damaged'}', and the run begins again"
    ]


@pytest.mark.parametrize("lacks", ["loss_in_experience", "long_trace", "a column of blocks"])
def test_a_checkpoint_of_another_version_is_left_alone(interrupted: Path, tmp_path: Path, lacks: str) -> None:
    run = Path(shutil.copytree(interrupted, tmp_path / "run"))
    path = run / "checkpoint.npz"
    with np.load(path) as file:
        content = {name: file[name] for name in file.files}
    about = json.loads(str(content.pop("about")))
    for part in (about, content):
        part.pop(lacks, None)
    if lacks == "a column of blocks":
        content["blocks"] = content["blocks"][:, :-1]
    np.savez(path, about=json.dumps(about), **content)
    before = files_of(run)

    assert run_one(config_of(), run) == "failed"

    assert read_json(run / "status.json")["reason"] == (
        f"ValueError: '{path}' was written by another version of this package; go on with that version, or move "
        f"'{run}' elsewhere to run again"
    )
    assert {name for name, content in files_of(run).items() if content != before[name]} == {"status.json"}


def test_a_part_that_rots_shows_when_the_records_are_merged(tmp_path: Path) -> None:
    directory = with_parts(tmp_path)
    part = tmp_path / "samples" / "part-00000.parquet"
    content = bytearray(part.read_bytes())
    column = pq.read_metadata(part).row_group(0).column(3)
    content[column.data_page_offset + column.total_compressed_size - 1] ^= 1  # in data that are only read in the end
    part.write_bytes(content)

    with pytest.raises(ValueError, match=rf"^'{re.escape(str(part))}' is damaged \(.+the run begins again$") as caught:
        directory.finish("finished", None, ENGINE)

    assert notes_on_damages(tmp_path) == [str(caught.value)]
    assert fail(directory, caught.value) == "failed"
    assert read_json(tmp_path / "status.json")["reason"] == f"ValueError: {caught.value}"
    assert read_json(tmp_path / "status.json")["step"] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "damaged", "status.json"]


def test_what_the_end_of_a_run_left_half_done_is_brought_to_an_end(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(recording, "remove_leftovers", lambda run: None)
    directory = RunDirectory(tmp_path)
    directory.start({"run_id": config_of().run_id, "order": 4})
    directory.observe(portion(0, 5))
    directory.checkpoint(save, ENGINE)
    directory.finish("finished", None, ENGINE)
    (tmp_path / ".samples.parquet.17.tmp").write_text("half")
    assert (tmp_path / "samples").is_dir()

    assert earlier_state(tmp_path, config_of()) == "finished"

    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["config.json", "status.json", *(f"{name}.parquet" for name in TABLES)]
    )


# ------------------------------------------------------------------------------------------------- disks and memory


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), f"The disk is full: make room; {GOES_ON}"),
        (
            OSError(errno.EROFS, "Read-only file system"),
            f"Access is needed: change permissions, or mount the disk for writing; {GOES_ON}",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.png"), f"A file is missing: bring it back; {GOES_ON}"),
        (MemoryError(), NO_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), NO_MEMORY),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), NO_MEMORY),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), NO_MEMORY),
    ],
    ids=lambda value: type(value).__name__,
)
def test_reasons_say_what_to_do(error: Exception, advice: str) -> None:
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    assert reason_of(error) == f"{text}. {advice}"


FULL = OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_for_a_while_costs_nothing(finished: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """From each file on that a run writes: the status may still fit, or not."""
    write_whole = recording.write_whole
    monkeypatch.setattr(under_way, "CHECKPOINT_SECONDS", 0.0)
    reason = reason_of(FULL)
    for n_written in (0, 3, 8, 13, 40, 60):
        run, n = tmp_path / str(n_written), 0

        def write(path: Path, write: Any, n_written: int = n_written) -> Path:
            nonlocal n
            n += 1
            if n > n_written and (path.suffix != ".json" or n_written % 2):
                raise FULL
            return write_whole(path, write)

        with monkeypatch.context() as full:
            for module in (recording, files):
                full.setattr(module, "write_whole", write)
            if n_written % 2:
                message = f"{reason}; its status could not be written ({FULL})"
                with pytest.raises(OSError, match=exactly(message)):
                    run_one(config_of(), run)
            else:
                assert run_one(config_of(), run) == "failed"
                assert read_json(run / "status.json")["reason"] == reason
        assert not list(run.rglob("*.tmp"))

        assert run_one(config_of(), run) == "finished"
        assert_same_run(run, finished)


SMALL_DISK = """
import json, sys
from pathlib import Path
from continual_metaopt.engines.observations import Observations
from continual_metaopt.runs.directory import RunDirectory
from continual_metaopt.runs.outcome import fail

disk = Path(sys.argv[1])
def learn(directory):
    directory.start({"run_id": "abc"})
    for number in range(1000):
        directory.observe(Observations(0, 500 * number, correct=[True] * 500, loss=[step / 7 for step in range(500)]))
        directory.checkpoint(lambda path, progress: path.write_text(json.dumps(progress)), {})
directory = RunDirectory(disk / "run")
try:
    learn(directory)
except OSError as error:
    print(fail(directory, error))
print((disk / "run" / "status.json").read_text())
"""


@pytest.mark.slow
@pytest.mark.parametrize("read_only", [False, True], ids=["full", "read-only"])
def test_a_real_disk_that_cannot_be_written(tmp_path: Path, read_only: bool) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=600k tmpfs {disk}" + (f" && mount -o remount,ro {disk}" if read_only else "")
    program = f"{mount} || exit 99; exec {sys.executable} -c '{SMALL_DISK}' {disk}"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", program]
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare")
    root = Path(__file__).parents[3]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment(), check=False)
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("no disk can be mounted here")

    if read_only:
        assert f"OSError: [Errno {errno.EROFS}] Read-only file system: '{disk / 'run'}'" in done.stderr
    else:
        said = done.stdout + done.stderr  # in the status, if there is room for that, and else as an error
        assert "No space left on device" in said
        assert NO_ROOM in said


def test_memory_that_runs_out_is_the_reason(finished: Path, tmp_path: Path, monkeypatch: Any) -> None:
    learn = compiled_learner.CompiledLearner._learn

    def run_out(self: Any, samples: Any, steps: slice, observations: Any, *rest: Any) -> None:
        if observations.first_step == 90:
            np.zeros(2**50)
        learn(self, samples, steps, observations, *rest)

    with monkeypatch.context() as little:
        little.setattr(compiled_learner.CompiledLearner, "_learn", run_out)
        assert run_one(config_of(), tmp_path) == "failed"

    status = read_json(tmp_path / "status.json")
    assert status["reason"].endswith(NO_MEMORY)
    assert "Error: Unable to allocate 8.00 PiB" in status["reason"]
    assert status["step"] == len(load_runs(tmp_path).samples) == 90
    assert run_one(config_of(), tmp_path) == "finished"
    assert_same_run(tmp_path, finished)


def test_a_run_whose_folder_is_moved_does_not_make_it_anew(tmp_path: Path) -> None:
    run = tmp_path / "run"
    directory = RunDirectory(run)
    directory.start({})
    directory.observe(portion(0, 5))
    directory.checkpoint(save, ENGINE)
    run.rename(tmp_path / "moved")
    before = files_of(tmp_path)
    directory.observe(portion(5, 5))

    moved = f"[Errno {errno.ENOENT}] The run's folder was moved or removed: '{run}'"
    with pytest.raises(FileNotFoundError, match=exactly(moved)) as caught:
        directory.checkpoint(save, ENGINE)
    reason = f"FileNotFoundError: {moved}. A file is missing: bring it back; {GOES_ON}"
    with pytest.raises(OSError, match=exactly(f"{reason}; its status could not be written ({moved})")):
        fail(directory, caught.value)

    assert files_of(tmp_path) == before


def test_a_clock_that_jumps_does_not_change_how_long_a_run_took(tmp_path: Path, monkeypatch: Any) -> None:
    class Jumping(datetime):
        years = iter((2030, 1999, 2020))

        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(next(cls.years), 1, 1, tzinfo=UTC)

    monkeypatch.setattr(recording, "datetime", Jumping)
    monkeypatch.setattr(time, "time", lambda: -1e9)
    directory, heartbeats, times = RunDirectory(tmp_path), [], []
    directory.start({})
    for last in (False, True):
        status = read_json(tmp_path / "status.json")
        heartbeats.append(status["heartbeat"])
        times.append(status["wall_time"])
        if last:
            directory.finish("finished", None, ENGINE)
        else:
            directory.observe(portion(0, 5))
            directory.checkpoint(save, ENGINE)
    times.append(read_json(tmp_path / "status.json")["wall_time"])

    assert heartbeats == ["2030-01-01T00:00:00+00:00", "1999-01-01T00:00:00+00:00"]
    assert 0 <= times[0] <= times[1] <= times[2] < 60


# -------------------------------------------------------------------------------------------------- strangers' folders


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("go_on", [False, True])
def test_a_link_in_a_run_directory_leads_nowhere(tmp_path: Path, name: str, go_on: bool) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    with_parts(run)
    progress = read_json(run / "checkpoint.pt")
    shutil.rmtree(run / name)
    outside.mkdir()
    (outside / "part-00007.parquet").write_text("somebody's")
    (outside / ".mine.tmp").write_text("somebody's")
    (run / name).symlink_to(outside)
    before = files_of(outside)

    directory = RunDirectory(run)
    directory.resume(progress) if go_on else directory.start({})
    directory.observe(portion(10, 2))
    if go_on:
        message = f"'{run / name}' is a link, and nothing is written through it; put a folder in its place"
        with pytest.raises(FileExistsError, match=exactly(message)):
            directory.checkpoint(save, ENGINE)
    else:
        directory.finish("finished", None, ENGINE)

    assert files_of(outside) == before


@pytest.mark.parametrize("name", ["config.json", "status.json", "samples.parquet", "checkpoint.pt"])
def test_a_link_to_a_file_is_replaced_and_not_followed(tmp_path: Path, name: str) -> None:
    run, outside = tmp_path / "run", tmp_path / "somebodys"
    run.mkdir()
    outside.write_text("somebody's")
    (run / name).symlink_to(outside)
    (run / f".{name}.{os.getpid()}.tmp").symlink_to(outside)

    with_parts(run).finish("finished", None, ENGINE)

    assert outside.read_text() == "somebody's"
    assert not (run / name).is_symlink()


def test_links_that_lead_back_do_not_keep_the_analysis_busy(finished: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for link in ("c", "d"):
            (tmp_path / folder / link).symlink_to(tmp_path)
    shutil.copytree(finished, tmp_path / "run")

    assert len(load_runs(tmp_path)) == 1


# --------------------------------------------------------------------------------------------------------- long streams


def test_tables_do_not_depend_on_their_parts(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(tables, "ROW_GROUP", 16)
    for name, n in (("few", 40), ("many", 5)):
        directory = RunDirectory(tmp_path / name)
        directory.start({})
        for first in range(0, 80, n):
            directory.observe(portion(first, n))
            directory.checkpoint(save, ENGINE)
        add_experience(directory, 0)
        directory.finish("finished", None, ENGINE)

    few, many = (
        {name: (tmp_path / run / f"{name}.parquet").read_bytes() for name in TABLES} for run in ("few", "many")
    )
    assert few == many
    assert pq.ParquetFile(tmp_path / "few" / "samples.parquet").num_row_groups == 5
    assert read_tables(tmp_path / "few")["samples"]["step"].to_pylist() == list(range(80))
    assert ROW_GROUP < 10**6


def test_many_rows_are_written_whatever_the_time(finished: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(under_way, "MAX_UNSAVED", 30)
    n_parts = []
    write = RunDirectory.checkpoint
    monkeypatch.setattr(
        RunDirectory, "checkpoint", lambda self, *rest: (n_parts.append(self.n_unsaved), write(self, *rest))
    )

    assert run_one(config_of(), tmp_path) == "finished"

    assert n_parts
    assert all(30 < n < 80 for n in n_parts)
    assert_same_run(tmp_path, finished)


def test_thinned_samples_are_still_counted(finished: Path, tmp_path: Path) -> None:
    config = config_of().model_copy(update={"record_samples_every": 7})
    assert config.run_id != config_of().run_id
    assert config.model_copy(update={"record_samples_every": 1}).run_id == config_of().run_id
    assert run_one(config, tmp_path, should_stop=stop_at(3)) == "failed"
    assert run_one(config, tmp_path) == "finished"

    ours, theirs = read_tables(tmp_path), read_tables(finished)
    assert ours["samples"].equals(theirs["samples"].take(list(range(0, 150, 7))))
    assert all(ours[name].equals(theirs[name]) for name in ("step_sizes", "measurements", "experiences"))
    n_correct = sum(theirs["samples"]["correct"].to_pylist())
    assert read_json(tmp_path / "status.json")["n_correct"] == n_correct
    assert read_json(finished / "status.json")["n_correct"] == n_correct
    for number, row in enumerate(theirs["experiences"].to_pylist()):
        losses = theirs["samples"]["loss"].to_numpy()[50 * number : 50 * (number + 1)]
        assert row["mean_loss"] == pytest.approx(losses.mean(), rel=1e-6)


# ---------------------------------------------------------------------------------------------------------------- data
