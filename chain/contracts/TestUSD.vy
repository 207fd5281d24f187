# pragma version ==0.4.3
# pragma evm-version cancun
"""
@title TestUSD
@license MIT
@notice A USDC for local chains: ERC-20 with EIP-3009, USDC's EIP-712 domain and FiatToken's revert strings,
        which x402 facilitators read to name the reason of a refusal.
        ANYONE MAY MINT. It must never be deployed where money is real.
@dev    Left out, because nothing here calls it: receiveWithAuthorization, the `bytes signature` overloads
        (smart wallets), EIP-2612 permit, pausing, blacklisting.
        No immutables and no constructor: the runtime code may be placed at any address and works there.
"""

name: public(constant(String[4])) = "USDC"
symbol: public(constant(String[4])) = "USDC"
version: public(constant(String[1])) = "2"
decimals: public(constant(uint8)) = 6

totalSupply: public(uint256)
balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])
# EIP-3009: whether the authorization with this nonce was used or cancelled.
authorizationState: public(HashMap[address, HashMap[bytes32, bool]])


event Transfer:
    sender: indexed(address)
    receiver: indexed(address)
    value: uint256


event Approval:
    owner: indexed(address)
    spender: indexed(address)
    value: uint256


event AuthorizationUsed:
    authorizer: indexed(address)
    nonce: indexed(bytes32)


event AuthorizationCanceled:
    authorizer: indexed(address)
    nonce: indexed(bytes32)


DOMAIN_TYPE: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
TRANSFER_TYPE: constant(bytes32) = keccak256(
    "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
)
CANCEL_TYPE: constant(bytes32) = keccak256("CancelAuthorization(address authorizer,bytes32 nonce)")

# Half the order of secp256k1: a larger `s` is the same signature written another way (EIP-2).
S_MAX: constant(uint256) = 57896044618658097711785492504343953926418782139537452191302581570759080747168


@external
def mint(receiver: address, amount: uint256):
    """
    @notice Makes money out of nothing, for anyone who asks.
    """
    self.totalSupply += amount
    self.balanceOf[receiver] += amount
    log Transfer(sender=empty(address), receiver=receiver, value=amount)


@external
def transfer(receiver: address, amount: uint256) -> bool:
    self._transfer(msg.sender, receiver, amount)
    return True


@external
def approve(spender: address, amount: uint256) -> bool:
    self.allowance[msg.sender][spender] = amount
    log Approval(owner=msg.sender, spender=spender, value=amount)
    return True


@external
def transferFrom(sender: address, receiver: address, amount: uint256) -> bool:
    allowed: uint256 = self.allowance[sender][msg.sender]
    assert allowed >= amount, "ERC20: transfer amount exceeds allowance"
    if allowed != max_value(uint256):
        self.allowance[sender][msg.sender] = allowed - amount
    self._transfer(sender, receiver, amount)
    return True


@external
def transferWithAuthorization(
    sender: address,
    receiver: address,
    amount: uint256,
    validAfter: uint256,
    validBefore: uint256,
    nonce: bytes32,
    v: uint8,
    r: bytes32,
    s: bytes32,
):
    """
    @notice Moves `amount` on the signed word of `sender`, once per nonce; anyone may bring that word.
    @dev    AuthorizationUsed comes directly before its Transfer, as in FiatToken: readers of logs rely on it.
    """
    assert block.timestamp > validAfter, "FiatTokenV2: authorization is not yet valid"
    assert block.timestamp < validBefore, "FiatTokenV2: authorization is expired"
    message: bytes32 = keccak256(
        abi_encode(TRANSFER_TYPE, sender, receiver, amount, validAfter, validBefore, nonce)
    )
    self._use_nonce(sender, nonce, message, v, r, s)
    log AuthorizationUsed(authorizer=sender, nonce=nonce)
    self._transfer(sender, receiver, amount)


@external
def cancelAuthorization(authorizer: address, nonce: bytes32, v: uint8, r: bytes32, s: bytes32):
    message: bytes32 = keccak256(abi_encode(CANCEL_TYPE, authorizer, nonce))
    self._use_nonce(authorizer, nonce, message, v, r, s)
    log AuthorizationCanceled(authorizer=authorizer, nonce=nonce)


@view
@external
def DOMAIN_SEPARATOR() -> bytes32:
    return self._domain_separator()


@view
@internal
def _domain_separator() -> bytes32:
    # Computed at each call, so that the same code is right at any address and on any chain.
    return keccak256(abi_encode(DOMAIN_TYPE, keccak256(name), keccak256(version), chain.id, self))


@internal
def _use_nonce(authorizer: address, nonce: bytes32, message: bytes32, v: uint8, r: bytes32, s: bytes32):
    assert not self.authorizationState[authorizer][nonce], "FiatTokenV2: authorization is used or canceled"
    assert convert(s, uint256) <= S_MAX, "ECRecover: invalid signature 's' value"
    digest: bytes32 = keccak256(concat(b"\x19\x01", self._domain_separator(), message))
    signer: address = ecrecover(digest, v, r, s)
    assert signer != empty(address) and signer == authorizer, "FiatTokenV2: invalid signature"
    self.authorizationState[authorizer][nonce] = True


@internal
def _transfer(sender: address, receiver: address, amount: uint256):
    assert receiver != empty(address), "ERC20: transfer to the zero address"
    assert self.balanceOf[sender] >= amount, "ERC20: transfer amount exceeds balance"
    self.balanceOf[sender] -= amount
    self.balanceOf[receiver] += amount
    log Transfer(sender=sender, receiver=receiver, value=amount)
