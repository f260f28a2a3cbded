"""Which settings are tried: grids, random draws and TPE, each the same for the same study, learner and scores."""

import importlib.util
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from continual_metaopt.analysis import comparison_table, load_runs
from continual_metaopt.commands import main as cli
from continual_metaopt.optim.registry import is_inside, search_space
from continual_metaopt.runs.components import ConfigError
from continual_metaopt.runs.files import read_json
from continual_metaopt.study.config import Search, Setting
from continual_metaopt.study.expand import Candidate, Study
from continual_metaopt.study.settings import next_settings, positions_of_best
from tests.continual_metaopt.conftest import exactly, files_of, write_study
from tests.studies import load_study, run_study

SPACE: dict[str, list[Any]] = {"lr": [1e-5, 1e-1, "log"], "weight_decay": [0.0, 0.01, 0.1]}
UNTUNED = {"lr": 1e-3, "weight_decay": 0.01}
TUNING = {"trials": 3, "samples": 60, "stream": {"n_experiences": 2, "samples_per_experience": 30}}

needs_optuna = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="Optuna is not installed")
METHODS = ["random", pytest.param("tpe", marks=needs_optuna)]


def score(setting: Setting) -> float:
    return -abs(math.log10(setting["lr"]) + 2) - setting["weight_decay"]


def all_settings(search: Search, *names: str) -> list[Setting]:
    finished: list[tuple[Setting, float]] = []
    while new := next_settings(search, UNTUNED, finished, names):
        finished += [(setting, score(setting)) for setting in new]
    return [setting for setting, _ in finished]


def test_a_grid_is_every_combination_at_once() -> None:
    search = Search(method="grid", space={"lr": [0.1, 0.2], "weight_decay": [0.0, 1.0]})

    assert all_settings(search, "study", "learner") == [
        {"lr": lr, "weight_decay": decay} for lr in (0.1, 0.2) for decay in (0.0, 1.0)
    ]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("trials", [1, 2, 7])
def test_the_untuned_setting_comes_first_and_all_are_inside(method: Any, trials: int) -> None:
    settings = all_settings(Search(method=method, trials=trials, space=SPACE), "study", "learner")

    assert len(settings) == trials
    assert settings[0] == UNTUNED
    assert all(is_inside(SPACE[name], value) for setting in settings for name, value in setting.items())
    assert all(float(f"{setting['lr']:.3g}") == setting["lr"] for setting in settings)
    assert all(settings.count(setting) == 1 for setting in settings)


@pytest.mark.parametrize("method", METHODS)
def test_settings_follow_from_study_and_learner(method: Any) -> None:
    search = Search(method=method, trials=6, space=SPACE)

    assert all_settings(search, "study", "learner") == all_settings(search, "study", "learner")
    assert all_settings(search, "study", "other")[1:] != all_settings(search, "study", "learner")[1:]
    assert all_settings(search, "other", "learner")[1:] != all_settings(search, "study", "learner")[1:]


def test_random_settings_stay_the_same_in_later_versions() -> None:
    assert all_settings(Search(method="random", trials=3, space=SPACE), "study", "learner") == [
        {"lr": 0.001, "weight_decay": 0.01},
        {"lr": 0.0065, "weight_decay": 0.01},
        {"lr": 5.17e-05, "weight_decay": 0.0},
    ]


def test_more_trials_keep_the_first_ones() -> None:
    few, many = (all_settings(Search(method="random", trials=n, space=SPACE), "a", "b") for n in (4, 9))

    assert many[:4] == few


def test_random_step_sizes_are_uniform_in_their_logarithm() -> None:
    settings = all_settings(Search(method="random", trials=400, space=SPACE), "study", "learner")

    decades = [math.floor(math.log10(setting["lr"])) for setting in settings[1:]]
    assert all(70 <= decades.count(decade) <= 130 for decade in (-5, -4, -3, -2))
    decays = [setting["weight_decay"] for setting in settings[1:]]
    assert all(100 <= decays.count(value) <= 170 for value in SPACE["weight_decay"])


@pytest.mark.parametrize("method", METHODS)
def test_a_space_of_few_values_is_tried_once(method: Any) -> None:
    settings = all_settings(Search(method=method, trials=9, space={"weight_decay": [0.0, 0.01, 0.1]} | {"lr": [1e-3]}))

    assert sorted(setting["weight_decay"] for setting in settings) == [0.0, 0.01, 0.1]


@needs_optuna
def test_tpe_proposes_two_at_a_time_after_random_ones_and_comes_nearer() -> None:
    search, finished, rounds = Search(method="tpe", trials=31, space=SPACE), [], []
    while new := next_settings(search, UNTUNED, finished, ("study", "learner")):
        rounds.append(len(new))
        finished += [(setting, score(setting)) for setting in new]

    assert rounds == [10, *[2] * 10, 1]
    late = sum(value for _, value in finished[-10:]) / 10
    early = sum(value for _, value in finished[:10]) / 10
    assert late > early + 0.3


