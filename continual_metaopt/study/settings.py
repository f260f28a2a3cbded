"""Which settings of a learner a study tries: a grid, random draws, or Optuna's tree-structured Parzen estimator (TPE).

Settings come in rounds. What a round holds follows from the study, the learner and the scores of the rounds before it,
so that a study that was stopped goes on with the same settings, from its run directories alone and with any number of
workers.
"""

import hashlib
import importlib.util
import random
from collections.abc import Mapping, Sequence
from typing import Any

from continual_metaopt.analysis.extras import how_to_install
from continual_metaopt.optim.registry import is_inside, is_range
from continual_metaopt.study.config import Search, Setting, grid

SETTINGS_IN_A_ROUND = 2  # of TPE, whatever the number of workers
DRAWS = 1000  # until a space of a few values counts as exhausted


def positions_of_best(scores: Mapping[int, float], n: int | None) -> set[int]:
    """Find the positions of the ``n`` highest scores, of equal ones the first; all if ``n`` is None.

    Example:
        >>> positions_of_best({0: 0.2, 2: 0.3, 5: 0.2}, 2)
        {0, 2}
    """
    return set(sorted(scores, key=lambda position: (-scores[position], position))[:n])


def next_settings(
    search: Search, untuned: Setting, finished: Sequence[tuple[Setting, float]], names: Sequence[str]
) -> list[Setting]:
    """Say which settings to try next.

    Args:
        search: how to find them, with nothing left open.
        untuned: the options of ``search.space`` as they are without tuning; the first setting of "random" and "tpe".
        finished: the settings of all rounds before, in their order, each with its score: the higher the better.
        names: of study and learner, from which random numbers are derived.

    Returns:
        The settings of the next round; none if all have been tried. Numbers from ranges have three significant digits.

    Raises:
        ValueError: the method is "tpe", and Optuna is not installed.

    Example:
        >>> search = Search(method="random", trials=2, space={"lr": [1e-5, 1e-1, "log"]})
        >>> next_settings(search, {"lr": 0.001}, [], ("study", "learner"))
        [{'lr': 0.001}, {'lr': 0.0065}]
    """
    if search.method == "grid":
        return [] if finished else grid(search.space)
    n_trials = search.trials or 0
    draws = random.Random(_seed(*names))
    if not finished:  # before TPE, a third is drawn at random, but 2 to 10
        n = n_trials if search.method == "random" else min(n_trials, 10, max(2, n_trials // 3))
        return _add_draws([untuned], search.space, n, draws)
    tried = [setting for setting, _ in finished]
    n = min(SETTINGS_IN_A_ROUND, n_trials - len(tried))
    if search.method == "random" or n <= 0:
        return []
    proposed: list[Setting] = []
    for setting in _by_tpe(search.space, finished, n, _seed(*names, str(len(tried)))):
        if setting not in tried + proposed:
            proposed.append(setting)
    return _add_draws(tried + proposed, search.space, len(tried) + n, draws)[len(tried) :]


def require_optuna() -> None:
    """Check that TPE can be used.

    Raises:
        ValueError: Optuna is not installed.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ValueError(f"the method tpe needs the package optuna: {how_to_install('tpe')}, or use the method random")


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
