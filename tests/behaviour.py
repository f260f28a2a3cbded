"""Writes down what the product does, so that two versions of it can be compared: records, tables and messages.

PYTHONPATH=OLD python tests/behaviour.py before; PYTHONPATH=NEW python tests/behaviour.py after; diff -r before after

Times, process numbers and revisions are left out. It takes some minutes.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).parents[1]
TIMES = re.compile(r"wall|time|seconds|second|heartbeat|owner|software|platform|source_revision|process|host|memory")
ENGINES = ("torch", "fused", "compiled")
TINY = {
    "stream": {"name": "permuted_inputs", "source": "digits", "n_experiences": 2, "samples_per_experience": 100},
    "network": {"name": "mlp", "hidden": [16]},
    "record_every": 10,
}
TUNED: dict[str, Any] = TINY | {
    "name": "tuned",
    "seeds": [0, 1],
    "selection_seeds": [100],
    "learners": [
        {"label": "grid", "name": "fixed", "base": "adamw", "tune": {"lr": [1e-4, 1e-3, 1e-2]}},
        {"label": "random", "name": "metaoptimize", "tune": {"method": "random", "trials": 3}},
        {"label": "tpe", "name": "sgd_hd", "tune": {"method": "tpe", "trials": 4}},
        {"label": "plain", "name": "metaoptimize"},
        {"label": "replayed", "name": "replayed_step_sizes", "replays": {"learner": "plain"}},
    ],
}
RUN = [
    "run",
    "--quiet",
    "--stream.n-experiences",
    "2",
    "--stream.samples-per-experience",
    "40",
    "--network.hidden",
    "8",
]
MISTAKES = [
    ["compare", "no_such_study"],
    ["compare", "quick", "--seeds", "-1"],
    ["compare", "quick", "--engine", "steam"],
    ["compare", "quick", "--source", "parquet:nowhere"],
    ["compare", "quick", "--backend", "cloud"],
    ["report", "nowhere"],
    ["report", "empty"],
    ["status", "nowhere"],
    ["explain", "nowhere"],
    ["export", "nowhere", "--format", "csv"],
    ["export", "empty", "--format", "csv"],
    ["export", "empty", "--format", "xlsx"],
    ["list", "optimizers"],
    ["preview", "no_such_stream"],
    ["preview", "class_split", "--source", "nowhere"],
    ["preview", "class_split", "--classes-per-experience", "3"],
    ["reproduce", "table9"],
    ["reproduce", "table2", "--source", "parquet:nowhere"],
    [*RUN, "--learner.name", "adamw"],
    [*RUN, "--learner.name", "fixed", "--learner.lr", "fast"],
    [*RUN, "--learner.name", "fixed", "--learner.lr", "-1"],
    [*RUN, "--learner.name", "fixed", "--learner.nonsense", "1"],
    [*RUN, "--learner.name", "metaoptimize", "--learner.gamma", "2"],
    [*RUN, "--learner.name", "metaoptimize", "--learner.base", "adam8"],
    [*RUN, "--learner.name", "metaoptimize", "--learner.step-sizes", "by_layer"],
    [*RUN, "--learner.name", "metaoptimize", "--learner.trace", "long", "--engine", "compiled"],
    [*RUN, "--learner.name", "replayed_step_sizes", "--learner.trajectory", "nowhere"],
    [*RUN, "--learner.name", "idbd"],
    [*RUN, "--network.name", "cnn"],
    [*RUN, "--stream.source", "mnist2"],
    [*RUN, "--stream.name", "class_splits"],
    [*RUN, "--seed", "-3"],
    [*RUN, "--device", "tpu"],
    [*RUN, "--diagnostics", "everything"],
    ["compare", "bad_yaml.yaml"],
    ["compare", "unknown_field.yaml"],
    ["compare", "twice.yaml"],
]
STUDIES = {
    "bad_yaml.yaml": "learners: [",
    "unknown_field.yaml": "name: x\nstreams_: 3\nlearners: [{name: fixed}]\n",
    "twice.yaml": "name: x\nname: y\n",
}


def main(out: Path) -> None:
    """Write everything below a folder, one file per run, table and command."""
    out = out.resolve()
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("empty").mkdir()
        for name, text in STUDIES.items():
            Path(name).write_text(text)
        for name, study in {"tuned": TUNED, "learners": all_learners()}.items():
            Path(f"{name}.yaml").write_text(json.dumps(study))
        for number, arguments in enumerate(MISTAKES):
            say(out / "mistakes" / f"{number:02d}.txt", arguments)
        for kind in ("streams", "networks", "learners", "studies"):
            say(out / "lists" / f"{kind}.txt", ["list", kind])
        for engine in ENGINES:
            say(out / f"{engine}.txt", [*RUN, "--engine", engine, "--learner.name", "metaoptimize", "--out", engine])
        for study in ("quick", "tuned.yaml", "learners.yaml"):
            say(out / f"{study}.txt", ["compare", study, "--quiet"], keep_output=False)
        describe(Path(), out / "runs")
        old_records(out / "records")


def all_learners() -> dict[str, Any]:
    """A study of all learners that need no options, one run each."""
    listed = command(["list", "learners"]).stdout.splitlines()
    names = [line.split()[0] for line in listed if line.strip()]
    left_out = {"replayed_step_sizes", "idbd", "autostep"}  # which need a trajectory, or a linear network
    own = [name for name in names if name not in left_out and ":" not in name]
    return TINY | {"name": "learners", "seeds": [0], "learners": [{"name": name} for name in (*own, "torch:AdamW")]}


def command(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Call the command line."""
    environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1"}
    program = [sys.executable, "-m", "continual_metaopt", *arguments]
    return subprocess.run(program, capture_output=True, text=True, env=environment, check=False)


