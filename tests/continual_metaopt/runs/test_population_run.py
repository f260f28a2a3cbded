"""Runs side by side: the same records as the runs would leave one by one, and the same ways to stop and go on."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from continual_metaopt import register_network
from continual_metaopt.engines import population_engine, torch_engine
from continual_metaopt.runs import population_run as population
from continual_metaopt.runs import under_way
from continual_metaopt.runs.components import Component
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.files import read_json
from continual_metaopt.runs.outcome import NO_MEMORY
from continual_metaopt.runs.population_run import run_population
from continual_metaopt.runs.run import run_one
from tests.continual_metaopt.conftest import exactly, files_of, read_tables
from tests.continual_metaopt.runs.test_learner_run import STATUS_KEYS, stop_at

pytestmark = pytest.mark.slow  # together

N_SAMPLES, PORTION = 150, 20
ENGINE = {"name": "population", "reason": "3 runs side by side on cpu"}


ONE_TRACE = {"gamma": 0.999, "trace": "hessian_free"}  # what populations have


def config_of(
    *, seed: int = 0, network: dict[str, Any] | None = None, stream: dict[str, Any] | None = None, **learner: Any
) -> RunConfig:
    return RunConfig(
        stream=Component(
            **stream or {"name": "permuted_inputs", "n_experiences": 3, "samples_per_experience": 50},
        ),
        network=Component(**network or {"name": "mlp", "hidden": [8]}),
        learner=Component(**{"name": "metaoptimize", "lr": 3e-3} | ONE_TRACE | learner),
        seed=seed,
        engine="torch",
        record_every=10,
        study="a study",
    ).resolved()


CONFIGS = [config_of(), config_of(seed=1, lr=1e-3, gamma=0.9), config_of(seed=1, lr=1e-2, meta_lr=0.0)]


@pytest.fixture(autouse=True)
def _small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(population, "FIRST_PORTION", PORTION)
    monkeypatch.setattr(population, "MAX_SAMPLES", PORTION)
    monkeypatch.setattr(population, "MAX_SECONDS", 600.0)


def folders(path: Path, configs: list[RunConfig] = CONFIGS) -> list[Path]:
    return [path / f"run{number}" for number in range(len(configs))]


def side_by_side(path: Path, configs: list[RunConfig] = CONFIGS, **options: Any) -> list[str]:
    return run_population(configs, folders(path, configs), **options)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same runs, one by one."""
    paths = folders(tmp_path_factory.mktemp("alone"))
    assert [run_one(config, path) for config, path in zip(CONFIGS, paths, strict=True)] == ["finished"] * 3
    return paths


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The runs side by side, never interrupted."""
    path = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(population, "FIRST_PORTION", PORTION)
        monkeypatch.setattr(population, "MAX_SAMPLES", PORTION)
        assert side_by_side(path) == ["finished"] * 3
    return folders(path)


def assert_close_tables(path: Path, expected: Path) -> None:
    """The same rows, their floating-point numbers up to rounding."""
    ours, theirs = read_tables(path), read_tables(expected)
    for name, table in theirs.items():
        assert ours[name].schema == table.schema
        for column in table.column_names:
            found, wanted = ours[name][column].to_pylist(), table[column].to_pylist()
            if pa.types.is_floating(table.schema.field(column).type):
                found, wanted = ([math.nan if value is None else value for value in row] for row in (found, wanted))
                wanted = pytest.approx(wanted, rel=1e-4, abs=1e-6, nan_ok=True)
            assert found == wanted, (name, column)


def assert_equal_tables(path: Path, expected: Path) -> None:
    ours, theirs = read_tables(path), read_tables(expected)
    assert all(ours[name].equals(table) for name, table in theirs.items())


# ---------------------------------------------------------------------------------------------------------- the records


def test_runs_leave_the_records_they_would_leave_alone(finished: list[Path], alone: list[Path]) -> None:
    for path, expected in zip(finished, alone, strict=True):
        assert {file.name for file in path.iterdir()} == {file.name for file in expected.iterdir()}
        assert read_json(path / "config.json") == read_json(expected / "config.json")
        assert_close_tables(path, expected)


def test_status_tells_the_engine(finished: list[Path]) -> None:
    for path in finished:
        status = read_json(path / "status.json")
        assert status.keys() == STATUS_KEYS
        assert (status["state"], status["reason"], status["step"]) == ("finished", None, N_SAMPLES)
        assert status["engine"] == ENGINE
        assert status["wall_time"] > 0
        assert status["samples_per_second"] > 0


def test_experiences_may_end_at_different_samples(tmp_path: Path) -> None:
    streams = [
        {"name": "permuted_inputs", "n_experiences": n, "samples_per_experience": N_SAMPLES // n} for n in (2, 3, 5)
    ]
    configs = [config_of(stream=stream) for stream in streams]
    configs[0] = configs[0].model_copy(update={"evaluate": False})

    assert side_by_side(tmp_path / "together", configs) == ["finished"] * 3

    for number, path in enumerate(folders(tmp_path / "together", configs)):
        run_one(configs[number], tmp_path / "alone" / str(number))
        assert_close_tables(path, tmp_path / "alone" / str(number))


def test_streams_may_have_different_lengths(tmp_path: Path) -> None:
    streams = [{"name": "permuted_inputs", "n_experiences": 3, "samples_per_experience": n} for n in (20, 50)]
    configs = [config_of(stream=stream) for stream in streams]

    assert side_by_side(tmp_path, configs) == ["finished"] * 2

    for path, n in zip(folders(tmp_path, configs), (20, 50), strict=True):
        assert read_tables(path)["samples"]["step"].to_pylist() == list(range(3 * n))
        assert read_tables(path)["experiences"]["n_samples"].to_pylist() == [n] * 3


def test_progress_is_told_in_samples_of_all_runs(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    side_by_side(tmp_path, on_progress=lambda done, total: told.append((done, total)))

    assert told == [(3 * done, 3 * N_SAMPLES) for done in (20, 40, 50, 70, 90, 100, 120, 140, 150)]


def test_portions_last_half_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(population, "MAX_SECONDS", 0.0)
    told: list[int] = []

    stream = {"name": "permuted_inputs", "n_experiences": 1, "samples_per_experience": 30}
    side_by_side(tmp_path, [config_of(stream=stream)], on_progress=lambda done, total: told.append(done))

    assert told == [20, *range(21, 31)]  # the first portion's length is given, then one sample takes too long
    monkeypatch.undo()
    assert (population.MAX_SAMPLES, population.MAX_SECONDS) == (1000, 0.5)


# ----------------------------------------------------------------------------------------------------------- divergence


@pytest.mark.parametrize("lr", [1e6, 1e30])
def test_a_run_that_diverges_ends_and_the_others_go_on(tmp_path: Path, alone: list[Path], lr: float) -> None:
    wild = config_of(base="sgd", lr=lr, meta_lr=0.0, lr_bounds=(1e-10, 1e40))
    calm = config_of(base="sgd", seed=1)
    configs = [calm, wild, calm.model_copy(update={"seed": 2})]

    assert side_by_side(tmp_path, configs) == ["finished", "diverged", "finished"]

    for number, path in enumerate(folders(tmp_path, configs)):
        expected = tmp_path / f"alone{number}"
        run_one(configs[number], expected)
        ours, theirs = read_json(path / "status.json"), read_json(expected / "status.json")
        assert [ours[key] for key in ("state", "reason", "step")] == [
            theirs[key] for key in ("state", "reason", "step")
        ]
        assert ours["engine"] == ENGINE
        assert {file.name for file in path.iterdir()} == {file.name for file in expected.iterdir()}
        if number != 1:
            assert_close_tables(path, expected)
    samples = read_tables(tmp_path / "run1")["samples"]
    assert 0 < samples.num_rows < N_SAMPLES
    assert all(map(math.isfinite, samples["loss"].to_pylist()))


def test_all_runs_may_diverge(tmp_path: Path) -> None:
    configs = [config_of(base="sgd", lr=1e30, meta_lr=0.0, seed=seed) for seed in range(2)]

    assert side_by_side(tmp_path, configs) == ["diverged"] * 2


# ------------------------------------------------------------------------------------------------ stopping and going on


@pytest.mark.parametrize("stops", [[3], [4], [1, 1, 7]])
def test_interrupted_runs_go_on_as_if_nothing_had_happened(
    finished: list[Path], tmp_path: Path, stops: list[int]
) -> None:
    for stop in stops:
        assert side_by_side(tmp_path, should_stop=stop_at(stop)) == ["failed"] * 3
        for path in folders(tmp_path):
            status = read_json(path / "status.json")
            assert (status["reason"], status["engine"]) == ("interrupted by the user", ENGINE)
            assert (path / "checkpoint.pt").exists()

    assert side_by_side(tmp_path) == ["finished"] * 3

    for path, expected in zip(folders(tmp_path), finished, strict=True):
        assert_equal_tables(path, expected)
        assert not any(file.is_dir() for file in path.iterdir())


def test_a_run_can_be_gone_on_with_alone(alone: list[Path], tmp_path: Path) -> None:
    side_by_side(tmp_path, should_stop=stop_at(4))

    for config, path, expected in zip(CONFIGS, folders(tmp_path), alone, strict=True):
        assert run_one(config, path) == "finished"
        assert_close_tables(path, expected)
        assert read_json(path / "status.json")["engine"] == {"name": "torch", "reason": "asked for"}


def test_runs_that_stopped_at_different_samples_are_brought_level(
    alone: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run stopped in the first experience, one at the end of the second, and one has not begun."""
    monkeypatch.setattr(torch_engine, "MAX_SAMPLES", 50)
    monkeypatch.setattr(torch_engine, "MAX_SECONDS", 600.0)
    run_one(CONFIGS[0], tmp_path / "run0", should_stop=stop_at(2))
    monkeypatch.setattr(torch_engine, "MAX_SAMPLES", 30)
    run_one(CONFIGS[1], tmp_path / "run1", should_stop=stop_at(1))
    steps = [read_json(tmp_path / name / "status.json")["step"] for name in ("run0", "run1")]
    assert steps == [100, 30]

    assert side_by_side(tmp_path) == ["finished"] * 3

    for path, expected in zip(folders(tmp_path), alone, strict=True):
        assert_close_tables(path, expected)


