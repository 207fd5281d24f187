"""
Lambda's Runtime API, small: it hands events to AWS's own runtime client (awslambdaric), which calls the handler.

Source: the Lambda developer guide, "Using the Lambda runtime API" (version 2018-06-01).
"""

import json
import queue
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WAIT_S = 60


class Failed(Exception):
    """The invocation ended with an error, or the handler could not be loaded."""


@dataclass
class RuntimeApi:
    """Invocations that wait to be fetched, and the answers to those that were. `left_s`: what each is given."""

    address: str = ""
    left_s: float = 30.0
    _events: "queue.SimpleQueue[tuple[str, Any] | None]" = field(default_factory=queue.SimpleQueue)
    _answers: "dict[str, queue.SimpleQueue[tuple[str, Any]]]" = field(default_factory=dict)

    def invoke(self, event: Any) -> Any:
        """Return what the handler returns for `event`. Raises Failed with what it raised."""
        name = str(uuid.uuid4())
        self._answers[name] = queue.SimpleQueue()
        self._events.put((name, event))
        kind, document = self._answers[name].get(timeout=WAIT_S)
        if kind != "response":
            raise Failed(document)
        return document

    def next(self) -> tuple[str, Any] | None:
        return self._events.get()

    def answered(self, name: str, kind: str, document: Any) -> None:
        # Where the handler could not even be loaded, whoever waits is told.
        for waiting in self._answers.values() if name == "init" else (self._answers[name],):
            waiting.put((kind, document))

    def close(self) -> None:
        self._events.put(None)


@contextmanager
def runtime_api() -> Iterator[RuntimeApi]:
    """Yield a Runtime API on a free port of loopback."""
    api = RuntimeApi()

    class Door(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # headers and body in one packet

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            invocation = api.next()
            if invocation is None:
                self.close_connection = True
                return
            name, event = invocation
            headers = {
                "Content-Type": "application/json",
                "Lambda-Runtime-Aws-Request-Id": name,
                "Lambda-Runtime-Deadline-Ms": str(int((time.time() + api.left_s) * 1_000)),
                "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:eu-central-1:123456789012:function:plane",
                "Lambda-Runtime-Trace-Id": "Root=1-0-0",
            }
            self._answer(200, json.dumps(event).encode(), headers)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            *_, name, kind = self.path.split("/")
            self._answer(202, b"", {})
            api.answered(name, kind, json.loads(body))

        def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for header, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(header, value)
            self.end_headers()
            self.wfile.write(body)

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Nothing: a function that is killed drops its connection."""

    with Server(("127.0.0.1", 0), Door) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        api.address = f"127.0.0.1:{server.server_address[1]}"
        yield api
        api.close()
        server.shutdown()
        thread.join()


def http(
    method: str,
    path: str,
    body: Any = None,
    *,
    query: str = "",
    headers: dict[str, str] | None = None,
    url: bool = False,
) -> dict[str, Any]:
    """Return the event of a request through an HTTP API (payload version 2.0), or through a function URL."""
    host = f"abc.{'lambda-url.eu-central-1.on.aws' if url else 'execute-api.eu-central-1.amazonaws.com'}"
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": query,
        "headers": {
            "host": host,
            "content-type": "application/json",
            "x-forwarded-proto": "https",
            "x-forwarded-port": "443",
            "x-forwarded-for": "203.0.113.7",
            **(headers or {}),
        },
        "requestContext": {
            "accountId": "anonymous" if url else "123456789012",
            "apiId": "abc",
            "domainName": host,
            "domainPrefix": "abc",
            "http": {
                "method": method,
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": "203.0.113.7",
                "userAgent": "x",
            },
            "requestId": "r",
            "routeKey": "$default",
            "stage": "$default",
            "time": "21/Nov/2026:00:00:00 +0000",
            "timeEpoch": 1_795_219_200_000,
        },
        "body": None if body is None else json.dumps(body),
        "isBase64Encoded": False,
    }


def sqs(*bodies: str, fifo: bool = False) -> dict[str, Any]:
    """Return the event of a batch of messages, called m-0, m-1, ..."""
    return {
        "Records": [
            {
                "messageId": f"m-{number}",
                "receiptHandle": "handle",
                "body": body,
                "attributes": {"ApproximateReceiveCount": "1"},
                "messageAttributes": {},
                "md5OfBody": "",
                "eventSource": "aws:sqs",
                "eventSourceARN": f"arn:aws:sqs:eu-central-1:123456789012:ticks{'.fifo' if fifo else ''}",
                "awsRegion": "eu-central-1",
            }
            for number, body in enumerate(bodies)
        ]
    }
