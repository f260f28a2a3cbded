"""The tutorials run as they stand, from an empty folder and in little time, and keep what they promise."""

import difflib
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
SECONDS = 120  # of processors' time, since others may be using them
PATIENCE = 900  # seconds
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",  # fastest for such small networks, and others may be using the cores
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
}

# notebook -> a pattern for each thing that its outputs show, in their order
SHOWN = {
    "avalanche_script": [
        r"(?s)(accuracy while learning: \d\d\.\d%.*){5}accuracy on all experiences afterwards: \d\d\.\d%",
        r"(?s)(accuracy while learning: [78]\d\.\d%.*){4}",
        r"MetaOptimize\(base=AdamW, .*\n  0: step size 0\.0\d+, 8,320 parameters",
        r"online accuracy: 8\d\.\d%",
        r"step_size/0",
        r"Top1_Acc_Stream/eval_phase/test_stream/Task000 = 0\.\d{4}",
    ],
    "own_optimizer": [
        r"SignMomentum \(tuned\) +8 +5\d\.\d ± \d\.\d",
        r"RMSProp \(tuned\) +8 +\d\d\.\d ± \d\.\d {10,}\d",  # without a difference: it is the best
        r"MetaOptimize \(tuned\) +8 +6\d\.\d ± \d\.\d +−\d\.\d ± \d\.\d",
        r"wrote runs/mine/report/report\.html",
        r"p \(Holm\)",
        r"MetaOptimize \(tuned\) +RMSProp \(tuned\) +8 +−\d+\.\d+ ± \d\.\d\d",
        r"figures/online_accuracy\.pdf",
    ],
    "own_vectors": [
        r"array_stream v1 of arrays: 4,000 samples in 4 experiences, classification of inputs 8, 3 outputs",
        r"online accuracy: 8\d\.\d%",
        r"Runs\(15 runs of 3 learners on array_stream v1, seeds 0, 1, 2, 3, 4; 15 finished\)",
        r"MetaOptimize +5 +8\d\.\d ± \d\.\d",
        r"mean squared error",
        r"MetaOptimize +5 +0\.\d+ ± \d\.\d+",
    ],
}
PICTURES = {"avalanche_script": 2, "own_vectors": 3}


def spent() -> float:
    """Seconds of processors' time that all processes that this one has started, and that have ended, took together."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def cells(path: Path) -> list[str]:
    """The code of each cell of a notebook."""
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


def test_the_index_and_the_readme_name_every_tutorial() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8").splitlines()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in TUTORIALS:
        assert f"tutorials/{path.stem}" in index
        assert f"(docs/tutorials/{path.name})" in readme


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, encoding="utf-8", timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_tutorial_is_expected_and_git_holds_no_outputs() -> None:
    assert sorted(SHOWN) == [path.stem for path in TUTORIALS]
    for path in TUTORIALS:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            assert not cell.get("outputs"), f"{path.name}: the site makes the outputs; clear them before you commit"
            assert cell.get("execution_count") is None


def check_shown(text: str, name: str) -> None:
    for pattern in SHOWN[name]:
        found = re.search(pattern, text)
        assert found, f"{pattern} is not in\n{text}"
        text = text[found.start() :]


@pytest.mark.slow  # the third one's commands are run below, and the site runs all
@pytest.mark.parametrize("path", [path for path in TUTORIALS if path.stem in PICTURES], ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    for name in ("OMP_NUM_THREADS", "PATH", "PYTHONPATH"):
        monkeypatch.setenv(name, ENVIRONMENT[name])
    monkeypatch.delenv("MPLBACKEND", raising=False)  # which commands set in the process that they are tested in
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    options = {"timeout": PATIENCE, "kernel_name": "python3", "coalesce_streams": True}
    client = nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}, **options)
    before = spent()
    client.execute()
    seconds = spent() - before
    outputs: list[Any] = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "\n".join(
        output["text"] if output["output_type"] == "stream" else output["data"].get("text/plain", "")
        for output in outputs
        if output.get("name") != "stderr"
    )
    check_shown(text, path.stem)
    print(f"{path.stem}: {seconds:.0f} s of processors' time")
    assert sum("image/png" in output.get("data", {}) for output in outputs) == PICTURES[path.stem]
    assert seconds < SECONDS


@pytest.mark.slow
def test_four_changed_lines_make_an_avalanche_script_learn_its_step_sizes(tmp_path: Path) -> None:
    before, after = cells(ROOT / "docs" / "tutorials" / "avalanche_script.ipynb")[:2]
    changed = [line for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line.startswith("+ ")]
    assert len(changed) == 4
    begun, accuracies = spent(), []
    for name, script in (("before", before), ("after", after)):
        (tmp_path / f"{name}.py").write_text(script, encoding="utf-8")
        output = run([sys.executable, f"{name}.py"], tmp_path)
        accuracies.append([float(number) for number in re.findall(r"while learning: ([\d.]+)%", output)])
    assert spent() - begun < SECONDS
    assert len(accuracies[0]) == len(accuracies[1]) == 5
    assert sum(accuracies[1]) > sum(accuracies[0]) + 100  # percentage points over five tasks

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = EventAccumulator(str(tmp_path / "curves")).Reload()
    assert {"StepSize/0/train_phase/train_stream", "StepSize/2/train_phase/train_stream"} <= set(
        curves.Tags()["scalars"]
    )


@pytest.mark.slow
def test_forty_lines_and_three_commands_put_an_optimizer_to_the_test(tmp_path: Path) -> None:
    images, *others = cells(ROOT / "docs" / "tutorials" / "own_optimizer.ipynb")
    files = dict(re.findall(r"\A%%writefile (\S+)\n(.*)", cell, re.DOTALL)[0] for cell in others if "%%wri" in cell)
    commands = [cell.removeprefix("%%bash\n") for cell in others if cell.startswith("%%bash")]
    n_lines = sum(len(text.splitlines()) for text in files.values())
    assert n_lines <= 40
    assert f"It takes {n_lines} lines and 3 commands" in (TUTORIALS[1]).read_text(encoding="utf-8")
    assert len(commands) == 3
    assert all(len(command.splitlines()) == 1 for command in commands)
    run([sys.executable, "-c", images], tmp_path)  # the user has these
    begun = spent()
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    output = [run(["bash", "-c", command], tmp_path) for command in commands]
    assert spent() - begun < SECONDS
    check_shown("\n".join(output), "own_optimizer")
    assert (tmp_path / "figures" / "online_accuracy.pdf").stat().st_size > 1000
    assert (tmp_path / "figures" / "paired_comparisons.tex").exists()
