"""A server that speaks OpenAI's API: where it is, how it is asked, and what it means when it does not answer."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import orjson

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.edges.engines.upstream_answer import UpstreamAnswer, fault
from gpu_worker.inference.upstream.cards import Listed, listed
from gpu_worker.inference.upstream.refusals import broken, refusal
from gpu_worker.inference.upstream.request import encoded
from outbound.http import HttpClient, HttpReply, OutboundError

ANSWER_BYTES_MAX = 64 * 1024 * 1024
LIST_BYTES_MAX = 4 * 1024 * 1024
LIST_S = 10.0
# Answers after which the same question may have another one: the server is being started.
_LATER = frozenset({408, 425, 429})


class UpstreamClient:
    """
    Args:
        base_url: up to /v1, or the server's root.
        key: the bearer that it asks for, None: none.
        silence_s: without a byte for so long it is given up.
    """

    def __init__(self, base_url: str, key: str | None, http: HttpClient, silence_s: float) -> None:
        url = base_url.rstrip("/")
        self._api = url if urlsplit(url).path else f"{url}/v1"
        self._root = self._api.removesuffix("/v1")
        self.where = urlsplit(url).hostname or url
        self.silence_s = silence_s
        self._http = http
        self._headers = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
        if key:
            self._headers["authorization"] = f"Bearer {key}"

    async def models(self) -> tuple[Listed, ...]:
        """
        Return the models that the server lists.

        Raises:
            OwnersFault: it is no server that can be used; the sentence says what to do.
            InferenceError: nobody answers now.
        """
        reply = await self._request("GET", f"{self._api}/models", None, LIST_BYTES_MAX, LIST_S)
        if reply.status >= 500 or reply.status in _LATER:
            raise refusal(reply.status, reply.content)
        if reply.status in (401, 403):
            raise OwnersFault(f"{self.where} does not admit this worker: set LIVERY_WORKER_UPSTREAM_KEY")
        if reply.status != 200:
            raise OwnersFault(f"{self.where} answers {reply.status} where its list of models should be")
        try:
            return listed(_json(reply.content))
        except InferenceError:
            raise OwnersFault(f"{self.where} has no list of models: it does not speak OpenAI's API") from None

    async def post(
        self, path: str, body: Mapping[str, Any], *, bytes_max: int = ANSWER_BYTES_MAX, context: int | None = None
    ) -> Any:
        """
        Return the JSON that the server answers at `path`, which begins at its root; /v1 is where its API is.

        Args:
            context: of the model that is asked, where it is known.

        Raises:
            InferenceError: it answers with something else.
        """
        reply = await self._request("POST", self._url(path), encoded(body), bytes_max, self.silence_s)
        if reply.status != 200:
            raise refusal(reply.status, reply.content, context)
        return _json(reply.content)

    async def begin(self, path: str, content: bytes, answer: UpstreamAnswer, context: int | None) -> None:
        """Have the request of that body answered by `answer`. Raises InferenceError: it is refused."""
        await answer.open(self._http, self._url(path), self._headers, content, context)

    async def _request(
        self, method: str, url: str, content: bytes | None, bytes_max: int, timeout_s: float
    ) -> HttpReply:
        try:
            return await self._http.request(
                method, url, headers=self._headers, content=content, timeout_s=timeout_s, body_bytes_max=bytes_max
            )
        except OutboundError as error:
            raise fault(error, timeout_s) from None

    def _url(self, path: str) -> str:
        return self._api + path.removeprefix("/v1") if path.startswith("/v1/") else self._root + path


def _json(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except ValueError:
        raise broken("answered with something else than JSON: it does not speak OpenAI's API") from None
