r"""Print what each choice that the paper leaves open is worth, in percentage points of average online accuracy.

From this folder, with the folders of runs and the CSV file of ``after_update.py``:

    python choices_table.py ../../../runs/published ../../../runs/published_global ../../../runs/choices_* \
        --after ../../../runs/after_update.csv --out choices.csv
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.runs import Runs, load_runs
from analysis.statistics import mean_interval, online_accuracy, paired_interval
from analysis.tables import format_columns, interval_text, number_text

PUBLISHED = {"fixed": 36.59, "scalar": 37.77, "two blocks": 39.05}
FORMS = {"adamw_released": "released", "adamw": "normalised"}
BASE, AFTER = "base", "accuracy after the update"
# part of a run's description, option, value there -> name of the choice
CHOICES = {
    ("stream", "labels", "global"): "global labels",
    ("stream", "scaling", "unit"): "images in [0, 1]",
    ("stream", "scaling", "standardised"): "images standardised",
    ("stream", "class_order", "alphabetical"): "classes in alphabetical order",
    ("stream", "sample_order", "file"): "samples in the file's order",
    ("network", "initialisation", "kaiming_normal"): "Kaiming normal",
    ("network", "initialisation", "glorot_uniform"): "Glorot uniform",
    ("network", "linear_layers", 1): "one linear layer",
}


def choice_of(config: Mapping[str, Any]) -> str:
    """Name what a run has in place of the base's choices."""
    found = [name for (part, option, value), name in CHOICES.items() if config[part].get(option) == value]
    return " + ".join(found) or BASE


def learner_of(learner: Mapping[str, Any]) -> tuple[str, str] | None:
    """Form of momentum and step sizes of a learner with the paper's settings; None for other learners."""
    form = FORMS.get(learner.get("base", ""))
    if form is None or learner.get("lr") != 1e-4 or learner.get("weight_decay") != 0.1:
        return None
    if learner["name"] == "fixed":
        return form, "fixed"
    if [learner.get(name) for name in ("trace", "gamma", "meta_lr")] != ["hessian_free", 0.999, 1e-3]:
        return None
    sizes = learner["step_sizes"]
    return (form, "scalar") if sizes == "scalar" else (form, "two blocks") if isinstance(sizes, list) else None


def accuracies(runs: Runs, after: pd.DataFrame, seeds: list[int]) -> pd.DataFrame:
    """Average online accuracy in percent, and in every row a choice, a form of momentum, step sizes and a seed.

    Args:
        runs: of any studies.
        after: what ``after_update.py`` wrote.
        seeds: those to use.
    """
    rows = []
    for path, config in runs.configs.items():
        learner = learner_of(config["learner"])
        if learner is not None and config["seed"] in seeds:
            score = online_accuracy(runs.among([path]))["online_accuracy"].item()
            rows.append((choice_of(config), *learner, config["seed"], 100 * score))
    for row in after[after["seed"].isin(seeds)].itertuples():
        form, kind = row.label.split(", ")[:2]
        rows.append((AFTER, form, kind, row.seed, 100 * row.n_correct_after / row.n_samples))
    table = pd.DataFrame(rows, columns=["choice", "form", "kind", "seed", "accuracy"]).dropna()
    table = table.drop_duplicates()  # a setting that was chosen may be one that is given as well
    twice = table[table.duplicated(["choice", "form", "kind", "seed"])]
    if len(twice):
        raise ValueError(f"several runs are {', '.join(map(str, twice.iloc[0, :4]))}: give each folder once")
    return table


def choices_table(scores: pd.DataFrame) -> pd.DataFrame:
    """One row per choice and form: accuracies, changes against the base paired by seed, distance to the paper's.

    Args:
        scores: from ``accuracies``.
    """
    by_seed = {key: group.set_index("seed")["accuracy"] for key, group in scores.groupby(["choice", "form", "kind"])}
    order = [BASE, *CHOICES.values(), AFTER]
    choices = sorted(scores["choice"].unique(), key=lambda name: (order.index(name) if name in order else 99, name))
    rows = []
    for form in FORMS.values():
        for choice in choices:
            row: dict[str, Any] = {"choice": choice, "form": form}
            distances = []
            for kind, published in PUBLISHED.items():
                found = by_seed.get((choice, form, kind), pd.Series(dtype=float))
                row[kind], row[f"{kind}_ci"] = mean_interval(found)
                base = by_seed.get((BASE, form, kind), pd.Series(dtype=float))
                change = paired_interval(found, base) if choice != BASE else (float("nan"), float("nan"))
                row[f"{kind}_change"], row[f"{kind}_change_ci"] = change
                if len(found):
                    distances.append(abs(row[kind] - published))
            row["distance"] = sum(distances) / len(distances) if distances else float("nan")
            rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="+", help="folders of runs")
    parser.add_argument("--after", type=Path, required=True, help="CSV file of after_update.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True, help="CSV file to write")
    arguments = parser.parse_args()
    scores = accuracies(load_runs(*arguments.paths), pd.read_csv(arguments.after), arguments.seeds)
    table = choices_table(scores)
    columns = {"choice": table["choice"].tolist(), "form": table["form"].tolist()}
    for kind in PUBLISHED:
        columns[kind] = [number_text(value, ".1f") for value in table[kind]]
    for kind in PUBLISHED:
        pairs = zip(table[f"{kind}_change"], table[f"{kind}_change_ci"], strict=True)
        columns[f"{kind} − base"] = [interval_text(value, half_width, "+.1f") for value, half_width in pairs]
    columns["distance"] = [number_text(value, ".1f") for value in table["distance"]]
    counts = scores.groupby(["choice", "form", "kind"]).size()
    n = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    nearest = table.loc[table["distance"].idxmin()]
    measured = ", ".join(f"{kind} {nearest[kind]:.2f}" for kind in PUBLISHED if pd.notna(nearest[kind]))
    published = ", ".join(f"{kind} {value:.2f}" for kind, value in PUBLISHED.items())
    print(format_columns(columns, "markdown"))
    print(
        f"Average online accuracy in percent, n = {n} (seeds {', '.join(map(str, sorted(scores['seed'].unique())))}). "
        "Changes are in points, paired by seed; ± is the half width of a 95 % Student-t interval. Distance is the mean "
        f"of the absolute differences from the paper's numbers ({published}) over those that were measured.\n\n"
        f"Nearest: {nearest['choice']}, {nearest['form']} ({measured}; distance {nearest['distance']:.2f})."
    )
    table.to_csv(arguments.out, index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
