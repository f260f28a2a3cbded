"""Bits per byte: how well text was predicted, whatever its symbols are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.statistics import sample_losses


def bits_per_nat(config: Mapping[str, Any]) -> float:
    """Factor from a run's loss, in nats per symbol, to bits per byte: 1 / (ln 2 × bytes of a symbol); NaN if no text.

    Example:
        >>> round(bits_per_nat({"stream_info": {"bytes_per_sample": 2.0}}), 4)
        0.7213
    """
    n_bytes = config["stream_info"].get("bytes_per_sample")
    return 1 / (math.log(2) * n_bytes) if n_bytes else math.nan


def is_text(runs: Runs) -> bool:
    """Whether all runs are of text."""
    return all(bits_per_nat(config) > 0 for config in runs.configs.values())


def sample_bits(runs: Runs, run: str) -> np.ndarray:
    """Bits per byte of each sample's prediction, made before learning from it.

    Returns:
        Array [n_samples]; infinite where a diverged run did not come, and where its loss was no number. Where single
        losses were not kept, as in archives of `analysis.archive`, each sample has the mean of its experience.
    """
    config = runs.configs[run]
    bits = np.full(config["stream_info"]["n_samples"], np.inf)
    losses = sample_losses(runs, run)
    if np.isnan(losses).all():
        means = runs.read(run, "experiences", ["n_samples", "mean_loss"])
        losses = np.repeat(means["mean_loss"].to_numpy(dtype=float), means["n_samples"])
    bits[: len(losses)] = np.where(np.isnan(losses), np.inf, losses * bits_per_nat(config))
    return bits


def bits_by_domain(runs: Runs) -> pd.DataFrame:
    """Mean bits per byte of each finished run in each domain, over all experiences of that domain.

    Returns:
        Columns label, seed, domain, bits_per_byte. Mixed experiences are called by all their domains.
    """
    rows = []
    finished = runs.table[runs.table["state"] == "finished"]
    for path, label, seed in finished[["path", "label", "seed"]].itertuples(index=False):
        table = runs.read(path, "experiences", ["classes", "n_samples", "mean_loss"])
        table["domain"] = [" + ".join(sorted(map(str, classes))) for classes in table["classes"]]
        for domain, part in table.groupby("domain"):
            loss = float(np.average(part["mean_loss"].astype(float), weights=part["n_samples"]))
            rows.append((label, seed, domain, loss * bits_per_nat(runs.configs[path])))
    return pd.DataFrame(rows, columns=["label", "seed", "domain", "bits_per_byte"])
