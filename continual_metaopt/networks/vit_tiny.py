"""A small vision transformer."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from continual_metaopt.networks.output_layer import output_layer


class ViTTiny(nn.Sequential):
    """A vision transformer (Dosovitskiy et al., 2021) of DeiT-Ti's size (Touvron et al., 2021), for small images.

    The blocks that can have a step size each are "embedding" (of patches, with class token and positions), "stage1" …
    for ``stages`` groups of transformer layers, and "head" (last normalisation and outputs): six, as ResNet-18 has, or
    one per layer with ``stages`` equal to ``depth``. Layers normalise first and have a hidden layer of four times the
    width.

    With 3 × 32 × 32 images, patches of 4 × 4 and 10 outputs it has 5,362,762 parameters. ``width=64, depth=4, heads=4``
    has 208,074 and suits learning from single samples on a CPU.

    There is no dropout. It is torchvision's ``VisionTransformer`` of these sizes, apart from initial weights. Attention
    is written out, since exact traces differentiate the loss twice, which PyTorch's own kernel of attention does not
    allow on a CPU. Linear layers have PyTorch's initial weights, positions are normal with standard deviation 0.02, and
    the class token is zero.

    Args:
        n_outputs: number of outputs.
        input_shape: channels, height and width of an image.
        patch_size: height and width of a patch; divides those of the image.
        width: numbers per token.
        depth: number of transformer layers.
        heads: attention heads of each layer; divides the width.
        stages: into how many blocks the layers are grouped; divides the depth.
        growing_head: whether outputs appear as classes do, instead of ``n_outputs`` from the beginning.

    Raises:
        ValueError: patches that do not divide the images, heads that do not divide the width, stages that do not
            divide the depth.

    Example:
        >>> sum(parameter.numel() for parameter in ViTTiny(width=64, depth=4, heads=4).parameters())
        208074
    """

    def __init__(
        self,
        n_outputs: int = 10,
        input_shape: tuple[int, int, int] = (3, 32, 32),
        patch_size: int = 4,
        width: int = 192,
        depth: int = 12,
        heads: int = 3,
        stages: int = 4,
        growing_head: bool = False,
    ) -> None:
        _, height, breadth = input_shape
        if patch_size < 1 or height % patch_size or breadth % patch_size:
            raise ValueError(
                f"patches of {patch_size}×{patch_size} do not divide images of {height}×{breadth} evenly; choose a "
                "patch_size that divides height and width"
            )
        if heads < 1 or width < 1 or width % heads:
            raise ValueError(
                f"{heads} heads do not divide a width of {width} evenly; choose heads that divide the width"
            )
        if stages < 1 or depth < 1 or depth % stages:
            raise ValueError(
                f"{stages} stages do not divide {depth} layers evenly; choose stages that divide the depth"
            )
        layers: OrderedDict[str, nn.Module] = OrderedDict(embedding=PatchEmbedding(input_shape, patch_size, width))
        for stage in range(stages):
            members = [TransformerLayer(width, heads) for _ in range(depth // stages)]
            layers[f"stage{stage + 1}"] = nn.Sequential(*members)
        layers["head"] = nn.Sequential(
            OrderedDict(
                token=ClassToken(), norm=nn.LayerNorm(width), linear=output_layer(width, n_outputs, growing_head)
            )
        )
        super().__init__(layers)


class PatchEmbedding(nn.Module):
    """Turns an image into tokens [n, 1 + patches, width]: the class token and one per patch, with their positions."""

    def __init__(self, input_shape: tuple[int, int, int], patch_size: int, width: int) -> None:
        super().__init__()
        channels, height, breadth = input_shape
        self.patches = nn.Conv2d(channels, width, patch_size, patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        n_patches = (height // patch_size) * (breadth // patch_size)
        self.position = nn.Parameter(0.02 * torch.randn(1, 1 + n_patches, width))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [n, 1 + patches, width] of images [n, channels, height, width]."""
        patches = self.patches(x).flatten(2).transpose(1, 2)
        return torch.cat([self.class_token.expand(len(x), -1, -1), patches], dim=1) + self.position


class TransformerLayer(nn.Module):
    """Self-attention and a hidden layer, each added to its input after normalising that."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, 4 * width)
        self.gelu = nn.GELU()
        self.linear2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [n, tokens, width] from tokens."""
        x = x + self.projection(self._attention(self.norm1(x)))
        y: Tensor = x + self.linear2(self.gelu(self.linear1(self.norm2(x))))
        return y

    def _attention(self, x: Tensor) -> Tensor:
        n, n_tokens, width = x.shape
        by_head = self.queries_keys_values(x).view(n, n_tokens, 3, self.heads, width // self.heads)
        queries, keys, values = by_head.permute(2, 0, 3, 1, 4)
        similarity = queries @ keys.transpose(-1, -2) * (width // self.heads) ** -0.5
        mixed = similarity.softmax(dim=-1) @ values
        return mixed.transpose(1, 2).reshape(n, n_tokens, width)


class ClassToken(nn.Module):
    """Picks the first of the tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """Numbers [n, width] from tokens [n, tokens, width]."""
        return x[:, 0]
