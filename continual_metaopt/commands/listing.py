"""Lists streams, networks, learners and studies."""

from collections.abc import Mapping
from typing import Annotated, Literal

import tyro

from continual_metaopt.commands.printing import show
from continual_metaopt.streams.stream import StreamAbout
from continual_metaopt.study.load import packaged_studies, study_description


def show_list(kind: Annotated[Literal["streams", "networks", "learners", "studies"], tyro.conf.Positional], /) -> int:
    """List what can be named in studies and on the command line.

    Args:
        kind: what to list.
    """
    from continual_metaopt.networks import NETWORKS
    from continual_metaopt.optim.registry import LEARNERS, PYTORCH_OPTIMIZER_PREFIX, TORCH_PREFIX
    from continual_metaopt.streams import STREAMS

    if kind == "studies":
        entries = {name: study_description(text) for name, text in packaged_studies().items()}
    else:
        entries = {"streams": STREAMS, "networks": NETWORKS, "learners": LEARNERS}[kind].descriptions()
    if kind == "learners":
        entries |= {
            f"{TORCH_PREFIX}NAME": "any optimizer of torch.optim, such as torch:AdamW",
            f"{PYTORCH_OPTIMIZER_PREFIX}NAME": "any optimizer of pytorch-optimizer that is given parameters",
        }
    if kind == "streams":
        described = {name: about for name in STREAMS.own if (about := getattr(STREAMS[name], "about", None))}
        print(_stream_table(described))
        entries = {name: description for name, description in entries.items() if name not in described}
    width = max(map(len, entries), default=0)
    show("\n".join(f"{name:{width}}  {description}" for name, description in entries.items()))
    return 0


def _stream_table(streams: Mapping[str, StreamAbout]) -> str:
    """What streams say about themselves, in at most 100 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, leading=1)
    longest = max(map(len, streams))
    # no name of a stream or an option is broken
    widths = {"stream (source)": longest, "what changes": 34 - longest, "when": 14, "length": 22, "head": 22}
    for heading, width in widths.items():
        table.add_column(heading, width=width, overflow="fold")
    for name, about in streams.items():
        table.add_row(*map(Text, (f"{name}\n({about.source})", about.changes, about.when, about.length, about.head)))
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
