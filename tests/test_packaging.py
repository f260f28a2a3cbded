"""The wheel works away from the repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
KINDS_OF_FILES = {".py", ".pyc", ".yaml", ".typed", ".html", ".css", ".js", ".json", ".txt"}


@pytest.mark.slow
def test_the_built_wheel_runs_a_stream(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(REPOSITORY)], check=True)
    (wheel,) = tmp_path.glob("continual_metaopt-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {
        "continual_metaopt/study/packaged/quick.yaml",
        "continual_metaopt/py.typed",
        "analysis/__init__.py",  # the short names
        "streams/__init__.py",
        "continual_metaopt/streams/samples.py",
        "continual_metaopt/analysis/scripts/step_sizes.py",
        "continual_metaopt/analysis/html/templates/report.html",
        *(
            f"continual_metaopt/analysis/html/assets/{name}"
            for name in ("report.js", "report.css", "uPlot.iife.min.js", "uPlot-LICENSE.txt")
        ),
    } <= set(names)
    assert not [name for name in names if name.startswith(("tests", "docs"))]
    installed = tmp_path / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(installed), str(wheel)], check=True)
    command = "import sys; from continual_metaopt.commands import main; print(main.__file__); "
    command += "sys.exit(main.main(sys.argv[1:]))"
    arguments = ["run", "--stream.n-experiences", "2", "--stream.samples-per-experience", "50", "--out", "one"]
    result = subprocess.run(
        [sys.executable, "-c", command, *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "metaoptimize" in result.stdout
    assert str(installed) in result.stdout.splitlines()[0]
    # nothing but what pip knows of is there, so that the folder goes when another version is installed
    assert {file.suffix for file in (installed / "continual_metaopt").rglob("*") if file.is_file()} <= KINDS_OF_FILES
    assert (tmp_path / "one" / "samples.parquet").exists()
