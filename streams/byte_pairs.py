"""Byte pairs (Sennrich et al., 2016): symbols of one or several bytes, learned from text by the library tokenizers."""

import functools

import numpy as np
from numpy.typing import NDArray


@functools.lru_cache(maxsize=1)  # since a study plans its stream several times
def byte_pairs(texts: tuple[str, ...], learned_share: float, n_symbols: int) -> tuple[list[NDArray[np.int32]], int]:
    """Learn symbols from the beginnings of texts, and write all texts in them.

    Args:
        texts: one for each domain.
        learned_share: share of each text, its beginning, that symbols are learned from.
        n_symbols: number of different symbols to learn; 256 of them are the bytes.

    Returns:
        The symbols of each text, and how many different ones there are: fewer than asked for if the texts are small.

    Raises:
        ImportError: tokenizers is not installed.
    """
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    except ImportError as error:
        raise ImportError(
            "unit=\"bpe\" needs the package tokenizers; in the clone, pip install -e '.[text]'"
        ) from error
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=n_symbols, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([text[: int(len(text) * learned_share)] for text in texts], trainer)
    return [np.array(tokenizer.encode(text).ids, np.int32) for text in texts], tokenizer.get_vocab_size()
