import sys

import pytest

from benchmarks.larger_than_memory import measure_speed, read_stream, write_sources
from continual_metaopt.streams.lazy_images import LazyImages
from continual_metaopt.streams.sources import load_source

LIMIT = 10**6
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory and times of a process")


def test_memory_is_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("CONTINUAL_METAOPT_CACHE", str(tmp_path / "cache"))
    for source in write_sources(tmp_path, 400, 32):
        growths = read_stream(source, LIMIT)
        assert len(growths) == 2
        assert all(0 <= growth < 100 for growth in growths)
        images = load_source(source, memory_limit=LIMIT)
        assert isinstance(images.train.x, LazyImages)
        assert images.decoded_bytes == 400 * 32 * 32 * 3


@pytest.mark.slow
def test_speed_is_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("CONTINUAL_METAOPT_CACHE", str(tmp_path / "cache"))
    source, _ = write_sources(tmp_path, 1200, 32)
    row = measure_speed(source, LIMIT, samples=1000, repeats=1)
    assert float(row["× larger than memory"]) > 0
    assert float(row["learner µs"]) > 0
