"""Writes run directories as docs/run-directory.md describes them, with made-up content."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


def write_run(
    root: Path,
    label: str = "AdamW",
    seed: int = 0,
    correct: Sequence[int | None] = (1, 0, 1, 1),
    *,
    n_samples: int | None = None,
    n_experiences: int = 2,
    n_outputs: int = 2,
    state: str = "finished",
    learned: bool = False,
    step_sizes: Mapping[str, Sequence[float]] | None = None,
    quantiles: Mapping[str, float] | None = None,
    measurements: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    record_every: int = 1,
    test_accuracy: Sequence[float | None] | None = None,
    parts: int = 0,
    config: Mapping[str, Any] | None = None,
    stream_info: Mapping[str, Any] | None = None,
    stream: Mapping[str, Any] | None = None,
    status: Mapping[str, Any] | None = None,
    folder: str | None = None,
) -> Path:
    """Write one run and return its directory; `parts` > 0 leaves the tables in so many parts."""
    directory = root / (folder or f"{label}-{seed}".replace("/", "_"))
    directory.mkdir(parents=True)
    total = len(correct) if n_samples is None else n_samples
    boundaries = [total * experience // n_experiences for experience in range(n_experiences)]
    info = {
        "definition": "class_split v1",
        "task": "classification",
        "fingerprint": f"stream-{seed}",
        "source": "digits",
        "n_experiences": n_experiences,
        "n_samples": total,
        "n_outputs": n_outputs,
        "input_shape": [1, 8, 8],
        "boundaries": boundaries,
        "stationary": None,
        **(stream_info or {}),
    }
    blocks = list(step_sizes or {"all": ()})
    content = {
        "schema_version": 1,
        "run_id": hashlib.sha256(directory.name.encode()).hexdigest()[:12],
        "study": "synthetic",
        "label": label,
        "purpose": "report",
        "stream": {"name": "class_split", "source": "digits", **(stream or {})},
        "network": {"name": "mlp"},
        "learner": {"name": label},
        "seed": seed,
        "record_every": record_every,
        "evaluate": test_accuracy is not None,
        "learned_step_sizes": learned,
        "stream_info": info,
        "blocks": blocks,
        "n_parameters": 10,
        "versions": {},
        "platform": {},
        **(config or {}),
    }
    (directory / "config.json").write_text(json.dumps(content))
    progress = {
        "state": state,
        "reason": None,
        "step": len(correct),
        "heartbeat": "2026-01-01T00:00:00Z",
        "owner": {"host": "host", "pid": 1},
        "wall_time": 2.0,
        "samples_per_second": 100.0 + seed,
        "engine": {"name": "torch", "reason": "asked for"},
        **(status or {}),
    }
    (directory / "status.json").write_text(json.dumps(progress))
    steps = np.arange(len(correct))
    experiences = np.searchsorted(boundaries, steps, side="right") - 1
    samples = pd.DataFrame({"step": steps.astype("int32"), "experience": experiences.astype("int16")})
    samples["correct"] = pd.array([None if c is None else bool(c) for c in correct], dtype="boolean")
    samples["loss"] = np.float32(0.5)
    every = content.get("record_samples_every", 1)
    write_table(directory, "samples", samples[samples["step"] % every == 0], parts)
    if step_sizes:
        frames = [
            pd.DataFrame({"step": np.arange(len(values), dtype="int32") * record_every, "block": name})
            for name, values in step_sizes.items()
        ]
        for frame, values in zip(frames, step_sizes.values(), strict=True):
            frame["step_size"] = np.asarray(values, dtype=float)
            for name, factor in (quantiles or {}).items():
                frame[name] = frame["step_size"] * factor
        write_table(directory, "step_sizes", pd.concat(frames).sort_values("step", kind="stable"), parts)
    if measurements:
        frames = [
            pd.DataFrame(
                {
                    "step": np.arange(len(values), dtype="int32") * record_every,
                    "quantity": quantity,
                    "block": block,
                    "statistic": "value",
                    "value": np.asarray(values, dtype=float),
                }
            )
            for quantity, of_blocks in measurements.items()
            for block, values in of_blocks.items()
        ]
        write_table(directory, "measurements", pd.concat(frames), parts)
    rows = experience_rows(samples, test_accuracy)
    write_table(directory, "experiences", rows, parts)
    return directory


def write_counts(
    root: Path,
    counts: Mapping[str, Sequence[int]],
    of: int = 10,
    config: Mapping[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Write runs of these learners, in this order, that predict so many of the first samples right on each seed."""
    for order, (label, of_seeds) in enumerate(counts.items()):
        content = {"order": order, **(config or {})}
        for seed, n in enumerate(of_seeds):
            write_run(root, label, seed, [1] * n + [0] * (of - n), config=content, **options)
    return root


