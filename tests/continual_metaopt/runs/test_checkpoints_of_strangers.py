import io
import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from continual_metaopt.analysis.run_directory import COMPILED_CHECKPOINT
from continual_metaopt.engines.compiled.kernels import Learned
from continual_metaopt.runs.compiled_run import read_compiled_checkpoint
from continual_metaopt.runs.damage import load_checkpoint
from continual_metaopt.runs.preparing import _read_checkpoint
from continual_metaopt.streams.stream import ExperienceInfo, LearnerInfo, StreamInfo

STREAM = StreamInfo(
    definition="class_split v1",
    fingerprint="f",
    source="digits",
    stationary=None,
    experiences=[ExperienceInfo([], first, 10, 0) for first in (0, 10, 20)],
    for_learner=LearnerInfo(2, (1, 8, 8), "classification", 30),
)
PROGRESS = {"n_parts": 0, "wall_time": 1.0, "learning_time": 0.5, "step": 15, "n_correct": 7}
ABOUT = {
    "run_id": "a",
    "n_samples": 15,
    "n_correct": 7,
    "n_ended": 1,
    "n_correct_in_experience": 3,
    "loss_in_experience": 2.5,
    "progress": PROGRESS,
}


def write(run: Path, about: dict[str, Any] = ABOUT, save: Any = np.savez) -> Path:
    run.mkdir(exist_ok=True)
    (run / "config.json").write_text("{}")
    arrays = {name: np.arange(4.0) for name in Learned._fields}
    with (run / COMPILED_CHECKPOINT).open("wb") as file:
        save(file, about=json.dumps(about), **arrays)
    return run / COMPILED_CHECKPOINT


def load(run: Path) -> dict[str, Any] | None:
    return load_checkpoint(run, COMPILED_CHECKPOINT, read_compiled_checkpoint, "a", STREAM)


def with_header(path: Path, header: bytes) -> None:
    """Replace an array by one with this header, whole otherwise."""
    with zipfile.ZipFile(path) as content:
        entries = {name: content.read(name) for name in content.namelist()}
    entries["weights.npy"] = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(32)
    with zipfile.ZipFile(path, "w") as changed:
        for name, data in entries.items():
            changed.writestr(name, data)


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    write(tmp_path / "run")
    loaded = load(tmp_path / "run")
    assert loaded is not None
    learned = loaded.pop("learned")
    assert loaded == ABOUT
    assert all(array.tolist() == [0, 1, 2, 3] and array.flags.writeable for array in learned)


FALSE_NUMBERS: list[dict[str, Any]] = [
    {"n_samples": 10**6},
    {"n_samples": -5},
    {"n_samples": 9},
    {"n_samples": 21},
    {"n_samples": "15"},
    {"n_samples": True},
    {"n_ended": -1},
    {"n_ended": 99},
    {"n_ended": 3},
    {"n_correct": 16},
    {"n_correct_in_experience": 6},
    {"loss_in_experience": "much"},
    {"loss_in_experience": float("nan")},
    {"progress": PROGRESS | {"step": 14}},
    {"progress": PROGRESS | {"n_parts": -1}},
    {"progress": PROGRESS | {"n_parts": 10**12}},
    {"progress": PROGRESS | {"n_correct": 99}},
    {"progress": PROGRESS | {"wall_time": None}},
    {"progress": []},
    {"run_id": "b"},
]


@pytest.mark.parametrize("false", FALSE_NUMBERS, ids=str)
def test_impossible_numbers_are_set_aside_as_damage(tmp_path: Path, false: dict[str, Any]) -> None:
    path = write(tmp_path / "run", ABOUT | false)
    assert load(tmp_path / "run") is None
    assert not path.exists()
    assert (tmp_path / "run" / "damaged" / COMPILED_CHECKPOINT).exists()
    reason = (tmp_path / "run" / "damaged" / "reason.txt").read_text()
    many_parts = false.get("progress") and false["progress"]["n_parts"] == 10**12
    assert ("part-00000.parquet' is missing" if many_parts else str(path)) in reason
    assert "memory" not in reason


HEADERS = {
    "huge": b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }\n",
    "negative": b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }\n",
    "short": b"{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }\n",
    "objects": b"{'descr': '|O', 'fortran_order': False, 'shape': (4,), }\n",
    "nothing": b"\x00" * 60,
    "nested": b"(" * 5000,
}


@pytest.mark.parametrize("header", HEADERS)
def test_a_damaged_header_is_damage_and_not_a_lack_of_memory(tmp_path: Path, header: str) -> None:
    path = write(tmp_path / "run")
    with_header(path, HEADERS[header])
    assert load(tmp_path / "run") is None
    reason = (tmp_path / "run" / "damaged" / "reason.txt").read_text()
    assert re.match(rf"'{re.escape(str(path))}' is damaged \(.*\); what was recorded is kept in ", reason)
    assert "memory" not in reason


def test_compressed_arrays_are_not_unpacked(tmp_path: Path) -> None:
    path = write(tmp_path / "run", save=np.savez_compressed)
    with pytest.raises(ValueError, match=r"^its array about is compressed, as this package's are not$"):
        read_compiled_checkpoint(path)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def test_pickles_are_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, "checkpoint.pt")
    with pytest.raises(pickle.UnpicklingError):
        _read_checkpoint(Path("checkpoint.pt"))
    np.savez("checkpoint.npz", about=np.array([Evil()]))
    with pytest.raises(ValueError, match="its array about does not have the size"):
        read_compiled_checkpoint(Path("checkpoint.npz"))
    assert not Path("executed").exists()


def test_tensors_of_pytorch_are_read_if_the_file_can_hold_them(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"model": {"w": torch.arange(4.0)}, "n": 1}, path)
    assert _read_checkpoint(path)["model"]["w"].tolist() == [0, 1, 2, 3]
    torch.save({"model": {"w": torch.zeros(1).expand(10**9)}}, path)
    with pytest.raises(ValueError, match=r"^it has [\d,]+ bytes, but a tensor of the shape \(1000000000,\)$"):
        _read_checkpoint(path)


def test_compressed_tensors_are_not_unpacked(tmp_path: Path) -> None:
    whole, path = io.BytesIO(), tmp_path / "checkpoint.pt"
    torch.save({"w": torch.zeros(10**5)}, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in source.namelist():
            packed.writestr(name, source.read(name))
    with pytest.raises(ValueError, match=r"^it is compressed, as this package's are not$"):
        _read_checkpoint(path)
