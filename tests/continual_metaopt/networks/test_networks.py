"""Networks: sizes, blocks, initial weights, refusals, and that MetaOptimize learns with each."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from continual_metaopt.learner.strategy import MetaOptimizeStrategy
from continual_metaopt.networks import NETWORKS, register_network
from continual_metaopt.networks.lenet import LeNet
from continual_metaopt.networks.linear import LinearModel
from continual_metaopt.networks.mlp import MLP
from continual_metaopt.networks.paper_cnn import PaperCNN
from continual_metaopt.networks.resnet18 import ResidualBlock, ResNet18
from continual_metaopt.networks.vit_tiny import TransformerLayer, ViTTiny
from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.metaoptimize import MetaOptimize
from continual_metaopt.runs.components import Component, ConfigError
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.streams import UnknownNameError, make_stream
from continual_metaopt.study.check import check_run
from tests.continual_metaopt.conftest import Collector, exactly

READ_TEXT = ("recurrent", "transformer", "transformer_15m")
DIGIT, COLOUR = (1, 8, 8), (3, 32, 32)
PAPER = ["conv1", "conv2", "linear1", "linear2"]
LENET = ["conv1", "conv2", "linear1", "linear2", "linear3"]
LINEAR = ["linear1", "linear2", "linear3"]
SIX = ["stem", "stage1", "stage2", "stage3", "stage4", "head"]
VIT = ["embedding", *SIX[1:]]
COMPILED = {"name": "compiled", "reason": "network, loss and optimizer have compiled code"}

NOT_COMPILED = "not compiled: there is no kernel for "
SMALL_VIT = {"patch_size": 2, "width": 12, "depth": 2, "heads": 2, "stages": 2}

# networks that learn fast enough for a test, and the engine that "auto" takes
LEARNING: dict[str, tuple[dict[str, Any], str]] = {
    "paper_cnn": ({}, ""),
    "lenet": ({}, ""),
    "lenet with layer normalisation": ({"norm": "layer"}, "GroupNorm"),
    "resnet18": ({"width": 8, "groups": 2}, "GroupNorm"),
    "resnet18 with layer normalisation": ({"width": 8, "norm": "layer"}, "GroupNorm"),
    "resnet18 without normalisation": ({"width": 8, "norm": "none"}, "ResidualBlock"),
    "vit_tiny": (SMALL_VIT, "PatchEmbedding"),
    "mlp": ({}, ""),
    "mlp with layer normalisation": ({"norm": "layer"}, "GroupNorm"),
    "mlp_300_150": ({}, ""),
    "linear": ({}, ""),
}


def make(case: str, **more: Any) -> Any:
    """A network of ``LEARNING`` for digits."""
    torch.manual_seed(5)
    return NETWORKS[case.split()[0]](n_outputs=10, input_shape=DIGIT, **LEARNING[case][0] | more)


def n_parameters(model: nn.Module) -> int:
    return sum(param.numel() for param in model.parameters())


@pytest.mark.parametrize(
    ("input_shape", "hidden", "sizes"),
    [
        ((1, 8, 8), (128,), [(64, 128), (128, 5)]),
        ((3, 4, 2), (6, 7), [(24, 6), (6, 7), (7, 5)]),
        ((1, 2, 2), [], [(4, 5)]),  # a linear model
    ],
)
def test_mlp_has_the_layers_asked_for(
    input_shape: tuple[int, int, int], hidden: Sequence[int], sizes: list[tuple[int, int]]
) -> None:
    model = MLP(5, input_shape, hidden)

    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == sizes
    assert [type(layer) for layer in model] == [nn.Flatten, *[nn.Linear, nn.ReLU] * len(hidden), nn.Linear]
    assert [block["name"] for block in blocks(model)] == [f"linear{i}" for i in range(1, len(sizes) + 1)]
    assert model(torch.randn(3, *input_shape)).shape == (3, 5)


@pytest.mark.parametrize(
    ("make", "layers"),
    [
        (
            lambda: PaperCNN(10, (3, 8, 8)),
            lambda: [
                nn.Conv2d(3, 16, 3, padding=1),
                nn.Conv2d(16, 32, 3, padding=1),
                nn.Linear(128, 128),
                nn.Linear(128, 10),
            ],
        ),
        (lambda: MLP(10, (1, 8, 8), (16, 12)), lambda: [nn.Linear(64, 16), nn.Linear(16, 12), nn.Linear(12, 10)]),
    ],
)
def test_fresh_weights_are_pytorchs_own(make: Callable[[], nn.Module], layers: Callable[[], list[nn.Module]]) -> None:
    torch.manual_seed(11)
    model = make()
    torch.manual_seed(11)
    expected = [param for layer in layers() for param in layer.parameters()]

    assert all(torch.equal(ours, torchs) for ours, torchs in zip(model.parameters(), expected, strict=True))


@pytest.mark.usefixtures("registries")
def test_networks_can_be_registered() -> None:
    register_network("wide", "an example")(MLP)

    known = ["paper_cnn", "lenet", "resnet18", "resnet18_imagenet", "vit_tiny", "mlp", "mlp_300_150", "linear"]
    known += READ_TEXT
    assert list(NETWORKS) == [*known, "wide"]
    assert NETWORKS["wide"] is MLP


def test_unknown_networks_are_refused_with_the_known_ones() -> None:
    message = (
        "unknown network 'paper-cnn'. Did you mean 'paper_cnn'? Known: lenet, linear, mlp, mlp_300_150, paper_cnn, "
        "recurrent, resnet18, resnet18_imagenet, transformer, transformer_15m, vit_tiny"
    )

    with pytest.raises(UnknownNameError, match=exactly(message)):
        NETWORKS["paper-cnn"]


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_model_starts_at_zero(bias: bool) -> None:
    model = LinearModel(2, (3, 4), bias)

    assert model(torch.randn(5, 3, 4)).tolist() == [[0.0, 0.0]] * 5
    assert [tuple(param.shape) for param in model.parameters()] == [(2, 12), (2,)][: 1 + bias]


def layer_norms(*widths: int) -> int:
    return sum(2 * width for width in widths)


def resnet_parameters(width: int, channels: int, n_outputs: int, *, per_map: int) -> int:
    """Convolutions without biases, and ``per_map`` parameters for each of their feature maps."""
    total = (9 * channels + per_map) * width
    for stage in range(4):
        n = width * 2**stage
        before = n if stage == 0 else n // 2
        total += (9 * before + 3 * 9 * n + 4 * per_map) * n
        total += 0 if stage == 0 else (before + per_map) * n
    return total + (8 * width + 1) * n_outputs


def vit_parameters(width: int, depth: int, patch: int, channels: int, n_patches: int, n_outputs: int) -> int:
    embedding = (channels * patch**2 + 1) * width + width + (1 + n_patches) * width
    attention = (width + 1) * 3 * width + (width + 1) * width
    hidden = (width + 1) * 4 * width + (4 * width + 1) * width
    return embedding + depth * (attention + hidden + 4 * width) + 2 * width + (width + 1) * n_outputs


@pytest.mark.parametrize(
    ("name", "options", "input_shape", "n_outputs", "expected", "names"),
    [
        # (9·c·16 + 16) + (9·16·32 + 32) + (32·⌊h/4⌋·⌊w/4⌋·128 + 128) + (128·n + n)
        ("paper_cnn", {}, COLOUR, 10, 268_650, PAPER),
        ("paper_cnn", {}, COLOUR, 100, 448 + 4640 + 262_272 + 12_900, PAPER),
        ("paper_cnn", {}, (1, 28, 28), 10, 160 + 4640 + 200_832 + 1290, PAPER),
        ("paper_cnn", {}, DIGIT, 10, 160 + 4640 + 16_512 + 1290, PAPER),
        ("paper_cnn", {}, (3, 64, 48), 7, 448 + 4640 + 786_560 + 903, PAPER),
        ("paper_cnn", {}, (2, 7, 4), 3, 304 + 4640 + 4224 + 387, PAPER),  # odd sizes are rounded down
        # (25·c + 1)·6 + (25·6 + 1)·16 + (16·5·5 + 1)·120 + 121·84 + 85·n
        ("lenet", {}, COLOUR, 10, 62_006, LENET),
        ("lenet", {}, (1, 28, 28), 10, 61_706, LENET),
        ("lenet", {}, DIGIT, 10, 61_706, LENET),
        ("lenet", {}, (1, 1, 31), 7, 61_706 - 3 * 85, LENET),
        ("lenet", {}, (3, 64, 40), 10, 456 + 2416 + (16 * 13 * 7 + 1) * 120 + 121 * 84 + 850, LENET),
        ("lenet", {"norm": "layer"}, DIGIT, 10, 61_706 + layer_norms(6, 16, 120, 84), LENET),
        ("mlp_300_150", {}, (1, 28, 28), 10, 785 * 300 + 301 * 150 + 151 * 10, LINEAR),
        ("mlp", {"hidden": [5, 4], "norm": "layer"}, DIGIT, 3, 65 * 5 + 6 * 4 + 5 * 3 + layer_norms(5, 4), LINEAR),
        ("resnet18", {}, COLOUR, 10, 11_173_962, SIX),  # as the one for CIFAR that is in wide use
        ("resnet18", {}, COLOUR, 10, resnet_parameters(64, 3, 10, per_map=2), SIX),
        ("resnet18", {"width": 16}, COLOUR, 100, resnet_parameters(16, 3, 100, per_map=2), SIX),
        ("resnet18", {"width": 16}, DIGIT, 10, resnet_parameters(16, 1, 10, per_map=2), SIX),
        ("resnet18", {"width": 5, "norm": "layer"}, (2, 9, 33), 4, resnet_parameters(5, 2, 4, per_map=2), SIX),
        ("resnet18", {"width": 16, "norm": "none"}, DIGIT, 10, resnet_parameters(16, 1, 10, per_map=1), SIX),
        ("vit_tiny", {}, COLOUR, 10, vit_parameters(192, 12, 4, 3, 64, 10), VIT),
        ("vit_tiny", {"patch_size": 16}, (3, 224, 224), 1000, 5_717_416, VIT),  # DeiT-Ti
        ("vit_tiny", {}, DIGIT, 10, vit_parameters(192, 12, 4, 1, 4, 10), VIT),
        ("vit_tiny", SMALL_VIT, (1, 8, 6), 10, vit_parameters(12, 2, 2, 1, 12, 10), [*VIT[:3], "head"]),
        (
            "vit_tiny",
            {"width": 8, "depth": 3, "heads": 1, "stages": 3},
            DIGIT,
            2,
            vit_parameters(8, 3, 4, 1, 4, 2),
            [*VIT[:4], "head"],
        ),
    ],
)
def test_sizes_and_blocks(
    name: str,
    options: dict[str, Any],
    input_shape: tuple[int, int, int],
    n_outputs: int,
    expected: int,
    names: list[str],
) -> None:
    model = NETWORKS[name](n_outputs=n_outputs, input_shape=input_shape, **options)

    assert n_parameters(model) == expected
    assert [block["name"] for block in blocks(model)] == names
    assert model(torch.randn(2, *input_shape)).shape == (2, n_outputs)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in READ_TEXT])
def test_defaults_fit(name: str) -> None:
    network = NETWORKS[name]
    shape = {"linear": (20,), "mlp": DIGIT, "mlp_300_150": (1, 28, 28), "lenet": (1, 28, 28)}.get(name, COLOUR)

    assert network()(torch.randn(2, *shape)).shape == (2, 1 if name == "linear" else 10)
    assert name in ("linear", "mlp") or network(10, COLOUR).eval()(torch.randn(1, *COLOUR)).shape == (1, 10)


@pytest.mark.parametrize(
    ("name", "options", "input_shape", "message"),
    [
        *(
            ("paper_cnn", {}, (1, *size), f"PaperCNN pools images twice, so they must be at least 4×4, not {shown}")
            for size, shown in (((3, 8), "3×8"), ((8, 3), "8×3"), ((1, 1), "1×1"))
        ),
        ("resnet18", {}, (3, 7, 32), "ResNet18 halves images three times, so they must be at least 8×8, not 7×32"),
        ("resnet18", {"width": 0}, COLOUR, "width must be at least 1, not 0"),
        (
            "resnet18",
            {"width": 12},
            COLOUR,
            '8 groups do not divide 12 feature maps evenly; choose groups that divide the width, or norm="layer"',
        ),
        (
            "resnet18",
            {"norm": "grup"},
            COLOUR,
            "unknown normalisation 'grup'. Did you mean 'group'? Known: batch, group, layer, none",
        ),
        ("mlp_300_150", {"norm": "group"}, COLOUR, "unknown normalisation 'group'. Known: batch, layer, none"),
        (
            "vit_tiny",
            {"patch_size": 5},
            COLOUR,
            "patches of 5×5 do not divide images of 32×32 evenly; choose a patch_size that divides height and width",
        ),
        (
            "vit_tiny",
            {},
            (1, 8, 6),
            "patches of 4×4 do not divide images of 8×6 evenly; choose a patch_size that divides height and width",
        ),
        (
            "vit_tiny",
            {"heads": 5},
            COLOUR,
            "5 heads do not divide a width of 192 evenly; choose heads that divide the width",
        ),
        (
            "vit_tiny",
            {"stages": 5},
            COLOUR,
            "5 stages do not divide 12 layers evenly; choose stages that divide the depth",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    name: str, options: dict[str, Any], input_shape: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=exactly(message)):
        NETWORKS[name](10, input_shape, **options)


@pytest.mark.parametrize("name", ["lenet", "resnet18", "mlp", "mlp_300_150"])
def test_batch_normalisation_is_for_mini_batches(name: str) -> None:
    """At single samples it is refused before anything runs."""
    network = Component(name=name, norm="batch")
    check_run(RunConfig(stream=Component(name="multi_epoch"), network=network).resolved())
    message = (
        "network: batch normalisation takes mean and variance over a batch, and this stream's samples come one at a "
        'time; take another normalisation, such as norm="layer", or a stream of mini-batches, such as multi_epoch'
    )
    with pytest.raises(ConfigError, match=exactly(message)):
        check_run(RunConfig(network=network).resolved())


# ------------------------------------------------------------------------------------------------- other definitions


def copy_in_order(ours: nn.Module, theirs: nn.Module, order: Callable[[str], Any] = lambda name: 0) -> None:
    """Give one network the other's parameters, matched by order and checked by shape."""
    sources = [param for name, param in sorted(theirs.named_parameters(), key=lambda item: order(item[0]))]
    for target, source in zip(ours.parameters(), sources, strict=True):
        assert target.shape == source.shape
        target.data.copy_(source.data)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "group": lambda channels: nn.GroupNorm(8, channels),
    "layer": lambda channels: nn.GroupNorm(1, channels),
    "batch": nn.BatchNorm2d,
}


