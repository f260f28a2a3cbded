"""A last layer that grows as classes appear, for class-incremental streams."""

from typing import Any

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import torch
from avalanche.models import IncrementalClassifier
from torch import Tensor, nn


class GrowingHead(IncrementalClassifier):
    """Avalanche's ``IncrementalClassifier``, for any floating-point type and for checkpoints.

    When an experience begins, Avalanche's strategies let it grow to the experience's largest label, so a network with
    such a head is told which classes come. Classes that no experience has trained yet are masked: their output is
    ``mask_value``, whatever the input. Old weights stay, and ``OnlineLearner`` keeps what its optimizer has learned of
    them. What is new is drawn from PyTorch's random numbers.

    A state that was saved when the layer was larger or smaller can be loaded; the parameters remain the same objects,
    so that an optimizer which knows them still does.

    Args:
        in_features: numbers that come in.

    Example:
        >>> GrowingHead(64)(torch.zeros(1, 64)).tolist()  # no class has appeared
        [[-1000.0]]
    """

    active_units: Tensor

    def __init__(self, in_features: int) -> None:
        super().__init__(in_features, initial_out_features=1)

    @torch.no_grad()
    def adaptation(self, experience: Any) -> None:
        """Grow to the labels of an experience, and unmask them if the network is training.

        Args:
            experience: an Avalanche experience of a classification stream.

        Raises:
            ValueError: the experience does not say which classes it has.
        """
        classes = getattr(experience, "classes_in_this_experience", None)
        if classes is None:
            raise ValueError(
                "a growing head grows with experiences that say which classes they have; use growing_head=False for "
                "regressions, and wrap pieces of experiences in Avalanche's with_classes_timeline"
            )
        before = self.classifier
        super().adaptation(experience)
        if self.classifier is not before:
            # Avalanche's new layer is of PyTorch's default type, which may have rounded the weights
            self.classifier.to(before.weight.dtype)
            self.classifier.weight[: before.out_features] = before.weight
            self.classifier.bias[: before.out_features] = before.bias

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}active_units")
        if saved is not None and len(saved) != len(self.active_units):
            self.active_units = self.active_units.new_zeros(len(saved))
            _resize(self.classifier, len(saved))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _resize(layer: nn.Linear, n_outputs: int) -> None:
    layer.out_features = n_outputs
    layer.weight.data = layer.weight.data.new_zeros(n_outputs, layer.in_features)
    layer.bias.data = layer.bias.data.new_zeros(n_outputs)
