"""The offline oracle: hypergradients against finite differences, and schedules that are known to be best."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from continual_metaopt import oracle
from continual_metaopt.networks.losses import HalfSquaredError
from continual_metaopt.oracle import Run, best_schedule, main, run_schedule

from .conftest import exactly, write_study

TARGETS = [(-1.0) ** t for t in range(20)] + [3.0] * 20 + [3.0 + (-1.0) ** t for t in range(20)]


def passes(*arguments: Any, **options: Any) -> list[Run]:
    return list(best_schedule(*arguments, **options))


def scalar() -> nn.Linear:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    return model


def targets(values: list[float]) -> list[tuple[Tensor, Tensor]]:
    one = torch.ones(1, 1, dtype=torch.float64)
    return [(one, value * one) for value in values]


def test_the_best_schedule_is_found_where_it_is_known() -> None:
    """Alternating targets around the weight are best left alone, and a jump without noise wants one step of 1."""
    model = scalar()
    runs = passes(
        model,
        targets(TARGETS),
        HalfSquaredError(),
        n_segments=3,
        lr=0.1,
        base="sgd",
        n_passes=25,
        lr_bounds=(1e-6, 10.0),
    )
    best = min(runs, key=lambda run: run.loss)
    assert best.step_sizes == [pytest.approx(0.0, abs=1e-3), pytest.approx(1.0, abs=0.01), pytest.approx(0.0, abs=1e-3)]
    assert best.loss == pytest.approx((20 * 0.5 + 4.5 + 20 * 0.5) / 60, rel=1e-3)
    assert runs[0].step_sizes == pytest.approx([0.1] * 3)
    assert best.loss < 0.8 * runs[0].loss
    assert model.weight.item() == 0.0, "the network has its first weights again"


def test_one_segment_gives_the_best_single_step_size() -> None:
    samples = targets([2 * math.sin(0.3 * t) + 0.5 * (-1) ** t for t in range(40)])
    runs = passes(scalar(), samples, HalfSquaredError(), n_segments=1, lr=0.1, base="sgd", n_passes=25)
    grid = [0.01 * 1.1**i for i in range(60)]
    losses = [run_schedule(scalar(), samples, HalfSquaredError(), [lr], "sgd", differentiate=False).loss for lr in grid]
    best = min(runs, key=lambda run: run.loss)
    assert best.loss <= min(losses) * (1 + 1e-6)
    assert best.step_sizes[0] == pytest.approx(grid[losses.index(min(losses))], rel=0.1)


def network() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    generator = torch.Generator().manual_seed(4)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=generator, dtype=torch.float64))
    inputs = torch.randn(11, 2, 3, generator=generator, dtype=torch.float64)
    return model, [(x, torch.randint(2, (2,), generator=generator)) for x in inputs]


@pytest.mark.parametrize("base", ["sgd", "sgdm", "adamw", "rmsprop_released"])
def test_hypergradients_are_those_of_finite_differences(base: str) -> None:
    model, samples = network()

    def loss(log_step_sizes: list[float], differentiate: bool = False) -> Any:
        step_sizes = [math.exp(value) for value in log_step_sizes]
        return run_schedule(
            model, samples, nn.CrossEntropyLoss(), step_sizes, base, weight_decay=0.2, differentiate=differentiate
        )

    at = [math.log(0.05), math.log(0.1), math.log(0.03)]
    found = loss(at, differentiate=True)
    for j, slope in enumerate(found.hypergradient):
        ends = [[value + sign * 1e-5 * (i == j) for i, value in enumerate(at)] for sign in (1, -1)]
        difference = (loss(ends[0]).loss - loss(ends[1]).loss) / 2e-5
        assert slope == pytest.approx(difference, rel=1e-6, abs=1e-10)
        assert abs(slope) > 1e-5
    assert loss(at).hypergradient is None
    assert loss(at).loss == found.loss
    assert 0 <= found.online_accuracy <= 1


def test_a_run_is_that_of_torch() -> None:
    model, samples = network()
    run = run_schedule(model, samples, nn.CrossEntropyLoss(), [0.05], "adamw", 0.1, differentiate=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    losses = []
    for x, y in samples:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    assert run.loss == pytest.approx(sum(losses) / len(losses), rel=1e-12)


def test_a_run_that_diverges_is_left_behind() -> None:
    samples = [(x.float(), y.float()) for x, y in targets([float(t) for t in range(60)])]
    runs = passes(scalar().float(), samples, HalfSquaredError(), n_segments=2, lr=8.0, base="sgd", n_passes=15)
    assert runs[0].loss == math.inf
    assert runs[0].hypergradient is None
    best = min(runs, key=lambda run: run.loss)
    assert math.isfinite(best.loss)
    assert best.loss < 1.0  # the lag of a step size of 1 costs ½


def test_a_study_s_selection_stream_is_searched_and_written(tmp_path: Path) -> None:
    tuning = {"trials": 1, "samples": 60, "stream": {"n_experiences": 2, "samples_per_experience": 30}}
    study = write_study(tmp_path / "study.yaml", {"tuning": tuning, "learners": [{"name": "fixed"}]})
    out = tmp_path / "out" / "oracle.csv"

    assert main(["--study", str(study), "--seed", "100", "--segments", "2", "--passes", "2", "--out", str(out)]) == 0

    table = pd.read_csv(out)
    assert table["pass"].tolist() == ["0", "1", "best"]
    assert table["loss"].iloc[-1] == table["loss"].min()
    assert set(table["samples"]) == {60}
    assert set(table["learner"]) == {"best step sizes in hindsight (offline)"}


def test_the_command_prints_the_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--samples", "20", "--segments", "2", "--passes", "2", "--network", "linear"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0].strip() == "pass"
    assert [line.split()[0] for line in lines[2:]] == ["0", "1", "best"]
    assert lines[2].split()[-2:] == ["0.001", "0.001"]


def test_passes_are_kept_when_the_search_is_interrupted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> Iterator[Run]:
        yield Run([0.1, 0.2], 2.5, 0.25, [0.5, -0.5])
        yield Run([0.2, 0.1], 2.0, 0.5, [0.5, -0.5])
        raise KeyboardInterrupt

    monkeypatch.setattr(oracle, "best_schedule", interrupted)
    out = tmp_path / "oracle.csv"

    assert main(["--samples", "20", "--segments", "2", "--passes", "3", "--out", str(out)]) == 130

    assert pd.read_csv(out)["loss"].tolist() == [2.5, 2.0, 2.0]
    assert "interrupted: 2 of 3 passes were made\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_segments": 9}, "the number of segments must be from 1 to that of updates, 3, not 9"),
        ({"n_passes": 0}, "n_passes must be at least 1, but is 0"),
        (
            {"lr": 20.0},
            "lr must be within lr_bounds, two positive numbers, but is 20.0, with (1e-08, 10.0)",
        ),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    settings = {"n_segments": 1} | settings
    with pytest.raises(ValueError, match=exactly(message)):
        passes(scalar(), targets([1.0] * 3), HalfSquaredError(), **settings)


def test_traces_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="over the limit"):
        passes(scalar(), targets([1.0] * 3), HalfSquaredError(), n_segments=2, memory_limit=1)
