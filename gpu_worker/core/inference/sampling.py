"""How the next token is chosen: the parameters, their limits, and where each of them is told to be wrong."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

LOGPROBS_MAX = 20
LOGIT_BIAS_MAX = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """
    `temperature` 0 is greedy. `top_k` 0, `top_p` 1, `min_p` 0 and penalties of 1, 0, 0 change nothing.

    `seed`, 64 bits: the random number of a position is a function of (seed, position) alone. `logprobs` is how many
    alternatives are told beside the chosen token, None: none and not its own either. `schema` is a JSON schema as text
    that the output must match. `eos` are the tokens that end a stream; with `ignore_eos` they are never chosen.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    logprobs: int | None = None
    schema: str | None = None
    eos: tuple[int, ...] = ()
    ignore_eos: bool = False

    @property
    def needs_history(self) -> bool:
        """Whether the choice depends on the tokens before it, so that the last stage must know them."""
        penalised = self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0
        return penalised or self.schema is not None


class Sampled(NamedTuple):
    """
    A chosen token. `position` is the one it will stand at: that of the row it was drawn from, plus 1.

    `logprob` and `top` (token, log probability; best first) are of the distribution before temperature and cuts.
    """

    session: str
    epoch: int
    position: int
    token: int
    is_eos: bool = False
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


# What a number may be, both ends included.
_BOUNDS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_k": (0, 2**31),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1e-3, 100.0),
    "presence_penalty": (-100.0, 100.0),
    "frequency_penalty": (-100.0, 100.0),
    "seed": (0, 2**64 - 1),
}
_BIAS_MAX = 1_000.0


def flaw(sampling: Sampling, vocab_size: int) -> str | None:
    """Return why no token can be chosen by `sampling`, None where all of it can be."""
    for name, (least, most) in _BOUNDS.items():
        if not least <= getattr(sampling, name) <= most:
            return f"{name} is a number from {least:g} to {most:g}"
    if sampling.logprobs is not None and not 0 <= sampling.logprobs <= LOGPROBS_MAX:
        return f"logprobs are told of 0 to {LOGPROBS_MAX} tokens"
    if len(sampling.logit_bias) > LOGIT_BIAS_MAX:
        return f"logit_bias has at most {LOGIT_BIAS_MAX} tokens"
    if not all(-_BIAS_MAX <= bias <= _BIAS_MAX for bias in sampling.logit_bias.values()):
        return f"a logit bias is a number from {-_BIAS_MAX:g} to {_BIAS_MAX:g}"
    if not all(0 <= token < vocab_size for token in (*sampling.logit_bias, *sampling.eos)):
        return f"a token of this model is a number from 0 to {vocab_size - 1}"
    if sampling.schema is not None and sampling.ignore_eos:
        return "an output that matches a JSON schema has an end, which cannot be ignored"
    return None
