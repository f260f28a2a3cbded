"""What the published continual experiment leaves open: the stream ``published_choices`` and the network ``choice_cnn``.

The paper does not say how labels are numbered, how images are scaled, in which order classes and samples come, or how
weights begin. Each is an option here. With their defaults, the stream presents the samples of ``class_split``, and the
network computes what ``paper_cnn`` computes. The study files in this folder import this module.
"""

import hashlib
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from continual_metaopt import PaperCNN, register_network
from streams import register_stream
from streams.class_groups import deal, members, plan_classes
from streams.images import ImageSource
from streams.plan import CLASS_ORDER, SAMPLE_ORDER, random_state
from streams.samples import ImageSamples
from streams.sources import SourceSpec
from streams.stream import ImagePlan, Stream, image_stream

Labels = Literal["within", "global"]
ClassOrder = Literal["dealt", "alphabetical"]
SampleOrder = Literal["shuffled", "file"]
Scaling = Literal["centred", "unit", "standardised"]
Initialisation = Literal["pytorch", "kaiming_normal", "glorot_uniform"]

CLASSES_PER_EXPERIENCE = 10
# of the training images of CIFAR-100, scaled to [0, 1]
MEAN = np.array([0.50707516, 0.48654887, 0.44091784], np.float32)[:, None, None]
DEVIATION = np.array([0.26733429, 0.25643846, 0.27615047], np.float32)[:, None, None]


class Rescaled:
    """Samples whose images are scaled in another way than (x − ½) / ½.

    Args:
        samples: images in [−1, 1].
        scaling: "unit" for [0, 1], "standardised" for mean 0 and standard deviation 1 in each channel.
    """

    def __init__(self, samples: ImageSamples, scaling: Scaling) -> None:
        self._samples, self._scaling = samples, scaling
        self.labels = samples.labels

    def __len__(self) -> int:
        return len(self._samples)

    def batch(self, steps: slice) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Some of the images and their labels; see ``streams.samples.Samples``."""
        images, labels = self._samples.batch(steps)
        images = images * np.float32(0.5) + np.float32(0.5)
        return (images - MEAN) / DEVIATION if self._scaling == "standardised" else images, labels


@image_stream("published_choices v1")
def _planned(
    images: ImageSource,
    seed: int,
    *,
    labels: Labels,
    class_order: ClassOrder,
    sample_order: SampleOrder,
    samples_per_experience: int | None,
) -> ImagePlan:
    classes = np.arange(len(images.classes))
    if class_order == "dealt":
        groups = deal(classes, CLASSES_PER_EXPERIENCE, images.classes, random_state(seed, CLASS_ORDER))
    else:
        groups = classes.reshape(-1, CLASSES_PER_EXPERIENCE)
    train = [members(images.train, group) for group in groups]
    if sample_order == "shuffled":
        train = [random_state(seed, SAMPLE_ORDER, i).permutation(part) for i, part in enumerate(train)]
    return plan_classes(images, groups, [part[:samples_per_experience] for part in train], labels, seed)


@register_stream("published_choices", "10 classes in each experience; what the paper leaves open are options")
def published_choices(
    source: SourceSpec = "digits",
    *,
    seed: int = 0,
    labels: Labels = "within",
    class_order: ClassOrder = "dealt",
    sample_order: SampleOrder = "shuffled",
    scaling: Scaling = "centred",
    samples_per_experience: int | None = None,
    data_root: str = "data",
) -> Stream:
    """Every experience brings 10 classes that were not there before.

    Args:
        source: of the images.
        seed: decides what is dealt and shuffled.
        labels: "within" numbers the labels 0 … 9 anew in each experience; "global" keeps the source's numbering.
        class_order: "dealt" deals the classes at random; "alphabetical" takes classes 0 … 9, 10 … 19 and so on.
        sample_order: "shuffled" shuffles each experience; "file" keeps the order of the source's files.
        scaling: "centred" for (x − ½) / ½; "unit" for [0, 1]; "standardised" for CIFAR-100's mean and standard
            deviation of each channel.
        samples_per_experience: use only this many samples of each experience, the first ones; None for all.
        data_root: folder of torchvision's files.
    """
    stream = _planned(
        source,
        seed=seed,
        labels=labels,
        class_order=class_order,
        sample_order=sample_order,
        samples_per_experience=samples_per_experience,
        data_root=Path(data_root),
    )
    if scaling == "centred":
        return stream
    fingerprint = hashlib.sha256(f"{stream.info.fingerprint}\n{scaling}".encode()).hexdigest()[:32]
    train, test = ([Rescaled(samples, scaling) for samples in split] for split in (stream.train, stream.test))
    return replace(stream, info=replace(stream.info, fingerprint=fingerprint), train=train, test=test)


@register_network("choice_cnn", "paper_cnn with other initial weights, or with one linear layer; two blocks")
def choice_cnn(
    n_outputs: int,
    input_shape: tuple[int, int, int],
    *,
    initialisation: Initialisation = "pytorch",
    linear_layers: Literal[1, 2] = 2,
) -> nn.Sequential:
    """The paper's network in two blocks: ``features``, and the last layer, ``head``.

    Args:
        n_outputs: number of outputs.
        input_shape: channels, height and width of an image.
        initialisation: of the weights: PyTorch's own, Kaiming normal, or Glorot uniform. Biases are zero in the last
            two.
        linear_layers: 2, or 1 to have the head follow the convolutions.
    """
    *features, (_, head) = PaperCNN(n_outputs, input_shape).named_children()
    if linear_layers == 1:
        *features, (_, linear1), _ = features
        head = nn.Linear(linear1.in_features, n_outputs)
    network = nn.Sequential(OrderedDict(features=nn.Sequential(OrderedDict(features)), head=head))
    if initialisation != "pytorch":
        fill = nn.init.kaiming_normal_ if initialisation == "kaiming_normal" else nn.init.xavier_uniform_
        for name, parameter in network.named_parameters():
            if name.endswith("weight"):
                fill(parameter)
            else:
                nn.init.zeros_(parameter)
    return network
