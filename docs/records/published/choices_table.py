"""Print what each choice that the paper leaves open is worth, in percentage points of average online accuracy.

From this folder, with the folders of runs and the CSV file of ``after_update.py``:

    python choices_table.py ../../../runs/published ../../../runs/choices_* --after after_update.csv --out choices.csv
"""

import argparse
import itertools
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


def cell(row: pd.Series, kind: str) -> str:
    """An accuracy, and in brackets its change against the base."""
    change = interval_text(row[f"{kind}_change"], row[f"{kind}_change_ci"], "+.1f")
    return number_text(row[kind], ".1f") + (f" ({change})" if change else "")


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
    columns = {"choice": list(table["choice"].unique())}
    for form, kind in itertools.product(FORMS.values(), ("fixed", "two blocks")):
        rows = table[table["form"] == form].set_index("choice")
        columns[f"{form}, {kind}"] = [cell(rows.loc[choice], kind) for choice in columns["choice"]]
    counts = scores.groupby(["choice", "form", "kind"]).size()
    n = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    published = ", ".join(f"{kind} {value:.2f}" for kind, value in PUBLISHED.items())
    print(format_columns(columns, "markdown"))
    seeds = ", ".join(map(str, sorted(scores["seed"].unique())))
    print(
        f"Average online accuracy in percent, mean of n = {n} (seeds {seeds}); in brackets the change against the base "
        "in points, paired by seed, ± half width of a 95 % Student-t interval.\n\n"
        f"The nearest, by the mean absolute difference from the paper's numbers ({published}) over those that were "
        "measured:\n"
    )
    for _, row in table.sort_values("distance").head(3).iterrows():
        measured = ", ".join(f"{kind} {row[kind]:.1f}" for kind in PUBLISHED if pd.notna(row[kind]))
        print(f"- {row['choice']}, {row['form']} ({measured}): {row['distance']:.1f} points off")
    table.to_csv(arguments.out, index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