@pytest.mark.parametrize("norm", NORMS)
def test_resnet_is_torchvisions(norm: str) -> None:
    theirs = torchvision.models.resnet18(num_classes=10, norm_layer=NORMS[norm])
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    ours = ResNet18(10, COLOUR, norm=norm)
    copy_in_order(ours, theirs)
    x = torch.randn(2, *COLOUR)

    assert n_parameters(ours) == n_parameters(theirs)
    for training in (True, False):  # running statistics have changed once then
        ours.train(training), theirs.train(training)
        torch.testing.assert_close(ours(x), theirs(x))


def test_resnet_of_imagenet_is_torchvisions() -> None:
    theirs, ours = torchvision.models.resnet18(), NETWORKS["resnet18_imagenet"](1000)
    copy_in_order(ours, theirs)
    x = torch.randn(2, 3, 64, 48)
    for training in (True, False):
        ours.train(training), theirs.train(training)
        torch.testing.assert_close(ours(x), theirs(x))
    assert [group["name"] for group in blocks(ours, "blockwise")] == SIX


def test_initial_weights_of_resnet_are_torchvisions() -> None:
    """Standard deviations over many weights, as the random numbers are drawn in another order."""
    theirs = torchvision.models.resnet18(num_classes=10, norm_layer=lambda channels: nn.GroupNorm(8, channels))
    ours = ResNet18()

    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))[1:]
    assert all(ours.std().item() == pytest.approx(theirs.std().item(), rel=0.1) for ours, theirs in pairs[:-1])


