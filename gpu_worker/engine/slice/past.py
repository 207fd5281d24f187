"""The tokens of a session as penalties ask for them: which ones there are, and how often each was generated."""

from collections.abc import Iterable

import numpy as np

_FIRST = 64


class Past:
    """
    A session's tokens, the first `prompt_len` of them the prompt's.

    `ids` are its distinct tokens and `counts` how often each was generated (float32, same order), without copying.
    """

    def __init__(self, tokens: Iterable[int], prompt_len: int) -> None:
        self.prompt_len = prompt_len
        self.tokens: list[int] = []
        # Where each distinct token stands in the two arrays, which have room for more.
        self._at: dict[int, int] = {}
        self._ids: np.ndarray = np.empty(_FIRST, np.int64)
        self._counts: np.ndarray = np.empty(_FIRST, np.float32)
        for token in tokens:
            self.append(token)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def ids(self) -> np.ndarray:
        return self._ids[: len(self._at)]

    @property
    def counts(self) -> np.ndarray:
        return self._counts[: len(self._at)]

    @property
    def generated(self) -> list[int]:
        return self.tokens[self.prompt_len :]

    def append(self, token: int) -> None:
        at = self._at.get(token)
        if at is None:
            at = self._at[token] = len(self._at)
            if at == len(self._ids):
                self._ids = np.resize(self._ids, 2 * at)
                self._counts = np.resize(self._counts, 2 * at)
            self._ids[at], self._counts[at] = token, 0
        if len(self.tokens) >= self.prompt_len:
            self._counts[at] += 1
        self.tokens.append(token)

    def cut(self, length: int) -> None:
        """Forget the tokens from position `length` on."""
        if length < len(self.tokens):
            kept, self.tokens, self._at = self.tokens[:length], [], {}
            for token in kept:
                self.append(token)
