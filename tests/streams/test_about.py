"""What streams say about themselves."""

import re
from dataclasses import asdict
from inspect import signature

import pytest

from continual_metaopt.streams import STREAMS, make_stream
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


def test_the_help_of_make_stream_tells_all_options_of_all_streams():
    sections = dict(re.findall(r"^Options of (.*):\n((?:    .*\n?)+)", make_stream.__doc__, re.MULTILINE))
    assert set(sections) == {*OWN, "all streams of images"}
    for name in OWN:
        told = sections[name] + (
            sections["all streams of images"] if STREAMS[name].about.source == "any images" else ""
        )
        for option, parameter in signature(STREAMS[name]).parameters.items():
            assert re.search(rf"^    - {option} = {re.escape(repr(parameter.default))}: \S", told, re.MULTILINE), option