def test_checkpoints_are_those_of_single_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_engine, "MAX_SAMPLES", PORTION)
    monkeypatch.setattr(torch_engine, "MAX_SECONDS", 600.0)
    side_by_side(tmp_path, should_stop=stop_at(4))
    for config, path in zip(CONFIGS, folders(tmp_path), strict=True):
        expected = tmp_path / f"{path.name} alone"
        run_one(config, expected, should_stop=stop_at(4))
        ours, theirs = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (path, expected))
        assert list(ours) == list(theirs)
        for key in ("run_id", "n_samples", "n_correct", "n_ended", "n_correct_in_experience"):
            assert ours[key] == theirs[key]
        assert torch.equal(ours["random"], theirs["random"])
        torch.testing.assert_close(ours["model"], theirs["model"], rtol=1e-4, atol=1e-6)
        assert ours["optimizer"]["state"].keys() == theirs["optimizer"]["state"].keys()


def test_killed_runs_go_on_from_their_last_checkpoint(
    finished: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_way, "CHECKPOINT_SECONDS", 0.0)

    class Killed(BaseException):
        pass

    def told(done: int, total: int) -> None:
        if done == 3 * 90:
            raise Killed

    with pytest.raises(Killed):
        side_by_side(tmp_path, on_progress=told)
    assert {read_json(path / "status.json")["step"] for path in folders(tmp_path)} == {70}

    assert side_by_side(tmp_path) == ["finished"] * 3

    for path, expected in zip(folders(tmp_path), finished, strict=True):
        assert_equal_tables(path, expected)


