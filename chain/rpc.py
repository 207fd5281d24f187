"""JSON-RPC 2.0 over HTTP to an Ethereum node. Nothing here knows a contract, and nothing here tries again."""

import itertools
from typing import Any

from chain.errors import RpcRefused, RpcUnavailable
from outbound.http import HttpClient, OutboundError
from wire import decimal_json

TIMEOUT_S = 15.0
# eth_getLogs over one window is the largest answer that is asked for.
ANSWER_BYTES_MAX = 8 * 1024 * 1024


class Rpc:
    """A node at `url`. Holds no connection: any event loop may call it."""

    def __init__(self, url: str, http: HttpClient) -> None:
        self.url = url
        self._http = http
        self._ids = itertools.count(1)

    async def call(self, method: str, *params: Any) -> Any:
        """
        Return the result of `method`.

        Raises:
            RpcUnavailable: no answer, or one that is not JSON-RPC to this very call.
            RpcRefused: the node answered with an error.
        """
        number = next(self._ids)
        body = decimal_json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
        try:
            reply = await self._http.request(
                "POST",
                self.url,
                headers={"content-type": "application/json"},
                content=body,
                timeout_s=TIMEOUT_S,
                body_bytes_max=ANSWER_BYTES_MAX,
            )
        except OutboundError as error:
            raise RpcUnavailable(f"{method}: {error}") from error
        # Nodes send errors of JSON-RPC with 200 as well as with 4xx; too many requests is no answer to the question.
        if reply.status == 429 or reply.status >= 500:
            raise RpcUnavailable(f"{method}: the node answered with status {reply.status}")
        try:
            answer = decimal_json.loads(reply.content)
        except ValueError:
            raise RpcUnavailable(f"{method}: the node answered with status {reply.status} and no JSON") from None
        return _result(method, number, answer)


def _result(method: str, number: int, answer: Any) -> Any:
    if not isinstance(answer, dict):
        raise RpcUnavailable(f"{method}: the node's answer is not JSON-RPC")
    echoed = answer.get("id")
    # By type as well: True equals 1. Some nodes send no id beside an error.
    if echoed is not None and (type(echoed) is not int or echoed != number):
        raise RpcUnavailable(f"{method}: the node's answer belongs to another call")
    error = answer.get("error")
    if isinstance(error, dict):
        code = error.get("code")
        raise RpcRefused(code if isinstance(code, int) else 0, f"{method}: {str(error.get('message'))[:300]}")
    if echoed is None or "result" not in answer:
        raise RpcUnavailable(f"{method}: the node's answer is not JSON-RPC")
    return answer["result"]
