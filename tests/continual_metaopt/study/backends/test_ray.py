"""Runs on a Ray cluster: several nodes on this machine, one of which is lost in the middle."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from continual_metaopt.runs import under_way
from continual_metaopt.runs.components import Component
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.facts import describe_software
from continual_metaopt.runs.files import read_json
from continual_metaopt.runs.outcome import never, no_progress
from continual_metaopt.runs.run import do_run
from continual_metaopt.streams import sources
from continual_metaopt.study.backends import ray as backend
from continual_metaopt.study.backends.ray import RayPool
from continual_metaopt.study.config import StudyConfig
from continual_metaopt.study.jobs import BackendError, RunsFailed
from tests.continual_metaopt.conftest import STREAM, environment, exactly, read_tables, write_study
from tests.streams.synthetic import encode, write_parquet
from tests.studies import load_study, run_study

# What runs on nodes of the test do besides: note where they begin, save themselves at every report, and go no further
# than the first until they may
PACE = """
import os, time
if "PACE" in os.environ:
    import ray
    from continual_metaopt.runs.under_way import RunUnderWay as Run
    from continual_metaopt.runs import under_way
    under_way.CHECKPOINT_SECONDS = 0.0
    begin, report = Run.begin, Run.report
    def noted(self, checkpoint, *others):
        begin(self, checkpoint, *others)
        with open(os.environ["PACE"], "a") as file:
            file.write(f"{self.config.run_id} {ray.get_runtime_context().get_node_id()} {self.n_samples}\\n")
    def paced(self):
        report(self)
        while not os.path.exists(os.environ["PACE"] + ".go"):
            time.sleep(0.2)
            report(self)
    Run.begin, Run.report = noted, paced