@pytest.mark.parametrize("options", [SMALL_VIT, {"patch_size": 4, "width": 24, "depth": 3, "heads": 3, "stages": 1}])
def test_vit_is_torchvisions(options: dict[str, Any]) -> None:
    width, depth, patch_size = (options[name] for name in ("width", "depth", "patch_size"))
    theirs = torchvision.models.VisionTransformer(8, patch_size, depth, options["heads"], width, 4 * width)
    theirs.heads = nn.Linear(width, 10)
    with torch.no_grad():
        for param in theirs.parameters():
            param.normal_(std=0.3)
    ours = ViTTiny(10, (3, 8, 8), **options)
    order = ["class_token", "encoder.pos_embedding", "conv_proj", "encoder.layers", "encoder.ln", "heads"]
    copy_in_order(ours, theirs, lambda name: next(i for i, part in enumerate(order) if name.startswith(part)))
    x = torch.randn(4, 3, 8, 8)

    # torchvision's normalisation adds 1e-6 to the variance, PyTorch's default is 1e-5
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-3, atol=1e-3)


# --------------------------------------------------------------------------------------------------------- learning


@pytest.mark.slow
@pytest.mark.parametrize("case", LEARNING)
def test_metaoptimize_learns_blockwise(case: str) -> None:
    model = make(case)
    collector = Collector()
    learner = MetaOptimizeStrategy(model=model, lr=1e-3, recorder=collector, record_every=10)
    experience = make_stream("class_split", classes_per_experience=2, samples_per_experience=130).train_stream[0]
    for _ in range(2):
        learner.train(experience)

    losses = collector.all("loss")
    assert sum(losses[:20]) / 20 > math.log(2)
    assert sum(losses[-50:]) / 50 < 0.5  # ln 2 would do without looking at the digits
    names = {block for _, block, _ in collector.all("step_sizes")}
    assert names == {block["name"] for block in blocks(model)}
    last = {block: value for _, block, value in collector.all("step_sizes")}
    assert all(value != 1e-3 for value in last.values())
    obstacle = LEARNING[case][1]
    traced = "; gradients by a traced graph"
    assert learner.engine == ({"name": "fused", "reason": NOT_COMPILED + obstacle + traced} if obstacle else COMPILED)


