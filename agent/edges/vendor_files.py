"""A vendor's file over HTTP, as it comes. The bearer secret leaves for the vendor's own address and for no other."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from agent.core.errors import ForeignAddress, NoVendorSecret, VendorGarbled, VendorRefused, VendorUnreachable
from agent.core.model import Vendor
from outbound.http import BadAddress, HttpClient, NotServed, OutboundError, joined
from wire.vendor import VENDOR_ID_HEADER


async def download(
    http: HttpClient, vendor: Vendor, secret: str | None, url: str, *, timeout_s: float, bytes_max: int
) -> AsyncGenerator[bytes, None]:
    """
    Yield the file at `url`, which may be relative to the vendor's endpoint.

    Raises:
        ForeignAddress: it is on another scheme, host or port; nothing was sent.
        NoVendorSecret: nothing was sent.
        VendorRefused, VendorUnreachable, VendorGarbled: it did not come, not whole, or is above `bytes_max`.
    """
    if secret is None:
        raise NoVendorSecret(f"no bearer secret is configured for {vendor.vendor_id}")
    try:
        address = joined(vendor.endpoint, url)
    except BadAddress as error:
        raise ForeignAddress(str(error)) from None
    headers = {"authorization": f"Bearer {secret}", VENDOR_ID_HEADER: vendor.vendor_id}
    try:
        coming = http.download(address, headers=headers, timeout_s=timeout_s, body_bytes_max=bytes_max)
        async with aclosing(coming) as chunks:
            async for chunk in chunks:
                yield chunk
    except NotServed as error:
        if error.status >= 500:
            raise VendorUnreachable(str(error)) from None
        raise VendorRefused(error.status, str(error)) from None
    except OutboundError as error:
        raise (VendorUnreachable if error.retryable else VendorGarbled)(str(error)) from None