"""


def config_of(**changes: Any) -> RunConfig:
    return RunConfig(**{"stream": STREAM, "network": {"name": "mlp", "hidden": [8]}, **changes}).resolved()


class NoReporter:
    """Stands in for the one that talks to the command; stops a run after some samples."""

    stop_at = 10**9

    def __init__(self, name: str, messages: Any) -> None:
        self.done = 0

    def tell(self, done: int, total: int) -> None:
        self.done = done

    def should_stop(self) -> bool:
        return self.done >= self.stop_at

    def end(self) -> None:
        pass


def task_of(config: RunConfig, path: Path, **changes: Any) -> Any:
    token = (path.parent / backend.TOKEN, "token")
    return replace(
        backend._Task(config, path, token, str(Path.cwd()), describe_software(), [], {}),
        **changes,
    )


def test_runs_come_back_from_nodes_that_do_not_see_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_Reporter", NoReporter)
    config, path, whole = config_of(), tmp_path / "runs" / "run", tmp_path / "whole"
    assert do_run(config, whole, no_progress, never) is None

    monkeypatch.setattr(NoReporter, "stop_at", 80)
    stopped = backend._do(task_of(config, path), None)
    assert stopped.failure == "interrupted by the user"
    assert not path.exists()
    backend._replace(path, stopped.files, set())
    assert (path / "checkpoint.npz").exists()
    (tmp_path / "private").write_text("mine")
    (path / "notes.txt").write_text("mine")
    (path / "samples" / "link").symlink_to(tmp_path / "private")

    monkeypatch.setattr(NoReporter, "stop_at", 10**9)
    began = []
    begin = under_way.RunUnderWay.begin
    monkeypatch.setattr(
        under_way.RunUnderWay,
        "begin",
        lambda run, checkpoint, *others: began.append(checkpoint) or begin(run, checkpoint, *others),
    )
    earlier = backend._files_of(path)
    assert b"mine" not in earlier.values()
    finished = backend._do(task_of(config, path, earlier=earlier), None)
    backend._replace(path, finished.files, set(earlier))
    assert finished.failure is None
    assert (path / "notes.txt").read_text() == (path / "samples" / "link").read_text() == "mine"
    assert not list(path.glob("*/part-*")) + list(path.glob("checkpoint.*"))
    assert [checkpoint["n_samples"] for checkpoint in began] == [80]
    assert backend._files_of(path).keys() == backend._files_of(whole).keys()
    assert read_tables(path) == read_tables(whole)


def test_a_node_that_sees_the_folder_writes_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_Reporter", NoReporter)
    (tmp_path / backend.TOKEN).symlink_to("elsewhere")
    token = backend._write_token(tmp_path)
    assert not (tmp_path / "elsewhere").exists()
    assert token[0].read_text() == token[1]
    outcome = backend._do(task_of(config_of(), tmp_path / "run", token=token), None)
    assert outcome == backend._Outcome(None, None)
    assert read_json(tmp_path / "run" / "status.json")["state"] == "finished"


def test_nothing_is_written_outside_of_a_run_directory(tmp_path: Path) -> None:
    message = "a node sent a file that is not in its run directory: '../other'"
    with pytest.raises(OSError, match=exactly(message)):
        backend._replace(tmp_path / "run", {"../other": b""}, set())
    assert list(tmp_path.iterdir()) == []


def test_other_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    here = describe_software()
    backend._check_versions(here | {"source_revision": None})
    monkeypatch.setattr(backend.socket, "gethostname", lambda: "n17")
    message = (
        f"the node n17 has numpy {here['numpy']} instead of 1.0; results would not be comparable. Install the same "
        "versions on all nodes"
    )
    with pytest.raises(BackendError, match=exactly(message)):
        backend._check_versions(here | {"numpy": "1.0"})


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    message = "the backend ray needs the package ray: pip install 'continual-metaopt[ray]', or use --backend local"
    with pytest.raises(BackendError, match=exactly(message)):
        RayPool("auto", None, 1, show_progress=False, folder=tmp_path)


def test_side_by_side_is_of_one_machine(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path / "study.yaml", {"engine": "population"}))
    message = "engine: population lets runs learn side by side on this machine; use --backend local"
    with pytest.raises(BackendError, match=exactly(message)):
        run_study(study, tmp_path / "out", backend=lambda n_runs, folder: pytest.fail("made"))


def test_images_from_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_senders", {})
    with sources.sources_loaded() as loaded:
        digits = sources.load_source("digits")
    (arguments,) = loaded
    sent = []
    sources.receive_source(arguments, lambda: sent.append(1) or replace(digits))
    received = [sources.load_source("digits") for _ in range(2)]
    assert received[0] is received[1] is not digits
    assert sent == [1]
    sources._received.cache_clear()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A node without processors, where the command is given, and two that do a run each."""
    ray, cluster_utils = pytest.importorskip("ray"), pytest.importorskip("ray.cluster_utils")
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "pace.py").write_text(PACE, encoding="utf-8")
    path = os.pathsep.join([str(folder), environment()["PYTHONPATH"]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        patch.setenv("RAY_worker_niceness", "0")  # these tests wait for the workers
        patch.setenv("RAY_health_check_period_ms", "1000")
        patch.setenv("RAY_health_check_failure_threshold", "12")
        patch.syspath_prepend(str(folder))
        cluster = cluster_utils.Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        cluster.folder = folder
        for name in ("a", "b"):
            own = {"CONTINUAL_METAOPT_CACHE": str(folder / f"cache-{name}"), "PACE": str(folder / "pace.log")}
            cluster.add_node(num_cpus=1, object_store_memory=100 * 10**6, env_vars=own)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def study_on(cluster: Any, folder: Path, **changes: Any) -> StudyConfig:
    for name in ("pace.log", "pace.log.go"):
        (cluster.folder / name).unlink(missing_ok=True)
    stream = {**STREAM, "n_experiences": 8, **changes.pop("stream", {})}
    learner = {"label": "learned", "name": "metaoptimize", "lr": 0.001, "step_sizes": "scalar"}
    content = {"imports": ["pace"], "stream": stream, "learners": [learner], **changes}
    return load_study(write_study(folder / "study.yaml", content))


def begun(cluster: Any) -> list[tuple[str, str, int]]:
    """Run, node, and number of samples it had learned from, of each beginning of a run."""
    log = cluster.folder / "pace.log"
    lines = log.read_text(encoding="ascii").splitlines() if log.exists() else []
    return [(run, node, int(n)) for run, node, n in map(str.split, lines)]


def wait_for(what: Any, seconds: float = 300.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def go_on(cluster: Any) -> None:
    (cluster.folder / "pace.log.go").touch()


def assert_same_records(found: list[Path], expected: list[Path]) -> None:
    assert [path.name for path in found] == [path.name for path in expected]
    for path, other in zip(found, expected, strict=True):
        assert read_tables(path) == read_tables(other)
        configs = [read_json(run / "config.json") for run in (path, other)]
        assert configs[0] == configs[1]


def on(cluster: Any, workers: int | None = None) -> Any:
    return lambda n_runs, folder: RayPool(cluster.address, workers, n_runs, show_progress=False, folder=folder)


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_the_command_is_interrupted_and_killed_and_given_again(cluster: Any, tmp_path: Path) -> None:
    study, out = study_on(cluster, tmp_path), tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "continual_metaopt.commands.main",
        "compare",
        str(tmp_path / "study.yaml"),
        "--quiet",
    ]
    command += ["--out", str(out), "--backend", "ray", "--address", cluster.address]
    for number, stop in enumerate([signal.SIGINT, signal.SIGKILL], 1):
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            wait_for(
                lambda number=number, process=process: (
                    (len(begun(cluster)) == 2 * number and len(list(out.glob("runs/*/checkpoint.npz"))) == 2)
                    or process.poll() is not None
                )
            )
            process.send_signal(stop)
            _, said = process.communicate(timeout=300)
        statuses = [read_json(path) for path in out.glob("runs/*/status.json")]
        if stop == signal.SIGINT:
            assert (process.returncode, [status["reason"] for status in statuses]) == (
                130,
                ["interrupted by the user"] * 2,
            )
            assert said.endswith("the same command goes on from there.\n")
        else:
            assert [status["state"] for status in statuses] == ["running"] * 2

    go_on(cluster)
    result = run_study(study, out, backend=on(cluster))

    assert [n > 0 for _, _, n in begun(cluster)] == [False, False, True, True, True, True]
    assert_same_records(result.runs, run_study(study, tmp_path / "here", workers=1, show_progress=False).runs)


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_a_lost_node_and_images_sent_once_to_each(cluster: Any, tmp_path: Path) -> None:
    import ray
    from ray._private.internal_api import node_stats

    noise = np.random.default_rng(0).integers(0, 255, (400, 32, 32, 3), dtype=np.uint8)
    images = write_parquet(tmp_path / "train.parquet", [encode(image) for image in noise], [i % 10 for i in range(400)])
    study = study_on(cluster, tmp_path, stream={"source": f"parquet:{images}"}, seeds=[0, 1, 2])
    expected = run_study(study, tmp_path / "here", workers=1, show_progress=False)
    images.unlink()  # nodes have no such file

    results: list[Any] = []
    command = threading.Thread(
        target=lambda: results.append(run_study(study, tmp_path / "out", backend=on(cluster))), daemon=True
    )
    command.start()
    wait_for(lambda: len(list(tmp_path.glob("out/runs/*/checkpoint.npz"))) == 2)
    nodes = [node for node in ray.nodes() if node["Resources"].get("CPU")]
    stored = [
        node_stats(node["NodeManagerAddress"], node["NodeManagerPort"]).store_stats.object_store_bytes_used
        for node in nodes
    ]
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
    saved = list(tmp_path.glob("out/runs/*/checkpoint.npz"))
    # the processes of a lost node end soon, those of the other save themselves all the time
    wait_for(lambda: any(time.time() - path.stat().st_mtime > 4 for path in saved))
    go_on(cluster)
    command.join(300)

    (result,) = results
    assert_same_records(result.runs, expected.runs)
    beginnings = begun(cluster)
    of_run = {run: [(node, n) for other, node, n in beginnings if other == run] for run, _, _ in beginnings}
    moved = [begun for begun in of_run.values() if len({node for node, _ in begun}) > 1]
    assert all(begun[0][1] == 0 for begun in moved)
    # to the other node, from a checkpoint where there was one: a run may have just begun
    assert any(begun[-1][1] > 0 for begun in moved)
    size = noise.nbytes
    assert all(size <= used < 1.5 * size for used in stored)  # one copy, however many processes
    assert not list(cluster.folder.glob("cache-*/decoded_images"))  # nor has a node decoded anything


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_nodes_that_do_not_share_the_folder(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_write_token", lambda folder: (folder / "no file", "content"))
    study = study_on(cluster, tmp_path, seeds=[0])
    go_on(cluster)
    good = study.run(study.learners[0], study.learners[0].untuned, 0, "report")
    bad = good.model_copy(update={"learner": Component(name="torch:SGD", lr=-1.0)})
    failed = pytest.raises(RunsFailed, match=r"^1 of 2 runs failed:\n.*Invalid learning rate: -1.0")
    with RayPool(cluster.address, 1, 2, show_progress=False, folder=tmp_path / "there") as pool, failed:
        pool.run([(bad, tmp_path / "bad"), (good, tmp_path / "there" / "runs" / "good")], "runs")
    assert do_run(good, tmp_path / "good", no_progress, never) is None
    assert_same_records([tmp_path / "there" / "runs" / "good"], [tmp_path / "good"])
