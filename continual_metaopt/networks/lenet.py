"""LeNet, the small convolutional network of many continual-learning studies."""

from collections import OrderedDict

from torch import nn

from continual_metaopt.networks.normalisation import WITHOUT_GROUPS, Norm, check_norm, normalised
from continual_metaopt.networks.output_layer import output_layer

FIELD = 32  # height and width that LeNet-5 sees


class LeNet(nn.Sequential):
    """Two convolutions with 6 and 16 feature maps, and linear layers with 120 and 84 units: five blocks.

    LeNet-5 (LeCun et al., 1998) in its modern form: ReLU, max-pooling, every map connected to every other. The first
    convolution surrounds smaller images with zeros as if they lay in a field of 32 × 32, as LeNet-5 does with digits
    of 28 × 28, so that images of any size fit. It has 61,706 parameters for grey images of up to 32 × 32 with 10
    outputs, and 62,006 for colours. That of UPGD's experiments (Elsayed & Mahmood, 2024) has the same layers apart from
    the ReLUs after the convolutions, which it lacks.

    Args:
        n_outputs: number of outputs.
        input_shape: channels, height and width of an image.
        norm: "layer" or "batch" to normalise what goes into each ReLU, or "none", which the compiled engine knows.
        growing_head: whether outputs appear as classes do, instead of ``n_outputs`` from the beginning.

    Raises:
        ValueError: unknown normalisation.

    Example:
        >>> sum(parameter.numel() for parameter in LeNet().parameters())
        61706
    """

    def __init__(
        self,
        n_outputs: int = 10,
        input_shape: tuple[int, int, int] = (1, 28, 28),
        norm: Norm = "none",
        growing_head: bool = False,
    ) -> None:
        check_norm(norm, WITHOUT_GROUPS)
        channels, *size = input_shape
        padding = [max(0, -(-(FIELD - n) // 2)) for n in size]
        height, width = (((n + 2 * p - 4) // 2 - 4) // 2 for n, p in zip(size, padding, strict=True))
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=normalised(nn.Conv2d(channels, 6, 5, padding=(padding[0], padding[1])), norm),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=normalised(nn.Conv2d(6, 16, 5), norm),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            linear1=normalised(nn.Linear(16 * height * width, 120), norm),
            relu3=nn.ReLU(),
            linear2=normalised(nn.Linear(120, 84), norm),
            relu4=nn.ReLU(),
            linear3=output_layer(84, n_outputs, growing_head),
        )
        super().__init__(layers)