@pytest.mark.parametrize("shape", [DIGIT, (1, 28, 28), COLOUR, (2, 40, 35)])
def test_compiled_lenet_is_pytorchs(shape: tuple[int, int, int]) -> None:
    n = 30
    random = torch.Generator().manual_seed(1)
    x = torch.randint(256, (n, *shape[1:], shape[0]), generator=random, dtype=torch.uint8).numpy()
    y = torch.arange(n).remainder(10).numpy()
    experience = make_stream("class_split", source=(x, y, x[:10], y[:10])).train_stream[0]
    results = []
    for engine in ("torch", "compiled"):
        torch.manual_seed(2)
        model = LeNet(10, shape)
        collector = Collector()
        learner = MetaOptimizeStrategy(model=model, lr=1e-3, engine=engine, recorder=collector, record_every=10)
        learner.train(experience)
        results.append((collector.all("loss"), list(model.parameters()), learner.optimizer.step_size_report()))

    (losses, weights, step_sizes), (their_losses, their_weights, their_step_sizes) = results
    assert losses == pytest.approx(their_losses, rel=1e-4)
    assert step_sizes == pytest.approx(their_step_sizes, rel=1e-4)
    for ours, theirs in zip(weights, their_weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("case", LEARNING)
def test_predictions_are_the_same_in_training_and_evaluation(case: str) -> None:
    model = make(case)
    x = torch.randn(3, *DIGIT)
    random = torch.get_rng_state()
    alone = model(x[:1])

    assert torch.get_rng_state().equal(random)  # nothing is drawn
    torch.testing.assert_close(model(x)[:1], alone)
    model.eval()
    assert model(x[:1]).equal(alone)
    with torch.no_grad():
        assert model(x[:1]).equal(alone)


@pytest.mark.parametrize("case", LEARNING)
def test_double_precision(case: str) -> None:
    single, double = make(case), make(case).double()
    x = torch.randn(1, *DIGIT)

    output = double(x.double())
    assert output.dtype == torch.float64
    torch.testing.assert_close(output, single(x).double(), rtol=1e-3, atol=1e-4)
    optimizer = MetaOptimize(blocks(double), 1e-2)
    output.logsumexp(dim=1).sum().backward()
    optimizer.step()
    assert not double(x.double()).equal(output)


@pytest.mark.parametrize("case", LEARNING)
def test_seeds_decide_the_weights(case: str) -> None:
    first, second = make(case), make(case)
    other = NETWORKS[case.split()[0]](n_outputs=10, input_shape=DIGIT, **LEARNING[case][0])

    assert all(a.equal(b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    differs = [not a.equal(b) for a, b in zip(first.parameters(), other.parameters(), strict=True)]
    assert any(differs) == (case != "linear")  # which begins with zeros


@pytest.mark.parametrize("case", ["resnet18", "resnet18 without normalisation", "vit_tiny"])
def test_exact_traces_can_be_had(case: str) -> None:
    """They differentiate the loss twice, which not every layer allows."""
    model = make(case)
    learner = MetaOptimizeStrategy(model=model, lr=1e-3, trace="l", gamma=0.99)
    experience = make_stream("class_split", classes_per_experience=10, samples_per_experience=3).train_stream[0]
    learner.train(experience)

    assert learner.n_samples == 3
    assert all(step_size not in (0, 1e-3) for step_size in learner.optimizer.step_size_report().values())


def test_residual_branches_without_normalisation_begin_at_zero() -> None:
    model = ResNet18(10, DIGIT, width=4, norm="none")

    for module in model.modules():
        if isinstance(module, ResidualBlock) and isinstance(module.shortcut, nn.Identity):
            channels = module.conv1.weight.shape[1]
            x = torch.rand(2, channels, 6, 6)
            assert module(x).equal(x)
    assert model(torch.randn(1, *DIGIT)).abs().max() < 10


def test_tokens_attend_to_each_other() -> None:
    """Attention by hand: equal keys mix the values of all tokens evenly."""
    layer = TransformerLayer(2, 1)
    nn.init.zeros_(layer.queries_keys_values.weight)
    with torch.no_grad():
        layer.queries_keys_values.weight[4:] = torch.eye(2)
        layer.queries_keys_values.bias.zero_()
    x = torch.tensor([[[1.0, 3.0], [4.0, 2.0]]])

    mixed = layer._attention(x)
    torch.testing.assert_close(mixed, torch.tensor([[[2.5, 2.5], [2.5, 2.5]]]))
