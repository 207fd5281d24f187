"""
Sends one request with pympp's client, paying if asked, and prints {status, headers, body} as JSON.

Usage: PAYER_KEY=0x... python pay_mpp.py URL METHOD BODY HEADERS (as JSON). Nothing of Livery is imported here.
"""

import asyncio
import json
import os
import sys

from eth_account import Account
from mpp.client import Mpp
from mpp.methods.evm import BASE_SEPOLIA_USDC
from mpp.methods.evm.client import charge


async def main() -> None:
    url, method, body, headers = sys.argv[1:]
    account = Account.from_key(os.environ["PAYER_KEY"])
    async with Mpp(methods=[charge(currency=BASE_SEPOLIA_USDC, account=account, max_amount="1")]) as client:
        reply = await client.fetch(url, method=method, content=body, headers=json.loads(headers))
        print(json.dumps({"status": reply.status_code, "headers": dict(reply.headers), "body": reply.text}))


asyncio.run(main())
