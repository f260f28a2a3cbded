"""Normalisation that makes sense for single samples."""

from collections import OrderedDict
from functools import partial
from typing import Annotated

from pydantic import AfterValidator
from torch import nn

from continual_metaopt.streams.registry import unknown_name


def check_norm(norm: str, known: tuple[str, ...]) -> str:
    """A kind of normalisation, if it is known.

    Raises:
        ValueError: it is not, or it is batch normalisation.
    """
    if norm == "batch":
        choices = " or ".join(f'norm="{name}"' for name in known)
        raise ValueError(
            "batch normalisation takes mean and variance over a batch, and learning is from single samples here, whose "
            f"statistics are neither a batch's nor those that it would predict with; use {choices}"
        )
    if norm not in known:
        raise ValueError(unknown_name("normalisation", norm, list(known)))
    return norm


WITH_GROUPS = ("group", "layer", "none")
WITHOUT_GROUPS = ("layer", "none")
# of networks' arguments, by which descriptions of runs are checked before anything has run
GroupOrLayerNorm = Annotated[str, AfterValidator(partial(check_norm, known=WITH_GROUPS))]
LayerNorm = Annotated[str, AfterValidator(partial(check_norm, known=WITHOUT_GROUPS))]


def normalised(layer: nn.Conv2d | nn.Linear, norm: str, groups: int = 1) -> nn.Module:
    """A layer together with the normalisation of its outputs, as one module, so that they share a block.

    Args:
        layer: a convolution or linear layer.
        norm: "group" for ``GroupNorm`` (Wu & He, 2018), "layer" for layer normalisation (Ba et al., 2016), which is
            ``GroupNorm`` with one group of all channels and positions, "none" for the layer as it is.
        groups: number of groups of channels.
    """
    if norm == "none":
        return layer
    scale_and_shift = nn.GroupNorm(groups if norm == "group" else 1, layer.weight.shape[0])
    return nn.Sequential(OrderedDict(layer=layer, norm=scale_and_shift))
