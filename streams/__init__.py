"""Non-stationary streams, of images, of text and for regression, as Avalanche benchmarks.

A stream is a sequence of *experiences*; a learner meets every sample once, in an order that the seed fixes. All streams
are made by ``make_stream``, which returns an Avalanche benchmark with ``train_stream``, ``test_stream`` and ``info``.
"""

import inspect
from typing import TYPE_CHECKING, Any

from continual_metaopt.streams.registry import Registry, UnknownNameError

if TYPE_CHECKING:
    from continual_metaopt.streams.benchmark import StreamBenchmark
    from continual_metaopt.streams.iterators import stream_of as stream_of
    from continual_metaopt.streams.stream import Stream

__all__ = ["STREAMS", "UnknownNameError", "make_stream", "plan_stream", "register_stream", "stream_of"]

STREAMS: Registry[Any] = Registry("stream", entry_points="continual_metaopt.streams")
for module, name, description in (
    ("class_split", "class_split", "every experience brings classes that were not there before"),
    ("hard_and_easy", "hard_and_easy", "experiences of many classes and of one take turns"),
    ("recurring", "recurring", "a cycle of tasks, each with its classes, comes again"),
    ("permuted_inputs", "permuted_inputs", "every experience permutes the pixels in a new way"),
    ("permuted_labels", "permuted_labels", "every experience gives the classes other labels"),
    ("label_noise", "label_noise", "a changing share of the labels is wrong"),
    ("drifting", "drifting_rotation", "every experience turns the images a little further"),
    ("drifting", "drifting_brightness", "every experience shows the images a little darker, or brighter"),
    ("drifting", "drifting_noise", "every experience shows the images a little noisier"),
    ("multi_epoch", "multi_epoch", "ordinary mini-batch training: several passes, and no change"),
    ("tracking", "tracking", "linear regression on a target that keeps changing (Sutton, 1992)"),
    ("bit_flipping", "bit_flipping", "slowly changing regression: one of 15 slow bits flips at a time (Dohare et al.)"),
    ("array_stream", "array_stream", "the user's own arrays: vectors, series or images, for classes or a regression"),
    ("table", "table", "the rows of a CSV or Parquet file, in the order in which they happened"),
    ("text", "text", "the next symbol of texts: every experience is another domain"),
):
    STREAMS.add_lazily(name, f"continual_metaopt.streams.{module}:{name}", description)

register_stream = STREAMS.register


def make_stream(name: str, **options: Any) -> "StreamBenchmark":
    """Make a stream by name.

    Args:
        name: "class_split", "permuted_inputs", "tracking", … (all of them: ``list(STREAMS)``), or what a package or
            ``register_stream`` added.
        **options: the options of that stream's function, such as ``source``, ``seed`` and ``stationary``.

    Returns:
        An Avalanche benchmark with ``train_stream``, ``test_stream`` and ``info`` (a ``StreamInfo``).

    Raises:
        UnknownNameError: no such stream or source.
        TypeError: an option that the stream does not have.
        ValueError: an option's value does not fit.
        FileNotFoundError: the source's files are not there.

    Example:
        >>> from continual_metaopt.streams import make_stream
        >>> benchmark = make_stream("class_split", source="digits", classes_per_experience=2, seed=0)
        >>> len(benchmark.train_stream), benchmark.info.for_learner.n_outputs
        (5, 2)
    """
    stream = plan_stream(name, **options)
    from continual_metaopt.streams.benchmark import StreamBenchmark

    return StreamBenchmark(stream)


def plan_stream(name: str, **options: Any) -> "Stream":
    """Make the same stream as ``make_stream``, as arrays alone; needs neither Avalanche nor torch.

    Example:
        >>> plan_stream("permuted_inputs", n_experiences=3).info.boundaries
        [0, 1438, 2876]
    """
    stream: Stream = STREAMS[name](**options)
    return stream


if not TYPE_CHECKING:
    _make_stream = globals().pop("make_stream")

    def __getattr__(name: str) -> Any:
        """Describe the options of all streams in the docstring of ``make_stream``, when it is first asked for."""
        if name == "stream_of":
            from continual_metaopt.streams.iterators import stream_of

            return globals().setdefault(name, stream_of)
        if name != "make_stream":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from continual_metaopt.streams.stream import options_of_streams

        options = options_of_streams({name: STREAMS[name] for name in STREAMS.own})
        _make_stream.__doc__ = f"{inspect.cleandoc(_make_stream.__doc__ or '')}\n{options}"
        return globals().setdefault(name, _make_stream)


if __name__ == "streams":  # in a checkout, whose folder Python has found first
    from continual_metaopt.streams.short_names import give_short_name

    give_short_name("streams")