def say(path: Path, arguments: list[str], keep_output: bool = True) -> None:
    """Write down what a command prints, and its exit status."""
    done = command(arguments)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = done.stdout + done.stderr if keep_output or done.returncode else ""
    text = re.sub(r"/tmp/\S+?(?=[/'\s])", "TMP", text)
    path.write_text(f"{' '.join(arguments)}\n{done.returncode}\n{text}")


def describe(folder: Path, out: Path) -> None:
    """Write down the content of all run directories and tables below a folder."""
    for file in sorted(folder.rglob("*")):
        target = out / file.relative_to(folder)
        if file.suffix == ".json" and file.name != "study.json":
            content = without_times(json.loads(file.read_text()))
        elif file.suffix == ".parquet":
            table = pd.read_parquet(file)
            kept = table[[name for name in table.columns if not TIMES.search(name)]]
            content = {name: [str(kept[name].dtype), digest(kept[name])] for name in kept.columns}
        elif file.suffix == ".csv" and "report" in file.parts:
            content = file.read_text().splitlines()
        else:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.with_name(f"{file.name}.txt").write_text(
            json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)
        )


def without_times(content: Any) -> Any:
    """A JSON value without what differs between two runs of the same thing."""
    if isinstance(content, dict):
        return {name: without_times(value) for name, value in content.items() if not TIMES.search(name)}
    return [without_times(value) for value in content] if isinstance(content, list) else content


def digest(values: pd.Series) -> str:
    """A number that stands for a column's values."""
    return hashlib.sha256(values.to_csv(index=False).encode()).hexdigest()[:16]


def old_records(out: Path) -> None:
    """Write down the tables of the records that come with the product."""
    for archive in sorted((ROOT / "docs" / "records").rglob("*.tar.xz")):
        with tempfile.TemporaryDirectory() as folder:
            with tarfile.open(archive) as content:
                content.extractall(folder, filter="data")
            script = [sys.executable, "-m", "continual_metaopt.analysis.scripts.comparison_table", folder]
            done = subprocess.run(script, capture_output=True, text=True, check=False, cwd=folder)
            out.mkdir(parents=True, exist_ok=True)
            text = (done.stdout + done.stderr).replace(folder, "TMP")
            (out / f"{archive.name}.txt").write_text(text)
    shutil.copytree(ROOT / "analysis" / "sample_runs", "sample_runs")
    say(out / "sample_runs.txt", ["report", "sample_runs", "--out", "sample_report"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
