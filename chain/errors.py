"""
What can go wrong with a chain, split by whose fault it is.

    ChainError               `code` is a key of `wire.problems.PROBLEMS`; `retryable`
    ├── RpcUnavailable       the world's, retryable: the node does not answer, or not with JSON-RPC
    ├── RpcRefused           the node answered with an error: `rpc_code`, and what it said
    ├── NonceTaken           another transaction of this account is finalised in its place; prepare anew
    ├── ReceiptLate          the world's, retryable: broadcast and not yet mined, outcome unknown
    ├── KeystoreError        the owner's: a key or its file cannot be read, or is there already
    └── DevChainError        ours: the local chain cannot be started (AnvilMissing) or has died
"""


class ChainError(Exception):
    """The root."""

    code = "chain_unavailable"
    retryable = False


class RpcUnavailable(ChainError):
    retryable = True


class RpcRefused(ChainError):
    def __init__(self, rpc_code: int, detail: str) -> None:
        super().__init__(f"{detail} ({rpc_code})")
        self.rpc_code = rpc_code
        self.detail = detail


class NonceTaken(ChainError):
    pass


class ReceiptLate(ChainError):
    retryable = True


class KeystoreError(ChainError):
    code = "no_signer"


class DevChainError(ChainError):
    pass


class AnvilMissing(DevChainError):
    pass
