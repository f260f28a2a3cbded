"""The convolutional network of the MetaOptimize paper's continual experiment."""

from collections import OrderedDict

from torch import nn

from continual_metaopt.networks.output_layer import output_layer


class PaperCNN(nn.Sequential):
    """Two convolutions with max-pooling and two linear layers: four blocks that can have a step size each.

    With 10 outputs and 3 × 32 × 32 images it has 268,650 parameters, the paper's "269K". Weights have PyTorch's default
    initialisation.

    Args:
        n_outputs: number of outputs.
        input_shape: channels, height and width of an image.
        growing_head: whether outputs appear as classes do, instead of ``n_outputs`` from the beginning.

    Raises:
        ValueError: the images are smaller than 4 × 4, too small to be pooled twice.

    Example:
        >>> sum(parameter.numel() for parameter in PaperCNN().parameters())
        268650
    """

    def __init__(
        self, n_outputs: int = 10, input_shape: tuple[int, int, int] = (3, 32, 32), growing_head: bool = False
    ) -> None:
        channels, height, width = input_shape
        if min(height, width) < 4:
            raise ValueError(f"PaperCNN pools images twice, so they must be at least 4×4, not {height}×{width}")
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=nn.Conv2d(channels, 16, 3, padding=1),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(16, 32, 3, padding=1),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            linear1=nn.Linear(32 * (height // 4) * (width // 4), 128),
            relu3=nn.ReLU(),
            linear2=output_layer(128, n_outputs, growing_head),
        )
        super().__init__(layers)