@needs_optuna
def test_tpe_depends_on_the_scores_and_bears_infinite_ones() -> None:
    search = Search(method="tpe", trials=9, space=SPACE)
    first = next_settings(search, UNTUNED, [], ("a", "b"))

    low, high = (
        next_settings(search, UNTUNED, [(s, sign * s["lr"]) for s in first[:-1]] + [(first[-1], -math.inf)], ("a", "b"))
        for sign in (-1, 1)
    )

    assert len(low) == len(high) == 2
    assert low != high


@needs_optuna
def test_tpe_bears_an_untuned_setting_from_outside() -> None:
    search = Search(method="tpe", trials=4, space=SPACE)
    finished = [({"lr": 7.0, "weight_decay": None}, 0.5), ({"lr": 1e-3, "weight_decay": 0.1}, 0.6)]

    assert len(next_settings(search, UNTUNED, finished, ("a", "b"))) == 2


# ------------------------------------------------------------------------------------------------------- in studies


def tuned_study(path: Path, **changes: Any) -> Study:
    learners = [{"label": "AdamW", "name": "fixed"}, {"name": "cocob"}]
    return load_study(write_study(path, {"tuning": TUNING, "learners": learners, **changes}))


def test_a_study_s_tuning_is_every_learner_s(tmp_path: Path) -> None:
    learners = [
        {"label": "AdamW", "name": "fixed", "lr": 0.02},
        {"name": "upgd", "tune": {"space": {"lr": [1e-3, 1e-2, "log"]}}},
        {"label": "grid", "name": "fixed", "tune": {"lr": [1e-3, 1e-2, 1e-1]}},
        {"label": "as it is", "name": "fixed", "tune": {}},
        {"label": "SGD", "name": "fixed", "base": "sgd"},
        {"name": "cocob"},
    ]
    study = tuned_study(tmp_path / "study.yaml", learners=learners)

    searches = [learner.search for learner in study.learners]
    assert [search and (search.method, search.trials, list(search.space)) for search in searches] == [
        ("random", 3, ["lr", "weight_decay"]),
        ("random", 3, ["lr"]),
        ("grid", 3, ["lr"]),
        None,
        ("random", 3, ["lr", "weight_decay"]),
        None,
    ]
    for position, base in [(0, None), (4, "sgd")]:
        search = searches[position]
        assert search is not None
        assert search.space == {name: list(values) for name, values in search_space("fixed", base).items()}
    assert study.learners[0].candidates[0].setting == {"lr": 0.02, "weight_decay": 0.01}


