"""What streams say about themselves."""

from dataclasses import asdict

import pytest

from continual_metaopt.streams import STREAMS
from continual_metaopt.streams.plan import plan_of
from continual_metaopt.streams.stream import ImagePlan, StreamAbout, image_stream

OWN = [name for name, description in STREAMS.descriptions().items() if not description.startswith("from ")]


@pytest.mark.parametrize("name", OWN)
def test_every_stream_says_what_it_is(name):
    about = STREAMS[name].about
    assert isinstance(about, StreamAbout)
    assert all(phrase and phrase == phrase.strip() and not phrase.endswith(".") for phrase in asdict(about).values())
    assert all(len(phrase) <= 120 for phrase in asdict(about).values()), "short phrases"


def test_phrases_are_optional_for_streams_of_ones_own():
    @image_stream("plain v1", when="never")
    def plain(images, seed):
        return ImagePlan(*(plan_of([([0], [0], -1)]) for _ in range(2)), 1)

    assert plain.about == StreamAbout("any images", changes="", when="never", length="", head="")
