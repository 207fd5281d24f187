"""Standard Webhooks over HTTP: telling the owner's program, and knowing the vendors by their signatures."""

import time
from collections.abc import Mapping

from agent.core.model import Notice
from agent.ports import Delivery
from outbound.http import HttpClient, OutboundError
from outbound.webhooks import is_signed, signed_headers, split_secrets
from wire.vendor import secrets_for

# A receiver has to note the message, not to act on it; a tick's request waits for it on some hosts.
CALL_S = 5.0
ANSWER_BYTES_MAX = 64 * 1024
GONE = 410


class HttpWebhooks:
    """
    The receiver at `url`.

    Args:
        secrets: `whsec_` secrets with commas between; each signs.
    """

    def __init__(self, http: HttpClient, url: str, secrets: str) -> None:
        self._http = http
        self._url = url
        self._secrets = split_secrets(secrets)

    async def send(self, notice: Notice) -> Delivery:
        """See `Webhooks.send`. A redirect is not followed and counts as a failure."""
        body = notice.payload.encode()
        headers = signed_headers(self._secrets, notice.notice_id, int(time.time()), body)
        try:
            reply = await self._http.request(
                "POST", self._url, headers=headers, content=body, timeout_s=CALL_S, body_bytes_max=ANSWER_BYTES_MAX
            )
        except OutboundError as error:
            return Delivery(is_accepted=False, is_final=False, detail=str(error))
        accepted = 200 <= reply.status < 300
        return Delivery(accepted, accepted or reply.status == GONE, f"the receiver answered {reply.status}")


class SignedCallbacks:
    """Vendors who sign with the secret that they ask for as a bearer (`wire.vendor.secrets_for`)."""

    def __init__(self, secrets: str) -> None:
        self._secrets = secrets

    def is_signed(self, vendor_id: str, headers: Mapping[str, str], body: bytes) -> bool:
        """See `Callbacks.is_signed`."""
        return is_signed(secrets_for(vendor_id, self._secrets), headers, body)
