"""Online trees and two baselines on the tables, each row predicted before it is learned: ``python trees.py DATA``.

It needs the package river, and prints accuracies in %, of five seeds for the trees.
"""

import csv
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from river import drift, dummy, forest, tree

MODELS: dict[str, Callable[[int], Any]] = {
    "the most frequent class so far": lambda seed: dummy.PriorClassifier(),
    "the class of the row before": lambda seed: dummy.NoChangeClassifier(),
    "Hoeffding tree": lambda seed: tree.HoeffdingTreeClassifier(),
    "Hoeffding adaptive tree": lambda seed: tree.HoeffdingAdaptiveTreeClassifier(seed=seed),
    "adaptive random forest": lambda seed: forest.ARFClassifier(
        seed=seed, drift_detector=drift.ADWIN(0.001), warning_detector=drift.ADWIN(0.01)
    ),
}
WITH_SEEDS = ("Hoeffding adaptive tree", "adaptive random forest")


def accuracy(path: Path, model: Any) -> float:
    """Share of rows that are predicted right before they are learned, in %."""
    n_correct = n = 0
    with path.open(newline="") as file:
        names, *rows = csv.reader(file)
    for row in rows:
        x, y = dict(zip(names[:-1], map(float, row[:-1]), strict=True)), row[-1]
        n_correct += model.predict_one(x) == y
        model.learn_one(x, y)
        n += 1
    return 100 * n_correct / n


for table in ("elec", "weather", "sea_stream"):
    for name, make in MODELS.items():
        found = [
            accuracy(Path(sys.argv[1]) / f"{table}.csv", make(seed)) for seed in range(5 if name in WITH_SEEDS else 1)
        ]
        spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
        print(f"{table:<12}{name:<32}{statistics.mean(found):6.2f}{spread}", flush=True)
