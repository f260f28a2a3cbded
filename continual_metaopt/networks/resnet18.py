"""ResNet-18, for small images and for those of ImageNet's size."""

from collections import OrderedDict

from torch import Tensor, nn

from continual_metaopt.networks.normalisation import WITH_GROUPS, NormWithGroups, check_norm, normalised
from continual_metaopt.networks.output_layer import output_layer


class ResNet18(nn.Sequential):
    """ResNet-18 (He et al., 2016) for small images: a stem, four stages, and a linear head, six blocks.

    These are the six blocks of the MetaOptimize paper's ResNet-18. The stem is a 3 × 3 convolution without pooling, as
    is usual for images of 32 × 32. Otherwise it is ``torchvision.models.resnet18(norm_layer=…)``, initial weights
    included: with the standard width it computes the same function of the same parameters. It is written out because
    torchvision's has no width, and neither separate ReLUs nor biases in place of a normalisation.

    With 3 × 32 × 32 images and 10 outputs it has 11,173,962 parameters, and 701,466 with width 16, which suits
    learning from single samples on a CPU.

    Args:
        n_outputs: number of outputs.
        input_shape: channels, height and width of an image.
        width: feature maps of stem and first stage; each further stage has twice as many. The standard is 64.
        norm: "group", "layer" or "batch" for normalisation after each convolution. With "none", convolutions have
            biases, and residual branches start at zero as in Fixup (Zhang et al., 2019), so that activations do not
            grow with depth.
        groups: groups of feature maps that ``norm="group"`` normalises separately.
        growing_head: whether outputs appear as classes do, instead of ``n_outputs`` from the beginning.

    Raises:
        ValueError: the images are smaller than 8 × 8; groups that do not divide the width; unknown normalisation.

    Example:
        >>> sum(parameter.numel() for parameter in ResNet18(width=16).parameters())
        701466
    """

    def __init__(
        self,
        n_outputs: int = 10,
        input_shape: tuple[int, int, int] = (3, 32, 32),
        width: int = 64,
        norm: NormWithGroups = "group",
        groups: int = 8,
        growing_head: bool = False,
    ) -> None:
        check_norm(norm, WITH_GROUPS)
        channels, *size = input_shape
        if min(size) < 8:
            raise ValueError(
                f"ResNet18 halves images three times, so they must be at least 8×8, not {size[0]}×{size[1]}"
            )
        if width < 1:
            raise ValueError(f"width must be at least 1, not {width}")
        if norm == "group" and (groups < 1 or width % groups):
            raise ValueError(
                f"{groups} groups do not divide {width} feature maps evenly; choose groups that divide the width, or "
                'norm="layer"'
            )
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            stem=nn.Sequential(
                OrderedDict(conv=_convolution(channels, width, 3, 1, norm, groups), relu=nn.ReLU()),
            )
        )
        inputs = width
        for stage in range(4):
            outputs = width * 2**stage
            layers[f"stage{stage + 1}"] = nn.Sequential(
                ResidualBlock(inputs, outputs, 1 if stage == 0 else 2, norm, groups),
                ResidualBlock(outputs, outputs, 1, norm, groups),
            )
            inputs = outputs
        layers["head"] = nn.Sequential(
            OrderedDict(
                pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), linear=output_layer(inputs, n_outputs, growing_head)
            )
        )
        super().__init__(layers)


def resnet18_imagenet(
    n_outputs: int = 10,
    input_shape: tuple[int, int, int] = (3, 224, 224),
    norm: NormWithGroups = "batch",
    groups: int = 8,
    growing_head: bool = False,
) -> ResNet18:
    """Make ResNet-18 as it is used on ImageNet: a stem of 7 × 7 with stride 2, and max-pooling before the stages.

    With ``norm="batch"`` it is torchvision's ``resnet18``.

    Args:
        n_outputs: number of outputs.
        input_shape: channels, height and width of an image.
        norm: as of ``ResNet18``; batch normalisation is for mini-batches.
        groups: groups of feature maps that ``norm="group"`` normalises separately.
        growing_head: whether outputs appear as classes do, instead of ``n_outputs`` from the beginning.

    Raises:
        ValueError: as of ``ResNet18``.

    Example:
        >>> sum(parameter.numel() for parameter in resnet18_imagenet(1000).parameters())
        11689512
    """
    network = ResNet18(n_outputs, input_shape, norm=norm, groups=groups, growing_head=growing_head)
    network.stem = nn.Sequential(
        OrderedDict(
            conv=_convolution(input_shape[0], 64, 7, 2, norm, groups), relu=nn.ReLU(), pool=nn.MaxPool2d(3, 2, 1)
        )
    )
    return network


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions, the first one with the stride, to whose result the input is added."""

    def __init__(self, n_inputs: int, n_outputs: int, stride: int, norm: str, groups: int) -> None:
        super().__init__()
        self.conv1 = _convolution(n_inputs, n_outputs, 3, stride, norm, groups)
        self.relu1 = nn.ReLU()
        self.conv2 = _convolution(n_outputs, n_outputs, 3, 1, norm, groups)
        same = n_inputs == n_outputs and stride == 1
        self.shortcut = nn.Identity() if same else _convolution(n_inputs, n_outputs, 1, stride, norm, groups)
        self.relu2 = nn.ReLU()
        if isinstance(self.conv2, nn.Conv2d):  # without normalisation
            nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps [n, n_outputs, …] from feature maps [n, n_inputs, …]."""
        change = self.conv2(self.relu1(self.conv1(x)))
        y: Tensor = self.relu2(change + self.shortcut(x))
        return y


def _convolution(n_inputs: int, n_outputs: int, size: int, stride: int, norm: str, groups: int) -> nn.Module:
    layer = nn.Conv2d(n_inputs, n_outputs, size, stride, padding=size // 2, bias=norm == "none")
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return normalised(layer, norm, groups)
