"""Networks, sized from what a stream says about its inputs and outputs, one per file."""

from typing import Any

from continual_metaopt.streams.registry import Registry

NETWORKS: Registry[Any] = Registry("network", entry_points="continual_metaopt.networks")
for name, home, description in (
    ("paper_cnn", "paper_cnn:PaperCNN", "the paper's small convolutional network, four blocks"),
    ("lenet", "lenet:LeNet", "LeNet-5 with ReLU and max-pooling, five blocks"),
    ("resnet18", "resnet18:ResNet18", "ResNet-18 for small images, of any width, six blocks"),
    ("resnet18_imagenet", "resnet18:resnet18_imagenet", "ResNet-18 for images of ImageNet's size, six blocks"),
    ("vit_tiny", "vit_tiny:ViTTiny", "a small vision transformer, six blocks or as many as wanted"),
    ("mlp", "mlp:MLP", "fully connected layers with ReLU between them, a block each"),
    ("mlp_300_150", "mlp:mlp_300_150", "the MLP of UPGD's experiments, with 300 and 150 hidden units, three blocks"),
    ("linear", "linear:LinearModel", "one linear layer, for linear models"),
    ("recurrent", "recurrent:Recurrent", "gated recurrent units that read text, three blocks"),
    ("transformer", "transformer:Transformer", "a transformer that reads text, in the shape of llama2.c"),
    ("transformer_15m", "transformer:transformer_15m", "llama2.c's transformer of 15 million parameters, eight blocks"),
):
    NETWORKS.add_lazily(name, f"continual_metaopt.networks.{home}", description)

register_network = NETWORKS.register