# ---------------------------------------------------------------------------------- what is already there, and mistakes


def test_runs_that_have_ended_are_not_run_again(finished: list[Path]) -> None:
    files = [files_of(path) for path in finished]

    assert run_population(CONFIGS, finished, should_stop=lambda: pytest.fail("it ran")) == ["finished"] * 3

    assert [files_of(path) for path in finished] == files


def test_another_runs_directory_is_refused(finished: list[Path], tmp_path: Path) -> None:
    message = f"'{finished[0]}' already holds another run ({CONFIGS[0].run_id}); choose another folder with --out"

    with pytest.raises(FileExistsError, match=exactly(message)):
        run_population([config_of(seed=9), config_of()], [finished[0], tmp_path / "new"])

    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": {"name": "mlp", "hidden": [9]}}, "replica 1 differs from replica 0 in its network: "),
        ({"base": "lion"}, "replica 1 differs from replica 0 in its base update: "),
        ({"step_sizes": "scalar"}, "replica 1 differs from replica 0 in its blocks: "),
    ],
)
def test_runs_that_cannot_be_done_side_by_side(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        side_by_side(tmp_path, [config_of(), config_of(**changes)])

    assert not list(tmp_path.rglob("*.json"))


def test_diagnostics_are_not_measured_side_by_side(tmp_path: Path) -> None:
    config = config_of().model_copy(update={"diagnostics": ("plasticity",)})
    message = "runs with diagnostics cannot be done side by side; do each by itself"

    with pytest.raises(ValueError, match=exactly(message)):
        side_by_side(tmp_path, [config, config_of(seed=5)])

    assert not list(tmp_path.rglob("*.json"))


def test_two_runs_in_one_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=exactly("each run needs a directory of its own")):
        run_population(CONFIGS[:2], [tmp_path / "a", tmp_path / "b" / ".." / "a"])


