"""How the tokens of one session are chosen on the last stage, and those that were."""

from collections.abc import Callable, Sequence

import numpy as np

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.sampling import Sampling, flaw
from gpu_worker.engine.slice.constraint import Constraint, Grammars
from gpu_worker.engine.slice.past import Past
from gpu_worker.engine.slice.sampler import Draw


class Voice:
    """
    A session's sampling. `history` are its tokens so far, `prompt_len` of them the prompt; kept where it matters.

    Args:
        grammars: returns the compiler of schemas. Called where there is a schema.

    Raises:
        InferenceError: invalid_argument: a parameter, a token or the schema cannot be used.
    """

    def __init__(
        self,
        sampling: Sampling,
        history: Sequence[int],
        prompt_len: int,
        *,
        vocab_size: int,
        grammars: Callable[[], Grammars],
    ) -> None:
        why = flaw(sampling, vocab_size)
        if why is None and not 0 <= prompt_len <= len(history):
            why = f"{prompt_len} tokens of the prompt, {len(history)} in all"
        if why is None and history and not 0 <= min(history) <= max(history) < vocab_size:
            why = f"a token of this model is a number from 0 to {vocab_size - 1}"
        if why is not None:
            raise InferenceError("invalid_argument", why)
        self.sampling = sampling
        self.past = Past(history, prompt_len) if sampling.needs_history else None
        self._grammars = grammars() if sampling.schema is not None else None
        self.ends = frozenset(sampling.eos or ((self._grammars.eos,) if self._grammars else ()))
        self._constraint = self._rebuilt()

    def draw(self, position: int) -> Draw:
        """
        Return what the token at `position` is chosen by; what was chosen from there on is forgotten.

        Raises InferenceError: position_gap: the tokens before it are not known; invalid_argument: they cannot be.
        """
        if self.past is None:
            return Draw(self.sampling, position)
        if position < len(self.past):
            self.past.cut(position)
            self._constraint = self._rebuilt()
        if position > len(self.past):
            raise InferenceError("position_gap", f"of the tokens before {position} {len(self.past)} are known here")
        return Draw(self.sampling, position, self.past, self._allowed())

    def take(self, token: int) -> None:
        """Go on behind a token that was chosen."""
        if self.past is not None:
            self.past.append(token)
        if self._constraint is not None and token not in self.ends:
            self._constraint.take(token)

    def _allowed(self) -> np.ndarray | None:
        return None if self._constraint is None else self._constraint.allowed(tuple(self.ends))

    def _rebuilt(self) -> Constraint | None:
        if self._grammars is None or self.past is None or self.sampling.schema is None:
            return None
        said = [token for token in self.past.generated if token not in self.ends]
        return self._grammars.constraint(self.sampling.schema, said)
