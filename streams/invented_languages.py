"""Texts in four invented languages, which need no files: each has its own letters, words and word order."""

import functools
import itertools

import numpy as np

LETTERS = {  # name -> (consonants, vowels)
    "anari": ("n r l m k", "a i"),
    "dobu": ("b d g v z", "o u"),
    "keti": ("k t p s f", "e i y"),
    "shuro": ("sh r ch m l", "u o a"),
}
N_WORDS = 200
N_SENTENCES = 1000
SHARES = (0.5, 0.75, 0.875, 0.9375)  # of the five words that can follow a word, added up


@functools.cache
def invented_languages() -> dict[str, bytes]:
    """Write 1,000 sentences in each language.

    A language has 200 words of one to three syllables. Each word is followed by one of five words, the first of which
    comes in half of the cases, the second in a quarter, and so on. So the next letter can be predicted ever better by
    whoever learns letters, words and then their order. The sentences are the same on every platform.

    Returns:
        Name of the language → ASCII text of about 30 KB.

    Example:
        >>> invented_languages()["dobu"][:24].decode()
        'Bovu zuzuzo bodo dovu zo'
    """
    return {name: _text(number, *LETTERS[name]) for number, name in enumerate(LETTERS)}


def _text(number: int, consonants: str, vowels: str) -> bytes:
    state = np.random.RandomState(number)  # whose sequence is frozen
    syllables = [c + v for c, v in itertools.product(consonants.split(), vowels.split())]
    words = [
        "".join(syllables[i] for i in state.randint(len(syllables), size=1 + k % 3, dtype=np.int64))
        for k in range(N_WORDS)
    ]
    followers = state.randint(N_WORDS, size=(N_WORDS, 5), dtype=np.int64)
    sentences = []
    for _ in range(N_SENTENCES):
        word, sentence = state.randint(N_WORDS, dtype=np.int64), []
        for _ in range(state.randint(4, 10, dtype=np.int64)):
            sentence.append(words[word])
            word = followers[word, np.searchsorted(SHARES, state.random_sample(), side="right")]
        sentences.append(" ".join(sentence).capitalize() + ".")
    return "\n".join(sentences).encode()
