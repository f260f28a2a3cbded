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

from continual_metaopt.runs.components import Component
from continual_metaopt.runs.facts import describe_software
from continual_metaopt.runs.files import read_json
from continual_metaopt.runs.run import run_one
from continual_metaopt.streams import sources
from continual_metaopt.study.backends import ray as backend
from continual_metaopt.study.backends.ray import RayPool
from continual_metaopt.study.expand import Study
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


def test_nodes_that_cannot_do_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, mark = describe_software(), tmp_path / "mark"
    mark.touch()
    backend._check_node(here | {"source_revision": None}, mark)
    monkeypatch.setattr(backend.socket, "gethostname", lambda: "n17")
    message = (
        f"the node n17 has numpy {here['numpy']} instead of 1.0; results would not be comparable. Install the same "
        "versions on all nodes"
    )
    with pytest.raises(BackendError, match=exactly(message)):
        backend._check_node(here | {"numpy": "1.0"}, mark)
    mark.unlink()
    message = f"the node n17 does not see the study's folder '{tmp_path}'; choose one that all nodes share with --out"
    with pytest.raises(BackendError, match=exactly(message)):
        backend._check_node(here, mark)


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    message = "the backend ray needs the package ray: in the clone, pip install -e '.[ray]', or use --backend local"
    with pytest.raises(BackendError, match=exactly(message)):
        RayPool("auto", None, 1, show_progress=False, folder=tmp_path)


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


def study_on(cluster: Any, folder: Path, **changes: Any) -> Study:
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
    assert_same_records(result.runs, run_study(study, tmp_path / "here", workers=1).runs)


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_a_lost_node_and_images_sent_once_to_each(cluster: Any, tmp_path: Path) -> None:
    import ray
    from ray._private.internal_api import node_stats

    noise = np.random.default_rng(0).integers(0, 255, (400, 32, 32, 3), dtype=np.uint8)
    images = write_parquet(tmp_path / "train.parquet", [encode(image) for image in noise], [i % 10 for i in range(400)])
    study = study_on(cluster, tmp_path, stream={"source": f"parquet:{images}"}, seeds=[0, 1, 2])
    expected = run_study(study, tmp_path / "here", workers=1)
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
def test_a_failed_run_and_a_folder_that_nodes_do_not_see(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_on(cluster, tmp_path, seeds=[0])
    go_on(cluster)
    good = study.learners[0].run(0, study.learners[0].untuned)
    bad = good.model_copy(update={"learner": Component(name="torch:SGD", lr=-1.0)})
    failed = pytest.raises(RunsFailed, match=r"^1 of 2 runs failed:\n.*Invalid learning rate: -1.0")
    with RayPool(cluster.address, 1, 2, show_progress=False, folder=tmp_path / "out") as pool, failed:
        pool.run([(bad, tmp_path / "out" / "bad"), (good, tmp_path / "out" / "good")], "runs")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["bad", "good"]
    assert run_one(good, tmp_path / "good") == "finished"
    assert_same_records([tmp_path / "out" / "good"], [tmp_path / "good"])

    monkeypatch.setattr(Path, "touch", lambda path, exist_ok: None)
    unseen = pytest.raises(BackendError, match=r"^the node .+ does not see the study's folder '.+/out'; choose one")
    with unseen, RayPool(cluster.address, 1, 2, show_progress=False, folder=tmp_path / "out"):
        pass
