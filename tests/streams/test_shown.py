"""Streams describe themselves in a line, and in a notebook by a table."""

from continual_metaopt.streams import make_stream, plan_stream
from continual_metaopt.streams.shown import html_table


def test_a_stream_in_a_line() -> None:
    options = {"n_experiences": 2, "samples_per_experience": 600, "stationary": "repeat"}
    benchmark = make_stream("permuted_inputs", **options)
    text = "permuted_inputs v1 of digits, stationary: repeat: 1,200 samples in 2 experiences, classification of inputs "
    text += f"1 × 8 × 8, 10 outputs; fingerprint {benchmark.info.fingerprint}"
    assert repr(benchmark.info) == f"StreamInfo({text})"
    assert repr(benchmark) == f"StreamBenchmark(StreamInfo({text}))"
    assert "60 samples in 1 experience, regression of inputs 20, 1 output;" in repr(
        plan_stream("tracking", n_samples=60).info
    )


def test_a_stream_in_a_notebook() -> None:
    benchmark = make_stream("permuted_inputs", n_experiences=25, samples_per_experience=100)
    html = benchmark._repr_html_()
    assert html == benchmark.info._repr_html_()
    assert html.startswith("<p>StreamInfo(permuted_inputs v1 of digits: 2,500 samples in 25 experiences")
    assert "<tr><td>19</td><td>1900</td><td>100</td><td>0, 1, 2, 3, 4, 5, 6, 7, 8, 9</td></tr></table>" in html
    assert html.endswith("<p>and 5 more experiences</p>")


def test_text_of_users_is_not_html() -> None:
    assert html_table({"<b>": ["a & b"]}) == "<table><tr><th>&lt;b&gt;</th></tr><tr><td>a &amp; b</td></tr></table>"
