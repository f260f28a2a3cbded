"""The benchmark of networks makes its table."""

import pytest

from benchmarks import networks


def test_networks_are_measured_beside_each_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = "networks --networks linear vit_tiny:width=8,depth=1,heads=2,stages=1 --shape 1 8 8 --seconds 0.05"
    monkeypatch.setattr("sys.argv", [*arguments.split(), "--repeats", "1", "--format", "tsv"])

    networks.main()

    header, *rows = [[cell.strip() for cell in line.split("\t")] for line in capsys.readouterr().out.splitlines()]
    assert header == ["network", "parameters", "blocks", "engine", "samples/s", "range", "× first"]
    assert [row[:4] for row in rows] == [
        ["linear", "650", "1: linear", "compiled"],
        # (16 + 1)·8 + 8 + 5·8, 12·8² + 13·8, and 2·8 + 9·10
        ["vit_tiny:width=8,depth=1,heads=2,stages=1", "1,162", "3: embedding, stage1, head", "fused"],
    ]
    assert rows[0][-1] == "1.000"
    assert all(float(row[4].replace(",", "")) > 0 for row in rows)
