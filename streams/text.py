"""Text, symbol by symbol: each domain is an experience, and the next symbol is to be predicted."""

import hashlib
import itertools
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from continual_metaopt.streams.byte_pairs import byte_pairs
from continual_metaopt.streams.invented_languages import invented_languages
from continual_metaopt.streams.options import require_at_least_one, require_between
from continual_metaopt.streams.plan import CLASS_ORDER, SAMPLE_ORDER, Plan, Stationary, plan_of, random_state
from continual_metaopt.streams.registry import UnknownNameError, unknown_name
from continual_metaopt.streams.source_files import FETCH_LFS, LFS_POINTER, open_regular
from continual_metaopt.streams.stationary import last_change, make_stationary
from continual_metaopt.streams.stream import (
    ExperienceInfo,
    LearnerInfo,
    Stream,
    StreamInfo,
    about_stream,
    fingerprint_of,
)
from continual_metaopt.streams.transitions import blur_boundaries

DEFINITION = "text v1"
EMBEDDED, PREFIX, SUFFIX = "embedded", "text:", ".txt"
Unit = Literal["byte", "character", "bpe"]
N_BYTES = 256
Symbols = NDArray[np.integer]


@about_stream(
    source="text files, or four invented languages",
    changes="the domain, such as the language or the author",
    when="with every experience",
    length="n_cycles × the text of all domains, or × samples_per_experience of each",
    head="one output for each symbol: 256 bytes, the different characters, or byte pairs",
)
def text(
    source: str = EMBEDDED,
    *,
    unit: Unit = "byte",
    context: int = 32,
    domains: list[str] | None = None,
    order: Literal["given", "random"] = "random",
    n_cycles: int = 1,
    samples_per_experience: int | None = None,
    held_out_share: float = 0.1,
    test_samples: int = 2048,
    n_symbols: int = 1024,
    stationary: Stationary | None = None,
    frozen_after: int = 0,
    transition_width: int = 0,
    seed: int = 0,
) -> Stream:
    """The next symbol of a text is predicted, domain after domain.

    A sample is one symbol. Its input is the symbol before it, and its place in a window of ``context`` consecutive
    symbols. The symbols of a window are predicted together, and then one update learns from their mean loss. So a
    network that carries a state from window to window backpropagates through ``context`` symbols, and one that looks
    back sees as many at most. With ``context=1`` it learns after every symbol.

    An experience reads on in its domain, window by window. The last part of each domain is never learned from; held-out
    accuracy is measured there. Whole windows move in stationary variants and in transitions.

    Args:
        source: "embedded", four invented languages that need no files, or "text:FOLDER", where each file whose name
            ends in .txt is a domain, called as the file is without its ending.
        unit: "byte", which reads any file; for files in UTF-8 "character", or "bpe": byte pairs, which the package
            tokenizers (extra text) learns from what is not held out of all domains.
        context: number of symbols of a window.
        domains: use only these domains, in this order; None for all, by name.
        order: "given" takes the domains in their order, "random" in an order that the seed decides.
        n_cycles: how often all domains come, in the same order. A domain that comes again goes on where it stopped.
        samples_per_experience: number of symbols, rounded down to whole windows; None shares the text that is learned
            from evenly among the cycles. After the end of its text, a domain goes on from its beginning.
        held_out_share: share of each domain, its end, for held-out accuracy.
        test_samples: number of held-out symbols of each experience, at most: the first ones.
        n_symbols: number of different byte pairs with unit "bpe", bytes included; fewer if there is little text.
        stationary: "shuffled" puts the windows of all domains in one order that the seed decides: a mixture of all
            domains. "repeat" stays with the first domain's windows, "frozen" with those of ``frozen_after``, again and
            again in new orders.
        frozen_after: number of the experience with which "frozen" stays.
        transition_width: number of symbols over which neighbouring domains are mixed; see ``streams.transitions``.
        seed: decides the order of domains, where each begins, and these mixtures. A domain begins anywhere that leaves
            enough text.

    Raises:
        UnknownNameError: no such source, unit or domain.
        FileNotFoundError: there is no such folder.
        ImportError: unit "bpe" without the package tokenizers.
        ValueError: a folder without texts, a file that is empty, too short or not UTF-8, or a number out of range.

    Example:
        >>> stream = text(domains=["anari", "keti"], order="given", context=4, samples_per_experience=40)
        >>> stream.info.boundaries, stream.info.for_learner.n_outputs
        ([0, 40], 256)
        >>> inputs, targets = stream.train[0].batch(slice(0, 5))
        >>> inputs.tolist(), targets.tolist()
        ([[105, 0], [32, 1], [107, 2], [97, 3], [114, 0]], [32, 107, 97, 114, 105])
    """
    require_at_least_one(
        context=context, n_cycles=n_cycles, samples_per_experience=samples_per_experience, test_samples=test_samples
    )
    require_between(0.01, 0.9, held_out_share=held_out_share)
    require_between(256, 2**20, n_symbols=n_symbols)
    content = _chosen(_read(source), domains)
    coded, n_outputs = _coded(content, unit, 1 - held_out_share, n_symbols)
    parts = [_windows(name, len(symbols), context, held_out_share) for name, symbols in coded.items()]
    starts = np.cumsum([0, *map(len, coded.values())])[:-1]
    train, test = _plan(parts, context, order, n_cycles, samples_per_experience, test_samples, seed)
    if stationary is None:
        last_change(stationary, frozen_after, len(train.lengths))  # whether frozen_after goes without it
    else:
        train, test = make_stationary(train, test, stationary, seed, frozen_after)
    require_between(0, min(train.lengths) * context, transition_width=transition_width)
    train = blur_boundaries(train, transition_width // context, seed)
    symbols = np.concatenate(list(coded.values()))
    # where each window of a domain begins, one domain after the other: first those that are learned from
    begins = np.concatenate(
        [start + context * np.arange(n + held) for start, (n, held) in zip(starts, parts, strict=True)]
    )
    names = np.repeat(list(content), [n + held for n, held in parts])
    digest = _content_hash(content)
    learned = [symbols.astype("<i4").tobytes()] if unit == "bpe" else []  # which another version may learn otherwise
    info = StreamInfo(
        definition=DEFINITION,
        fingerprint=fingerprint_of(
            f"{DEFINITION}\n{digest}\n{unit} {context}\n", [train.digest(), test.digest(), *learned]
        ),
        source=source,
        stationary=stationary,
        experiences=[
            ExperienceInfo(
                classes=list(dict.fromkeys(names[train.index[steps]].tolist())),
                first_step=steps.start * context,
                n_samples=(steps.stop - steps.start) * context,
                n_seen_before=seen * context,
            )
            for steps, seen in zip(train.experiences(), train.seen_before, strict=True)
        ],
        for_learner=LearnerInfo(n_outputs, (2,), "classification", len(train.index) * context, context, "int64"),
        source_hash=digest[:32],
        bytes_per_sample=_bytes_per_symbol(content, coded, names[train.index]),
    )
    samples, held_out = (
        [TextSamples(symbols, begins[plan.index[steps]], context) for steps in plan.experiences()]
        for plan in (train, test)
    )
    return Stream(info, samples, held_out)


class TextSamples:
    """The symbols of some windows; see ``streams.samples.Samples``.

    Args:
        symbols: of all domains.
        begins: where the input of each window begins among them, [windows].
        context: number of symbols of a window.

    Example:
        >>> samples = TextSamples(np.arange(10), np.array([4, 0]), 2)
        >>> samples.batch(slice(1, 4))[0].tolist(), samples.labels.tolist()
        ([[5, 1], [0, 0], [1, 1]], [5, 6, 1, 2])
    """

    def __init__(self, symbols: Symbols, begins: NDArray[np.int64], context: int) -> None:
        self._symbols, self._begins, self._context = symbols, begins, context

    def __len__(self) -> int:
        return len(self._begins) * self._context

    def batch(self, steps: slice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return inputs, int64 [n, 2]: the symbol before and the place in the window; and the symbols to predict."""
        window, place = np.divmod(np.arange(*steps.indices(len(self)), dtype=np.int64), self._context)
        at = self._begins[window] + place
        inputs = np.stack([self._symbols[at].astype(np.int64), place], axis=1)
        return inputs, self._symbols[at + 1].astype(np.int64)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The symbols to predict."""
        return self.batch(slice(None))[1]


def _read(source: str) -> dict[str, bytes]:
    """Read the texts of all domains, by name."""
    if source == EMBEDDED:
        return invented_languages()
    if not source.startswith(PREFIX):
        raise UnknownNameError(unknown_name("source of text", source, [EMBEDDED, f"{PREFIX}FOLDER"]))
    folder = Path(source.removeprefix(PREFIX)).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder '{folder}'; after '{PREFIX}', write the folder of the texts")
    files = sorted(file for file in folder.iterdir() if file.suffix == SUFFIX and not file.name.startswith("."))
    if not files:
        raise ValueError(f"'{folder}' has no file whose name ends in {SUFFIX}; put one there for each domain")
    return {file.stem: _content(file) for file in files}


def _content(file: Path) -> bytes:
    with open_regular(file) as opened:
        content = opened.read()
    if not content:
        raise ValueError(f"'{file}' is empty; remove it, or put text into it")
    if content.startswith(LFS_POINTER):
        raise ValueError(f"cannot read '{file}': {FETCH_LFS}")
    return content


def _chosen(content: dict[str, bytes], domains: list[str] | None) -> dict[str, bytes]:
    if domains is None:
        return content
    unknown = next((name for name in domains if name not in content), None)
    if unknown is not None:
        raise UnknownNameError(unknown_name("domain", unknown, list(content)))
    if len(set(domains)) != len(domains) or not domains:
        raise ValueError(f"domains must be different names, not {domains}; n_cycles makes them come again")
    return {name: content[name] for name in domains}


def _coded(
    content: dict[str, bytes], unit: str, learned_share: float, n_symbols: int
) -> tuple[dict[str, Symbols], int]:
    """Number the symbols of each domain; returns them and how many different ones there can be."""
    if unit == "byte":
        return {name: np.frombuffer(text, np.uint8) for name, text in content.items()}, N_BYTES
    if unit not in ("character", "bpe"):
        raise UnknownNameError(unknown_name("unit", unit, ["byte", "character", "bpe"]))
    texts = {name: _decoded(name, text) for name, text in content.items()}
    if unit == "bpe":
        pairs, n_pairs = byte_pairs(tuple(texts.values()), learned_share, n_symbols)
        return dict(zip(texts, pairs, strict=True)), n_pairs
    points = {name: np.frombuffer(text.encode("utf-32-le"), "<u4") for name, text in texts.items()}
    known = np.unique(np.concatenate(list(points.values())))
    return {name: np.searchsorted(known, symbols).astype(np.int32) for name, symbols in points.items()}, len(known)


def _decoded(name: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the text '{name}' is not UTF-8 (byte {error.start:,}); convert it, as by iconv -f LATIN1 -t UTF-8, or "
            'take unit="byte"'
        ) from error


def _windows(name: str, n_symbols: int, context: int, held_out_share: float) -> tuple[int, int]:
    """Count the windows of a domain that are learned from, and those that are held out."""
    n = (n_symbols - 1) // context  # the first symbol has none before it
    held_out = int(n * held_out_share)
    if held_out < 1:
        least = next(n for n in itertools.count(1) if int(n * held_out_share) >= 1) * context + 1
        raise ValueError(
            f"the text '{name}' has {n_symbols:,} symbols, too few: with context={context} and "
            f"held_out_share={held_out_share:g} it needs {least:,}; remove it, or take a smaller context"
        )
    return n - held_out, held_out


def _plan(
    parts: list[tuple[int, int]],
    context: int,
    order: str,
    n_cycles: int,
    samples_per_experience: int | None,
    test_samples: int,
    seed: int,
) -> tuple[Plan, Plan]:
    """Say which windows come when; ``parts`` has the numbers of windows to learn from and held out of each domain."""
    if order not in ("given", "random"):
        raise UnknownNameError(unknown_name("order", order, ["given", "random"]))
    if samples_per_experience is not None and samples_per_experience < context:
        raise ValueError(f"samples_per_experience must be at least context, {context}, not {samples_per_experience}")
    ordered = (
        range(len(parts)) if order == "given" else random_state(seed, CLASS_ORDER).permutation(len(parts)).tolist()
    )
    first = np.cumsum([0, *(n + held for n, held in parts)]).tolist()
    train, test = [], []
    for cycle, number in itertools.product(range(n_cycles), ordered):
        n, held_out = parts[number]
        each = max(1, n // n_cycles) if samples_per_experience is None else samples_per_experience // context
        begin = random_state(seed, SAMPLE_ORDER, number).randint(max(n - n_cycles * each, 0) + 1, dtype=np.int64)
        learned = first[number] + (begin + cycle * each + np.arange(each)) % n
        tested = first[number] + n + np.arange(min(held_out, max(1, test_samples // context)))
        train.append((learned, np.zeros_like(learned), -1))
        test.append((tested, np.zeros_like(tested), -1))
    return plan_of(train), plan_of(test)


def _bytes_per_symbol(content: dict[str, bytes], coded: dict[str, Symbols], names: NDArray[Any]) -> float:
    """Average the bytes of a symbol over the stream, with each domain's own mean."""
    windows = {name: int((names == name).sum()) for name in content}
    total = sum(n * len(content[name]) / len(coded[name]) for name, n in windows.items())
    return total / len(names)


def _content_hash(content: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, text_of_domain in content.items():
        digest.update(f"{name} {len(text_of_domain)}\n".encode())
        digest.update(text_of_domain)
    return digest.hexdigest()
