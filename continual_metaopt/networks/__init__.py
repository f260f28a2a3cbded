"""Networks, sized from what a stream says about its inputs and outputs, one per file."""

from typing import Any

from streams.registry import Registry

NETWORKS: Registry[Any] = Registry("network", entry_points="continual_metaopt.networks")
NETWORKS.add_lazily(
    "paper_cnn", "continual_metaopt.networks.paper_cnn:PaperCNN", "the paper's small convolutional network, four blocks"
)
NETWORKS.add_lazily("mlp", "continual_metaopt.networks.mlp:MLP", "fully connected layers with ReLU between them")
NETWORKS.add_lazily("linear", "continual_metaopt.networks.linear:LinearModel", "one linear layer, for linear models")

register_network = NETWORKS.register
