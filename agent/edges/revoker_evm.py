"""Cancelling a cheque on an EVM chain: the payer signs EIP-3009's CancelAuthorization, sends it and pays the fee."""

from agent.core.errors import CannotRevoke, ChainUnavailable
from agent.edges.wallet_evm import EvmWallet
from chain.cancelling import draft_cancellation, send_raw
from chain.errors import ChainError, RpcRefused
from chain.rpc import Rpc
from wire.eip712 import cancellation_data
from wire.money import Asset


class EvmRevoker:
    """Cancels cheques over `asset` that the key of `wallet` signed."""

    def __init__(self, wallet: EvmWallet, rpc: Rpc, asset: Asset) -> None:
        self._wallet = wallet
        self._rpc = rpc
        self._asset = asset

    async def revoke(self, payer: str, nonce: str) -> str:
        """See `Revoker.revoke`."""
        own = await self._wallet.address()
        if own.lower() != payer.lower():
            raise CannotRevoke(f"the cheque is of {payer}, and the key here is that of {own}")
        signature = await self._wallet.sign(cancellation_data(own, nonce, self._asset))
        try:
            fields = await draft_cancellation(self._rpc, self._asset, own, nonce, signature)
            return await send_raw(self._rpc, await self._wallet.sign_transaction(fields))
        except RpcRefused as refusal:
            # Settled meanwhile, or no coin for the fee: the node's own words say which.
            raise CannotRevoke(f"the chain refuses: {refusal.detail}") from refusal
        except ChainError as error:
            raise ChainUnavailable(str(error)) from error