def write_trial(
    root: Path, label: str, seed: int, n_correct: int, tuned: Sequence[str] = ("lr",), **options: Any
) -> None:
    """Write a selection run of ten samples, of a learner with these options, of which some are tuned."""
    setting = ", ".join(f"{name} = {options[name]}" for name in tuned)
    learner = {"name": "fixed", **options}
    config = {"entry": label, "tuned": list(tuned), "learner": learner, "purpose": "selection"}
    correct = [1] * n_correct + [0] * (10 - n_correct)
    write_run(root, f"{label}, {setting}", seed, correct, config=config, folder=f"trial {label} {setting} {seed}")


def write_regression(root: Path, label: str, seed: int, errors: Sequence[float], **options: Any) -> Path:
    """Write one run of a regression with these squared errors."""
    info = {"task": "regression", "definition": "tracking v1", "n_experiences": 1, "boundaries": [0]}
    directory = write_run(root, label, seed, [None] * len(errors), n_outputs=1, stream_info=info, **options)
    samples = pd.read_parquet(directory / "samples.parquet")
    samples["loss"] = np.asarray(errors, dtype="float32") / 2
    write_table(directory, "samples", samples, 0)
    return directory


def experience_rows(samples: pd.DataFrame, test_accuracy: Sequence[float | None] | None) -> pd.DataFrame:
    rows = []
    for experience, group in samples.groupby("experience"):
        number = int(experience)
        rows.append(
            {
                "experience": number,
                "classes": [2 * number, 2 * number + 1],
                "first_step": int(group["step"].iloc[0]),
                "n_samples": len(group),
                "n_seen_before": 0,
                "n_correct": int(group["correct"].sum()),
                "online_accuracy": float(group["correct"].mean()) if group["correct"].notna().all() else np.nan,
                "test_accuracy": None if test_accuracy is None else test_accuracy[number],
            }
        )
    columns = ["experience", "classes", "first_step", "n_samples", "n_seen_before", "n_correct", "online_accuracy"]
    frame = pd.DataFrame(rows, columns=[*columns, "test_accuracy"])
    return frame.astype({"test_accuracy": "float64", "online_accuracy": "float64"})


def write_table(directory: Path, name: str, table: pd.DataFrame, parts: int) -> None:
    if not parts:
        table.to_parquet(directory / f"{name}.parquet", index=False)
        return
    (directory / name).mkdir()
    edges = [len(table) * part // parts for part in range(parts + 1)]
    for part in range(parts):
        chunk = table.iloc[edges[part] : edges[part + 1]]
        chunk.to_parquet(directory / name / f"part-{part:05d}.parquet", index=False)


def sawtooth(n_samples: int, n_experiences: int, low: float, high: float, record_every: int = 1) -> np.ndarray:
    """Step sizes that jump to `high` at each boundary and fall geometrically to `low`."""
    steps = np.arange(0, n_samples, record_every)
    progress = steps * n_experiences / n_samples % 1
    return high * (low / high) ** progress


def write_study(root: Path, n_samples: int = 200, n_experiences: int = 4, seeds: int = 2) -> Path:
    """A small study: two learners with learned step sizes and one with fixed ones."""
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        for order, (label, accuracy) in enumerate({"Meta": 0.8, "Scalar": 0.7, "AdamW": 0.6}.items()):
            correct = (random.random(n_samples) < accuracy).astype(int).tolist()
            teeth = sawtooth(n_samples, n_experiences, 1e-4, 1e-2, record_every=10)
            blocks = {"Meta": {"conv": teeth, "head": teeth * 3}, "Scalar": {"all": teeth}, "AdamW": {"all": teeth**0}}
            write_run(
                root,
                label,
                seed,
                correct,
                n_experiences=n_experiences,
                learned=label != "AdamW",
                step_sizes=blocks[label],
                record_every=10,
                config={"order": order},
                test_accuracy=[0.5] * n_experiences,
            )
    return root
