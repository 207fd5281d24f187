"""
The session passes of a worker with a whole model: what a registry's token must say to admit its client.

A pass is for one worker and one model, and for one session: its `jti` is used up by opening it. The signature was
checked by whoever hands the claims in.

Source: RFC 7519, section 4.1.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.limits import NAME_CHARS_MAX

AUDIENCE = "livery-worker"
LEEWAY_S = 5
# One that holds for longer would have to be remembered for as long, and is a password.
TTL_MAX_S = 86_400
REQUIRED = ("agent_id", "aud", "client_id", "exp", "iat", "iss", "jti", "model", "nbf")
_WORDS = ("agent_id", "client_id", "iss", "jti", "model")
_TIMES = ("exp", "iat", "nbf")


class SessionPass(NamedTuple):
    """Whom a pass admits, to which model; `jti` is kept until `exp_s`, Unix time, once it is used up."""

    client_id: str
    model: str
    jti: str
    exp_s: float


def must_admit(claims: Mapping[str, Any], *, agent_id: str, issuer: str, now_s: float) -> SessionPass:
    """
    Return what `claims` admit at the Unix time `now_s` to the worker `agent_id`, which trusts `issuer`.

    Raises:
        InferenceError: unauthenticated; the sentence says what does not hold.
    """
    for name in REQUIRED:
        if name not in claims:
            raise refused(f"has no {name}")
    for name in _WORDS:
        if not isinstance(claims[name], str) or not 0 < len(claims[name]) <= NAME_CHARS_MAX:
            raise refused(f"has no {name} that can be one")
    # Not-a-number cannot be here: JSON has none.
    if not all(isinstance(claims[name], int | float) for name in _TIMES):
        raise refused("has times that are no numbers")
    exp_s, iat_s, nbf_s = (claims[name] for name in _TIMES)
    failed = (
        # One audience alone: a pass for several doors could be shown at each.
        (claims["aud"] != AUDIENCE, "is for another audience"),
        (claims["iss"] != issuer, "is of another issuer"),
        (claims["agent_id"] != agent_id, "is for another worker"),
        (exp_s + LEEWAY_S <= now_s, "has expired"),
        (max(iat_s, nbf_s) - LEEWAY_S > now_s, "does not hold yet"),
        (exp_s - iat_s > TTL_MAX_S, f"holds for longer than {TTL_MAX_S} seconds"),
    )
    for has_failed, why in failed:
        if has_failed:
            raise refused(why)
    return SessionPass(claims["client_id"], claims["model"], claims["jti"], float(exp_s))


def refused(why: str) -> InferenceError:
    return InferenceError("unauthenticated", f"the session pass {why}")
