"""The networks beside each other: parameters, blocks, engine, and samples per second at batch size 1 on one core.

    python -m benchmarks.networks [--networks lenet resnet18:width=16] [--shape 3 32 32] [--seconds 3] [--repeats 3]

Each learns from random images with the ready-made MetaOptimize learner and ten outputs, on one thread, with denormal
numbers flushed. They learn in turns; medians over the turns count, also of the speeds' ratios to the first network's.
"""

import argparse
import statistics
import time
from typing import Any

import yaml
from rich.console import Console
from rich.progress import track
from tabulate import tabulate

NETWORKS = (
    "paper_cnn",
    "lenet",
    "mlp",
    "mlp_300_150",
    "resnet18",
    "resnet18:width=16",
    "vit_tiny",
    "vit_tiny:width=64,depth=4,heads=4",
    "mlp:growing_head=true",
)
MAX_SAMPLES = 20_000


class Contender:
    """A network that learns in turns.

    Args:
        name: of the network, perhaps with options, such as "resnet18:width=16".
        shape: channels, height and width of the images.
        seconds: that a turn takes, more or less.
    """

    def __init__(self, name: str, shape: tuple[int, int, int], seconds: float) -> None:
        import torch

        from continual_metaopt import MetaOptimizeStrategy
        from continual_metaopt.commands.overhead import random_images
        from continual_metaopt.networks import NETWORKS

        registered, _, options = name.partition(":")
        given = dict(option.split("=") for option in options.split(",") if option)
        torch.manual_seed(0)
        self.name = name
        self.model = NETWORKS[registered](
            n_outputs=10, input_shape=shape, **{key: yaml.safe_load(value) for key, value in given.items()}
        )
        self.strategy = MetaOptimizeStrategy(model=self.model, lr=1e-4)
        first = random_images(shape, 20)
        self.strategy.train(first)  # compiles what is to be compiled
        start = time.perf_counter()
        self.strategy.train(first)
        pace = (time.perf_counter() - start) / 20
        self.n_samples = max(20, min(MAX_SAMPLES, int(seconds / pace)))
        self.experience = random_images(shape, self.n_samples)

    def turn(self) -> float:
        """Learn; returns samples per second."""
        start = time.perf_counter()
        self.strategy.train(self.experience)
        return self.n_samples / (time.perf_counter() - start)

    def row(self, speeds: list[float], firsts: list[float]) -> dict[str, Any]:
        """What the table says, from samples per second in each turn, of this network and of the first."""
        blocks = [str(group["name"]) for group in self.strategy.optimizer.param_groups]
        return {
            "network": self.name,
            "parameters": f"{sum(p.numel() for p in self.model.parameters()):,}",
            "blocks": f"{len(blocks)}: {', '.join(blocks)}",
            "engine": self.strategy.engine["name"],
            "samples/s": f"{statistics.median(speeds):,.0f}",
            "range": f"{min(speeds):,.0f}–{max(speeds):,.0f}",
            "× first": f"{statistics.median(map(float.__truediv__, speeds, firsts)):.3f}",
        }


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="NAME[:OPTION=VALUE,…]")
    parser.add_argument("--shape", nargs=3, type=int, default=(3, 32, 32), help="of images (default: 3 32 32)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn, roughly (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each network (default: %(default)s)")
    parser.add_argument("--format", default="simple", help="of the table, as tabulate's (default: %(default)s)")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    console = Console(stderr=True)
    contenders = [
        Contender(name, tuple(arguments.shape), arguments.seconds)
        for name in track(arguments.networks, description="starting", console=console)
    ]
    speeds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for _ in track(range(arguments.repeats), description="measuring", console=console):
        for contender in contenders:
            speeds[contender.name].append(contender.turn())
    rows = [contender.row(speeds[contender.name], speeds[contenders[0].name]) for contender in contenders]
    print(tabulate(rows, headers="keys", tablefmt=arguments.format, disable_numparse=True))


if __name__ == "__main__":
    main()
