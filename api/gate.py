"""
The gate before every route: who may pass, told before a path is looked up and before a body is read.

Where a secret is set all routes but /health ask for it as a bearer. Where none is, programs of this machine alone are
answered, and on a host nobody: all others get /health and nothing else.

Source: RFC 6750 section 2.1, RFC 9110 section 11.
"""

import hmac
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import SecretStr
from starlette._utils import get_route_path
from starlette.types import ASGIApp, Receive, Scope, Send

from inbound.stranger import is_near
from inbound.web import ProblemReply
from wire.problems import problem_document

OPEN = frozenset({"/health"})
# Vercel's crons call it with a secret of their own, and by GET: so not even a page of this machine may without one.
SWEEP = "/agent-sweep"
# Proves itself by the signature of what it carries.
SIGNED = frozenset({("POST", "/vendor-callback")})
# Prove themselves by the token of the job whose files they are.
TOKENED = ("/agent-files/", frozenset({"GET", "PUT"}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """What opens the gate. `on_host`: the server has a public name, and is closed without a secret."""

    secret: SecretStr | None = None
    cron_secret: SecretStr | None = None
    on_host: bool = False

    def of(self, path: str) -> tuple[str, ...]:
        """Return the secrets of which a request for `path` must send one; none is asked for where there are none."""
        held = (self.secret, self.cron_secret if path == SWEEP else None)
        return tuple(one.get_secret_value() for one in held if one is not None)


def refusal(
    keys: Keys, method: str, path: str, authorizations: Iterable[str], *, is_near: bool
) -> tuple[str, str] | None:
    """
    Return the code and the detail of the refusal of a request, None for one that may pass.

    Args:
        path: as it is routed, with or without the prefix /api.
        authorizations: the values of its Authorization headers.
        is_near: a program of this machine sent it.
    """
    path = path.removeprefix("/api")
    if path in OPEN:
        return None
    if keys.secret is None and (keys.on_host or not is_near):
        return "no_api_secret", "who asks from elsewhere needs a secret, and LIVERY_API_SECRET is not set"
    if (method, path) in SIGNED or (path.startswith(TOKENED[0]) and method in TOKENED[1]):
        return None
    wanted = keys.of(path)
    if not wanted:
        if path == SWEEP and method == "GET":
            return "no_api_secret", "a GET that changes runs is never open, and LIVERY_API_SECRET is not set"
        return None
    sent = [value.partition(" ") for value in authorizations]
    if len(sent) != 1 or sent[0][0].lower() != "bearer":
        return "unauthorized", "no bearer secret was sent"
    given = sent[0][2].strip().encode()
    # Each is compared to its end: how long that takes tells nothing of how much was right.
    if any([hmac.compare_digest(given, one.encode()) for one in wanted]):
        return None
    return "forbidden", "the bearer secret is another one"


class Gate:
    """Refuses requests that `refusal` refuses; all else reaches the application as it came."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = None if scope["type"] == "lifespan" else self._refusal(scope)
        if refused is None:
            await self._app(scope, receive, send)
            return
        headers = {"www-authenticate": "Bearer"} if refused[0] == "unauthorized" else None
        await ProblemReply(problem_document(*refused), headers)(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[str, str] | None:
        sent = [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]
        # As the router sees it: a server that stands below a path (root_path) puts that before it.
        path = get_route_path(scope)
        return refusal(self._keys, scope.get("method", "GET"), path, sent, is_near=is_near(scope))
