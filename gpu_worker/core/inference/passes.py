"""
Session passes: what a registry says when it admits a session, and what must hold for a stage to serve it.

A pass names its session, its head, its layers and its model, and may be shown again for that session, when a stage is
replaced. Its `jti` is used up by the session that it opens.

A stream between stages carries all sessions of one pipeline, so it is opened with a pass whose session is the pipeline;
each session of it brings a pass of its own, of the same head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gpu_worker.core.inference.batch import Hop
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.limits import NAME_CHARS_MAX

TTL_S = 300
LEEWAY_S = 5
REQUIRED = ("agent_id", "aud", "client_id", "exp", "head", "iat", "iss", "jti", "layers", "model", "nbf", "session")
AUDIENCE = "livery-stage"
USED_MAX = 65_536


class Shown(NamedTuple):
    """What the pass of a stream admits: this pipeline of that head. All empty: nobody is asked for a pass."""

    pipeline: str = ""
    head: str = ""
    session_pass: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What a pass is for. `head` is the head's endpoint, `layers` the slices of the model that the session may use."""

    session: str
    head: str
    model: str
    model_hash: str
    layers: Sequence[tuple[int, int]]
    agent_id: str = ""
    client_id: str = ""


def claims_of(admission: Admission, *, issuer: str, jti: str, now_s: int, ttl_s: int = TTL_S) -> dict[str, Any]:
    """Return the claims of a pass that holds from `now_s`, Unix time, for `ttl_s` seconds."""
    return {
        "iss": issuer,
        "aud": AUDIENCE,
        "iat": now_s,
        "nbf": now_s,
        "exp": now_s + ttl_s,
        "jti": jti,
        "agent_id": admission.agent_id,
        "client_id": admission.client_id,
        "model": admission.model,
        "session": admission.session,
        "head": admission.head,
        "model_hash": admission.model_hash,
        "layers": [list(each) for each in admission.layers],
    }


@dataclass(slots=True)
class UsedUp:
    """Which session each `jti` has opened, until it expires."""

    _sessions: dict[str, tuple[str, float]] = field(default_factory=dict)

    def take(self, jti: str, session: str, exp_s: float, now_s: float) -> None:
        """Raises InferenceError: another session was opened with it (unauthenticated), or too many are known."""
        known = self._sessions.setdefault(jti, (session, exp_s))
        if known[0] != session:
            raise InferenceError("unauthenticated", "the session pass has opened another session")
        if len(self._sessions) > USED_MAX:
            self._sessions = {key: each for key, each in self._sessions.items() if each[1] + LEEWAY_S >= now_s}
            if len(self._sessions) > USED_MAX:
                del self._sessions[jti]
                raise InferenceError("no_capacity", f"{USED_MAX} session passes are in use here, no more")


def must_admit(claims: Mapping[str, Any], session: str | None, hop: Hop, model_hash: str) -> Shown:
    """
    Return what `claims`, whose signature and times hold, admit: `session`, None: any, on the layers of `hop`.

    Raises:
        InferenceError: unauthenticated; the sentence says what does not hold.
    """
    missing = [name for name in REQUIRED if name not in claims]
    if missing:
        raise InferenceError("unauthenticated", f"the session pass has no {missing[0]}")
    if not isinstance(claims["jti"], str) or not 0 < len(claims["jti"]) <= NAME_CHARS_MAX:
        raise InferenceError("unauthenticated", "the session pass has no jti that can be one")
    if not all(isinstance(claims[key], str) for key in ("session", "head")):
        raise InferenceError("unauthenticated", "the session pass has no session or no head that can be one")
    if session is not None and claims["session"] != session:
        raise InferenceError("unauthenticated", "the session pass is for another session")
    if claims.get("model_hash") != model_hash:
        raise InferenceError("unauthenticated", "the session pass is for another model")
    if not _covers(claims["layers"], hop):
        raise InferenceError("unauthenticated", f"the session pass is not for layers {hop.start}:{hop.end}")
    return Shown(claims["session"], claims["head"])


def _covers(layers: Any, hop: Hop) -> bool:
    if not isinstance(layers, list) or len(layers) > 1024:
        return False
    return any(
        isinstance(each, list)
        and len(each) == 2
        and all(isinstance(edge, int) for edge in each)
        and each[0] <= hop.start < hop.end <= each[1]
        for each in layers
    )
