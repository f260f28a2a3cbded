"""Which settings of a learner a study tries: a grid, random draws, or Optuna's tree-structured Parzen estimator (TPE).

Settings come in rounds. What a round holds follows from the study, the learner and the scores of the rounds before it,
so that a study that was stopped goes on with the same settings, from its run directories alone and with any number of
workers.
"""

import hashlib
import importlib.util
import itertools
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from continual_metaopt.optim.search_spaces import is_inside, is_range

Method = Literal["grid", "random", "tpe"]
Setting = dict[str, Any]

SETTINGS_IN_A_ROUND = 2  # of TPE, whatever the number of workers
DRAWS = 1000  # until a space of a few values counts as exhausted


class Search(BaseModel):
    """How the settings of a learner to try are found.

    Attributes:
        method: "random"; "tpe" for Optuna's TPE; or "grid" for all combinations of the values in ``space``.
        trials: number of settings to try. The first of "random" and "tpe" is the untuned one.
        space: options, and where to look for each: ``[low, high, log]`` for numbers, uniform in their logarithm, or a
            list of values; the learner's usual space if empty.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    method: Method | None = None
    trials: int | None = Field(None, ge=1)
    space: dict[str, list[Any]] = Field(default_factory=dict)

    @field_validator("space")
    @classmethod
    def _there_is_something_to_try(cls, space: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for name, values in space.items():
            if not values:
                raise ValueError(f"{name}: no value to try")
            if is_range(values) and not 0 < values[0] < values[1] < math.inf:
                raise ValueError(f"{name}: a range [low, high, log] needs 0 < low < high, not {values}")
        return space

    @model_validator(mode="after")
    def _grid_is_of_values(self) -> "Search":
        if self.method == "grid" and not self.space:
            raise ValueError("space: a grid needs the values to try")
        ranges = [name for name, values in self.space.items() if self.method == "grid" and is_range(values)]
        if ranges:
            raise ValueError(f"space.{ranges[0]}: a grid needs values, not a range")
        return self


class Tuning(BaseModel):
    """What every learner of a study is given to be tuned with, the same for all.

    Attributes:
        method: "random", or "tpe" for Optuna's TPE.
        trials: settings that each learner may try, on each of the study's selection seeds.
        samples: length of a selection run.
        stream: options of the stream that make selection runs so long, in place of the study's.
        best: of how many learners the tuned setting is reported: of those whose settings scored best on the selection
            seeds; None for all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    method: Literal["random", "tpe"] = "random"
    trials: int = Field(ge=1)
    samples: int = Field(ge=1)
    stream: dict[str, Any] = Field(default_factory=dict)
    best: int | None = Field(None, ge=1)


def positions_of_best(scores: Mapping[int, float], n: int | None) -> set[int]:
    """Positions of the ``n`` highest scores, of equal ones the first; all if ``n`` is None."""
    return set(sorted(scores, key=lambda position: (-scores[position], position))[:n])


def next_settings(
    search: Search, untuned: Setting, finished: Sequence[tuple[Setting, float]], names: Sequence[str]
) -> list[Setting]:
    """The settings to try next.

    Args:
        search: how to find them, with nothing left open.
        untuned: the options of ``search.space`` as they are without tuning; the first setting of "random" and "tpe".
        finished: the settings of all rounds before, in their order, each with its score: the higher the better.
        names: of study and learner, from which random numbers are derived.

    Returns:
        The settings of the next round; none if all have been tried. Numbers from ranges have three significant digits.

    Raises:
        ValueError: the method is "tpe", and Optuna is not installed.
    """
    if search.method == "grid":
        return [] if finished else grid(search.space)
    n_trials = search.trials or 0
    tried = [setting for setting, _ in finished]
    draws = random.Random(_seed(*names))
    if search.method == "random":
        return [] if finished else _add_draws([untuned], search.space, n_trials, draws)
    if not finished:
        return _add_draws([untuned], search.space, min(n_trials, _n_before_tpe(n_trials)), draws)
    n = min(SETTINGS_IN_A_ROUND, n_trials - len(tried))
    proposed: list[Setting] = []
    for setting in _by_tpe(search.space, finished, n, _seed(*names, str(len(tried)))) if n > 0 else []:
        if setting not in tried + proposed:
            proposed.append(setting)
    return _add_draws(tried + proposed, search.space, len(tried) + n, draws)[len(tried) :]


def grid(space: Mapping[str, Sequence[Any]]) -> list[Setting]:
    """All combinations of the values of some options."""
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]


def require_optuna() -> None:
    """Check that TPE can be used.

    Raises:
        ValueError: Optuna is not installed.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ValueError(
            "the method tpe needs the package optuna: pip install 'continual-metaopt[tpe]', or use the method random"
        )


def _n_before_tpe(n_trials: int) -> int:
    """Settings of the first round, which are drawn at random: a third, but 2 to 10."""
    return min(10, max(2, n_trials // 3))


def _add_draws(
    settings: list[Setting], space: Mapping[str, Sequence[Any]], n: int, draws: random.Random
) -> list[Setting]:
    """Settings and so many random ones that they are ``n``, none of them twice; fewer if there are no more."""
    settings = list(settings)
    for _ in range(DRAWS):
        if len(settings) >= n:
            break
        drawn = {name: _value(values, draws.random()) for name, values in space.items()}
        if drawn not in settings:
            settings.append(drawn)
    return settings


def _value(values: Sequence[Any], share: float) -> Any:
    """The value at a share, from 0 to below 1, of the way through an option's values."""
    if not is_range(values):
        return values[int(share * len(values))]
    low, high, _ = values
    return _rounded(low * (high / low) ** share, low, high)


def _rounded(value: float, low: float, high: float) -> float:
    return float(min(max(float(f"{value:.3g}"), low), high))


def _by_tpe(
    space: Mapping[str, Sequence[Any]], finished: Sequence[tuple[Setting, float]], n: int, seed: int
) -> list[Setting]:
    require_optuna()
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions: dict[str, Any] = {
        name: optuna.distributions.FloatDistribution(values[0], values[1], log=True)
        if is_range(values)
        else optuna.distributions.CategoricalDistribution(range(len(values)))
        for name, values in space.items()
    }
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=1, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for setting, score in finished:
        if all(is_inside(values, setting[name]) for name, values in space.items()):
            params = {
                name: setting[name] if is_range(values) else list(values).index(setting[name])
                for name, values in space.items()
            }
            study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=score))
    asked = [study.ask(distributions).params for _ in range(n)]
    return [
        {
            name: _rounded(params[name], *values[:2]) if is_range(values) else values[params[name]]
            for name, values in space.items()
        }
        for params in asked
    ]


def _seed(*names: str) -> int:
    return int.from_bytes(hashlib.sha256("\n".join(names).encode()).digest()[:4], "big")