def test_selection_runs_are_on_a_shorter_stream(tmp_path: Path) -> None:
    study = tuned_study(tmp_path / "study.yaml")
    learner = study.learners[0]
    setting = {"lr": 0.1, "weight_decay": 0.0}

    trial = learner.run(100, Candidate(setting, learner.resolve(setting)), "selection")
    untuned = learner.run(0, learner.untuned)

    assert (trial.stream.options["n_experiences"], trial.stream.options["samples_per_experience"]) == (2, 30)
    assert (untuned.stream.options["n_experiences"], untuned.stream.options["samples_per_experience"]) == (3, 40)
    assert (trial.label, trial.entry, trial.tuned) == (
        "AdamW, lr = 0.1, weight_decay = 0.0",
        "AdamW",
        ("lr", "weight_decay"),
    )
    assert (untuned.label, untuned.entry, untuned.tuned) == ("AdamW", "AdamW", ())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"learners": [{"name": "fixed", "tune": {"lr": [0.1, 0.2]}}]},
            "learners.0.tune: tries 2 settings, but tuning.trials is 3; all learners have the same budget",
        ),
        (
            {"learners": [{"name": "fixed", "tune": {"method": "random", "trials": 9}}]},
            "learners.0.tune: tries 9 settings, but tuning.trials is 3; all learners have the same budget",
        ),
        (
            {"tuning": None, "learners": [{"name": "fixed", "tune": {"method": "random"}}]},
            "learners.0.tune.trials: needed where the study has no tuning",
        ),
        (
            {"learners": [{"name": "cocob", "tune": {"method": "random"}}]},
            "learners.0: the learner 'cocob' has nothing to tune; leave tune out",
        ),
        (
            {"learners": [{"name": "fixed", "tune": {"space": {"lrr": [0.1, 0.2]}}}]},
            "learners.0: learner.lrr: there is no such option",
        ),
        (
            {"learners": [{"name": "fixed", "tune": {"space": {"lr": [0.1, 0.01, "log"]}}}]},
            "learners.0.tune.search.space: lr: a range [low, high, log] needs 0 < low < high, not [0.1, 0.01, 'log'] "
            "(given: {'lr': [0.1, 0.01, 'log']})",
        ),
        (
            {"learners": [{"name": "fixed", "tune": {"method": "grid"}}]},
            "learners.0.tune.search: space: a grid needs the values to try (given: {'method': 'grid'})",
        ),
        (
            {"learners": [{"name": "fixed", "tune": {"method": "bayes"}}]},
            "learners.0.tune.search.method: Input should be 'grid', 'random' or 'tpe' (given: 'bayes')",
        ),
        (
            {"tuning": TUNING | {"best": 0}},
            "tuning.best: Input should be greater than or equal to 1 (given: 0)",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "study.yaml"

    with pytest.raises(ConfigError, match=exactly(f"{path}: {message}")):
        tuned_study(path, **changes)


def test_tpe_without_optuna_is_refused_before_anything_has_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "study.yaml"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = (
        f"{path}: learners.0: the method tpe needs the package optuna: in the clone, pip install -e '.[tpe]', "
        "or use the method random"
    )

    with pytest.raises(ConfigError, match=exactly(message)):
        tuned_study(path, tuning=TUNING | {"method": "tpe"})


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("method", METHODS)
def test_a_tuned_study_reports_the_untuned_setting_beside_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    study = tuned_study(tmp_path / "study.yaml", tuning=TUNING | {"method": method}, seeds=[0])
    out = tmp_path / "out"

    result = run_study(study, out, 1)

    configs = [read_json(path / "config.json") for path in result.selection]
    assert configs[0]["learner"]["lr"] == 1e-3
    assert {(c["seed"], c["entry"], tuple(c["tuned"]), c["stream_info"]["n_samples"]) for c in configs} == {
        (100, "AdamW", ("lr", "weight_decay"), 60)
    }
    assert len(configs) == 3
    reported = [read_json(path / "config.json") for path in result.runs]
    assert [(c["entry"], c["tuned"], c["order"]) for c in reported] == [
        ("AdamW", [], 0),
        ("AdamW", ["lr", "weight_decay"], 0),
        ("cocob", [], 1),
    ]
    assert reported[0]["label"] == "AdamW"
    assert reported[1]["label"] in {config["label"] for config in configs}

    assert cli.main(["report", str(out), "--out", str(tmp_path / "report")]) == 0
    heading = (tmp_path / "report" / "comparison.md").read_text(encoding="utf-8").splitlines()[0]
    assert " tuning |" in heading
    assert "3 × 60" in capsys.readouterr().out

    before = files_of(out)
    again = run_study(study, out, 2)
    assert again == result
    assert {name: content for name, content in files_of(out).items() if name != "study.json"} == {
        name: content for name, content in before.items() if name != "study.json"
    }

    shutil.rmtree(result.selection[-1])
    assert run_study(study, out, 1) == result
    assert load_runs(out, purpose="selection").table["state"].tolist() == ["finished"] * 3

    other = tuned_study(
        tmp_path / "study.yaml",
        tuning=TUNING | {"method": method, "samples": 90, "stream": {"samples_per_experience": 30}},
        seeds=[0],
    )
    with pytest.raises(
        FileExistsError, match=r"already holds a study with tuning = .*'samples': 60.*, not .*'samples': 90"
    ):
        run_study(other, out)


@pytest.mark.parametrize(
    ("scores", "n", "best"),
    [
        ({0: 0.1, 2: 0.3, 5: 0.2}, 2, {2, 5}),
        ({0: 0.2, 2: 0.3, 5: 0.2}, 2, {0, 2}),  # of equals the first
        ({3: -math.inf, 1: -math.inf, 2: -1.0}, 2, {1, 2}),
        ({0: 0.1, 2: 0.3}, 3, {0, 2}),
        ({0: 0.1, 2: 0.3}, None, {0, 2}),
        ({}, 1, set()),
    ],
)
def test_the_best_are_those_with_the_highest_scores(scores: dict[int, float], n: int | None, best: set[int]) -> None:
    assert positions_of_best(scores, n) == best


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_only_the_best_learners_are_reported_with_their_settings(tmp_path: Path) -> None:
    learners = [
        {"label": "too small", "name": "fixed", "tune": {"lr": [1e-9, 1e-8, 1e-7]}},
        {"label": "right", "name": "fixed", "tune": {"lr": [1e-9, 1e-8, 1e-2]}},
        {"label": "SGD too small", "name": "fixed", "base": "sgd", "tune": {"lr": [1e-9, 1e-8, 1e-7]}},
        {"name": "cocob"},
    ]
    study = tuned_study(tmp_path / "study.yaml", learners=learners, tuning=TUNING | {"best": 1}, seeds=[0])
    out = tmp_path / "out"

    result = run_study(study, out, 1)

    assert load_runs(*result.runs).labels == ["too small", "right (tuned)", "SGD too small", "cocob"]
    assert len(result.selection) == 9
    table = comparison_table(load_runs(*result.runs), selection=load_runs(*result.selection, purpose="selection"))
    assert table["tuning_runs"].fillna(0).tolist() == [3, 3, 3, 0]
    assert table["setting"].isna().tolist() == [True, False, True, True]
    assert table["selection_score"].idxmax() == 1

    more = tuned_study(tmp_path / "study.yaml", learners=learners, tuning=TUNING | {"best": 3}, seeds=[0])
    added = {path.name for path in run_study(more, out, 1).runs} - {p.name for p in result.runs}
    assert len(added) == 2
