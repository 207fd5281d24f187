"""
The agent's key in Coinbase's custody: a CDP server account signs, and the key never leaves CDP.

The SDK signs our requests and nothing else: they go over our own HTTP client, so that one place holds the rules of
sizes and times, no connection belongs to an event loop, and nothing is reported about their use.

Source: CDP API v2, `evm/accounts/by-name/{name}` and `evm/accounts/{address}/sign/typed-data`.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from agent.core.errors import WalletError
from outbound.http import HttpClient, OutboundError
from wire import decimal_json

CDP_URL = "https://api.cdp.coinbase.com/platform"
TIMEOUT_S = 15.0
ANSWER_BYTES_MAX = 64 * 1024

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")
_SIGNATURE = re.compile(r"0x[0-9a-fA-F]{130}")

# The headers that authorise one request: method, host, path and JSON body in.
Authorize = Callable[[str, str, str, dict[str, Any] | None], Mapping[str, str]]


class CdpWallet:
    """
    Signs with the CDP account `account`, a name or an address.

    Args:
        load: returns what authorises requests; called off the event loop, at each signature.
    """

    def __init__(self, load: Callable[[], Authorize], http: HttpClient, account: str, url: str = CDP_URL) -> None:
        self._load = load
        self._http = http
        self._account = account
        self._url = url
        self._address = account if _ADDRESS.fullmatch(account) else None

    async def address(self) -> str:
        """Return the payer's address. Raises WalletError."""
        if self._address is None:
            found = await self._call("GET", f"/v2/evm/accounts/by-name/{quote(self._account, safe='')}", None)
            self._address = _matching(_ADDRESS, found.get("address"))
        return self._address

    async def sign(self, typed_data: dict[str, Any]) -> str:
        """Return the 65-byte EIP-712 signature of `typed_data`, 0x-hex. Raises WalletError."""
        address = await self.address()
        found = await self._call("POST", f"/v2/evm/accounts/{address}/sign/typed-data", typed_data)
        return _matching(_SIGNATURE, found.get("signature"))

    async def _call(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        target = urlsplit(self._url + path)
        headers = await asyncio.to_thread(self._authorized, method, target.netloc, target.path, body)
        try:
            reply = await self._http.request(
                method,
                self._url + path,
                headers={**headers, "accept": "application/json"},
                # The order of keys is the one that the SDK signed.
                content=None if body is None else decimal_json.dumps(body, sort_keys=True),
                timeout_s=TIMEOUT_S,
                body_bytes_max=ANSWER_BYTES_MAX,
            )
            found = decimal_json.loads(reply.content) if reply.status == 200 else None
        except OutboundError as error:
            raise WalletError(f"CDP did not answer: {error}") from None
        except ValueError:
            found = None
        if reply.status == 404:
            raise WalletError("CDP has no account of that name: X402_WALLET_ID names one of your project")
        if not isinstance(found, dict):
            raise WalletError(f"CDP answered {reply.status}")
        return found

    def _authorized(self, method: str, host: str, path: str, body: dict[str, Any] | None) -> Mapping[str, str]:
        authorize = self._load()
        try:
            return authorize(method, host, path, body)
        except Exception as error:
            # What the SDK says of a key that it cannot read may repeat it.
            raise WalletError(f"CDP's keys cannot sign a request: {type(error).__name__}") from None


def _matching(pattern: re.Pattern[str], value: object) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise WalletError("CDP's answer is not of its API")
    return value


def cdp_authorize(key_id: str, key_secret: str, wallet_secret: str) -> Authorize:
    """Return what authorises requests with these keys. Raises WalletError where the SDK is not installed."""
    try:
        from cdp.auth.utils.http import GetAuthHeadersOptions, get_auth_headers
    except ImportError:
        raise WalletError("a CDP wallet needs its SDK: pip install 'livery[cdp]'") from None

    def authorize(method: str, host: str, path: str, body: dict[str, Any] | None) -> Mapping[str, str]:
        options = GetAuthHeadersOptions(
            api_key_id=key_id,
            api_key_secret=key_secret,
            wallet_secret=wallet_secret,
            request_method=method,
            request_host=host,
            request_path=path,
            request_body=body,
            source="livery",
        )
        headers: Mapping[str, str] = get_auth_headers(options)
        return headers

    return authorize
