"""Labelled images, as sources give them and streams present them."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from continual_metaopt.streams.lazy_images import LazyImages


@dataclass(frozen=True)
class ImageSet:
    """Labelled images: ``x`` uint8 [N, H, W, C], decoded or not, ``y`` int64 [N] with classes 0 … K−1."""

    x: NDArray[np.uint8] | LazyImages
    y: NDArray[np.int64]


@dataclass(frozen=True)
class ImageSource:
    """Images of a training and a test split.

    Attributes:
        name: as the user wrote it.
        train, test: the images.
        classes: the source's own label of each class 0 … K−1.
        content_hash: SHA-256 over the stored bytes and labels, and whether images were turned and what size they were
            resized to (not over decoded pixels, which depend on the decoder).
        left_out: messages about files that were left out, and images that could not be decoded.
        splits: which files were taken for which split, in words; empty for sources that are not found by their names.
    """

    name: str
    train: ImageSet
    test: ImageSet
    classes: list[Any]
    content_hash: str = field(repr=False)
    left_out: list[str] = field(default_factory=list, repr=False)
    splits: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        height, width, channels = self.train.x.shape[1:]
        return channels, height, width

    @property
    def decoded_bytes(self) -> int:
        """What both splits take up when they are decoded."""
        return math.prod(self.train.x.shape) + math.prod(self.test.x.shape)