def test_a_run_that_cannot_begin_leaves_the_others_alone(tmp_path: Path) -> None:
    missing = RunConfig(
        stream=Component(name="permuted_inputs", source=f"parquet:{tmp_path / 'nothing'}"),
        network=CONFIGS[0].network,
        learner=CONFIGS[0].learner,
    ).resolved()

    assert side_by_side(tmp_path, [missing, config_of()]) == ["failed", "finished"]

    assert read_json(tmp_path / "run0" / "status.json")["reason"].startswith("FileNotFoundError: no parquet file")


def test_an_error_is_recorded_and_tried_again(
    finished: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(self: Any, *args: Any) -> Any:
        if self.n_samples == 70:
            raise RuntimeError("out of memory")
        return learn(self, *args)

    learn = population_engine.Population.learn
    with monkeypatch.context() as failing:
        failing.setattr(population_engine.Population, "learn", out_of_memory)
        assert side_by_side(tmp_path) == ["failed"] * 3
    for path in folders(tmp_path):
        status = read_json(path / "status.json")
        assert (status["reason"], status["step"]) == (f"RuntimeError: out of memory. {NO_MEMORY}", 70)

    assert side_by_side(tmp_path) == ["finished"] * 3

    for path, expected in zip(folders(tmp_path), finished, strict=True):
        assert_equal_tables(path, expected)


@pytest.mark.usefixtures("registries")
def test_networks_that_draw_random_numbers_are_refused(tmp_path: Path) -> None:
    @register_network("dropping")
    def dropping(n_outputs: int, input_shape: tuple[int, int, int]) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(64, n_outputs))

    assert side_by_side(tmp_path, [config_of(network={"name": "dropping"})]) == ["failed"]

    reason = read_json(tmp_path / "run0" / "status.json")["reason"]
    assert reason.startswith("ValueError: the network draws random numbers while it learns, as dropout does")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_runs_on_a_gpu_leave_the_same_records_up_to_rounding(alone: list[Path], tmp_path: Path) -> None:
    assert side_by_side(tmp_path, device="cuda") == ["finished"] * 3

    for path, expected in zip(folders(tmp_path), alone, strict=True):
        ours, theirs = (read_tables(folder)["samples"]["loss"].to_pylist() for folder in (path, expected))
        assert ours[:30] == pytest.approx(theirs[:30], rel=1e-3)
        assert read_json(path / "status.json")["engine"]["reason"] == "3 runs side by side on cuda"
