"""Normalisation: of single samples, or of mini-batches where learning is from these."""

from collections import OrderedDict
from functools import partial
from typing import Annotated

from pydantic import AfterValidator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from continual_metaopt.streams.registry import unknown_name


def check_norm(norm: str, known: tuple[str, ...]) -> str:
    """A kind of normalisation, if it is known.

    Raises:
        ValueError: it is not.
    """
    if norm not in known:
        raise ValueError(unknown_name("normalisation", norm, list(known)))
    return norm


WITH_GROUPS = ("batch", "group", "layer", "none")
WITHOUT_GROUPS = ("batch", "layer", "none")
# of networks' arguments, by which descriptions of runs are checked before anything has run
NormWithGroups = Annotated[str, AfterValidator(partial(check_norm, known=WITH_GROUPS))]
Norm = Annotated[str, AfterValidator(partial(check_norm, known=WITHOUT_GROUPS))]


def require_batches(model: nn.Module, batch_size: int) -> None:
    """Refuse batch normalisation where learning is from single samples.

    Raises:
        ValueError: a layer takes mean and variance over a batch, and a batch has one sample.
    """
    if batch_size == 1 and any(isinstance(layer, _BatchNorm) for layer in model.modules()):
        raise ValueError(
            "batch normalisation takes mean and variance over a batch, and this stream's samples come one at a time; "
            'take another normalisation, such as norm="layer", or a stream of mini-batches, such as multi_epoch'
        )


def normalised(layer: nn.Conv2d | nn.Linear, norm: str, groups: int = 1) -> nn.Module:
    """A layer together with the normalisation of its outputs, as one module, so that they share a block.

    Args:
        layer: a convolution or linear layer.
        norm: "group" for ``GroupNorm`` (Wu & He, 2018), "layer" for layer normalisation (Ba et al., 2016), which is
            ``GroupNorm`` with one group of all channels and positions, "batch" for batch normalisation (Ioffe and
            Szegedy, 2015), whose running statistics are for held-out samples, "none" for the layer as it is.
        groups: number of groups of channels.
    """
    if norm == "none":
        return layer
    n_outputs = layer.weight.shape[0]
    scale_and_shift: nn.Module
    if norm == "batch":
        scale_and_shift = (nn.BatchNorm2d if isinstance(layer, nn.Conv2d) else nn.BatchNorm1d)(n_outputs)
    else:
        scale_and_shift = nn.GroupNorm(groups if norm == "group" else 1, n_outputs)
    return nn.Sequential(OrderedDict(layer=layer, norm=scale_and_shift))
