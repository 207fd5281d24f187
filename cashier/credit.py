"""
Credit goes back to who paid: on demand, and by itself where the payer has no key to use it up with.

Rule 1: what leaves an account and the refund owed for it are stored in one transaction, before anything is sent.
Rule 2: what is owed is sent again until it is mined, by the rules of `refund`.
"""

import logging
import secrets

from cashier.core import credit
from cashier.core.credit import Key
from cashier.core.errors import CashierError
from cashier.core.model import Refund
from cashier.ports import CreditBook, Desk
from cashier.refund import send, sender_of

_LOG = logging.getLogger("livery.cashier")


async def withdraw(desk: Desk, book: CreditBook, wanted: Refund, least_atomic: int = 1) -> tuple[int, str]:
    """
    Send credit back to its payer; return how much, and the transaction.

    Args:
        wanted: a `core.credit.withdrawal`; asked twice by the same key, it is paid once.
        least_atomic: less is refused: each transfer costs its sender gas.

    Raises:
        CreditTooSmall, NoRefundKey: refused, the account is as it was.
        ChainUnavailable, RefundFailed: owed; the same call goes on where this one stopped, and so does `pay_owed`.
    """
    sender_of(desk, wanted.pay_to)
    refund = await book.withdraw(wanted, desk.now_s(), least_atomic)
    return refund.amount_atomic, await send(desk, refund)


async def pay_back(desk: Desk, book: CreditBook, pay_to: str, least_atomic: int, idle_s: int = 0) -> int:
    """
    Send back all that payers without a key have left, from `least_atomic` on, and what is owed of before.

    Return how many withdrawals stay owed: another call goes on with them.

    Args:
        idle_s: accounts that moved in the last so many seconds are left for now: a request may come again.
    """
    # Without its key nothing leaves an account either: it would be owed by nobody who can pay.
    if pay_to.lower() in desk.senders:
        for account in await book.keyless(least_atomic, desk.now_s() - idle_s):
            # What came in the meantime is for a request that is about to begin.
            key = f"credit_{secrets.token_hex(12)}"
            wanted = credit.withdrawal(key, account.name, pay_to, account.available)
            try:
                await book.withdraw(wanted, desk.now_s(), least_atomic)
            except CashierError as error:
                # Used up meanwhile by a request that came again.
                _LOG.info("no credit of %s goes back now: %s", account.name, error)
    open_count = 0
    for key in await book.owed():
        try:
            await send(desk, await desk.till.read_refund(key))
        except CashierError as error:
            _LOG.warning("the withdrawal %s is owed still: %s", key, error)
            open_count += 1
    return open_count


async def give_key(
    book: CreditBook, account: str, now_s: int, sha256: str | None = None
) -> tuple[Key | None, str | None]:
    """
    Return a new key of an account: what is kept of it, and the key itself, which is told once.

    Args:
        sha256: the digest of a key that its holder made; then nobody else ever has it, and None is told. None is kept
            where it opens another account.
    """
    secret = None if sha256 is not None else credit.KEY_PREFIX + secrets.token_urlsafe(32)
    digest = (sha256 or credit.digest_of(str(secret))).lower()
    await book.add_key(Key(id=f"key_{secrets.token_hex(6)}", sha256=digest, account=account, made_s=now_s))
    kept = await book.find_key(digest)
    return (kept if kept is not None and kept.account == account else None), secret
