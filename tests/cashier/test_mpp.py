"""MPP at the paid door: what a credential must answer, and what is made of one that does not."""

import base64
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpp import BodyDigest, Challenge, Credential
from mpp.methods.evm._eip3009 import challenge_hash

from cashier.core.dialects import Ask, Reading
from cashier.core.reading import requirements_for
from cashier.edges.mpp_pympp import open_mpp
from chain.devchain import dev_account
from tests.cashier.speaking import altered, in_mpp
from tests.cashier.world import BODY, PRICE_ATOMIC, World, code, detail, request_with
from wire.money import BASE_SEPOLIA_USDC, Amount
from wire.x402 import HeaderError

SELLER, NONCE = "0x" + "22" * 20, "0x" + "ab" * 32
AMOUNT = Amount(PRICE_ATOMIC, BASE_SEPOLIA_USDC.address, BASE_SEPOLIA_USDC.network)
ASK = Ask(
    request=request_with(),
    asked=requirements_for(AMOUNT, SELLER, BASE_SEPOLIA_USDC),
    description="one job",
    now_s=1_000_000,
    salt="one",
)
MPP = open_mpp(BASE_SEPOLIA_USDC, "a key")
NOT_OURS = "the challenge is not one of this seller's for this request at this price"


def written(credential: object) -> str:
    return "Payment " + base64.urlsafe_b64encode(json.dumps(credential).encode()).decode()


def challenge_of(ask: Ask, mpp=MPP) -> Challenge:
    return Challenge.from_www_authenticate(mpp.challenge(ask, "payment_required").headers["www-authenticate"])


def test_a_challenge_binds_the_body_and_lives_as_long_as_a_cheque():
    challenge = challenge_of(ASK)

    assert challenge.digest == BodyDigest.compute(BODY)
    assert challenge.expires == "1970-01-12T13:51:40Z"
    assert challenge.verify("a key", "seller.example")
    assert challenge_of(ASK).id == challenge.id


@pytest.mark.parametrize(
    "other",
    [
        replace(ASK, salt="two"),
        replace(ASK, now_s=ASK.now_s + 1),
        replace(ASK, request=request_with(body=b"another")),
        replace(ASK, request=request_with(method="PUT")),
        replace(ASK, request=request_with(url="http://seller.example/other-job")),
        replace(ASK, request=request_with(url="http://seller.example/submit-job?twice")),
        replace(ASK, asked=ASK.asked.model_copy(update={"amount": "1"})),
    ],
    ids=["salt", "moment", "body", "method", "path", "query", "price"],
)
def test_another_question_is_another_challenge(other):
    assert challenge_of(other).id != challenge_of(ASK).id


def test_a_seller_without_a_name_has_its_network_as_realm():
    assert challenge_of(replace(ASK, request=request_with(url="/submit-job"))).realm == "eip155:84532"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"body": b"another"}, NOT_OURS),
        ({"method": "PUT"}, NOT_OURS),
        ({"url": "http://seller.example/other-job"}, NOT_OURS),
        ({"url": "http://seller.example/submit-job?twice"}, NOT_OURS),
        ({"price": PRICE_ATOMIC + 1}, f"authorization.value is {PRICE_ATOMIC}, asked was {PRICE_ATOMIC + 1}"),
        ({"later_s": 300}, "the challenge has expired"),
    ],
)
async def test_a_credential_for_something_else_is_refused_with_its_reason(world: World, change, said):
    headers = await in_mpp(world, world.cashier())
    world.clock_s += change.get("later_s", 0)
    price = replace(world.price, amount=replace(world.price.amount, atomic=change.get("price", PRICE_ATOMIC)))

    request = {name: change[name] for name in ("method", "url", "body") if name in change}

    answer = await world.pay(world.cashier(), None, headers=headers, price=price, **request)

    assert (answer.status, code(answer), detail(answer)) == (402, "payment_invalid", said)
    assert world.facilitator.calls == []
    assert await world.cashier().desk.till.unfinished() == []


async def test_the_last_second_of_a_challenge_is_good(world: World):
    headers = await in_mpp(world, world.cashier())
    world.clock_s += 299

    assert (await world.pay(world.cashier(), None, headers=headers)).status == 200


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (lambda echo: {"expires": "2999-01-01T00:00:00Z"}, NOT_OURS),
        (lambda echo: {"expires": None}, NOT_OURS),
        (lambda echo: {"realm": "elsewhere.example"}, NOT_OURS),
        (lambda echo: {"id": "ä" + echo.id}, NOT_OURS),
        (lambda echo: {"opaque": None}, NOT_OURS),
        (lambda echo: {"opaque": "e30"}, NOT_OURS),
        (lambda echo: {"opaque": "ä"}, NOT_OURS),
    ],
    ids=["expires", "no expiry", "realm", "id", "no opaque", "empty opaque", "opaque"],
)
async def test_a_challenge_that_we_did_not_mint_is_refused(world: World, changes, said):
    headers = await in_mpp(world, world.cashier())
    echo = Credential.from_authorization(headers["payment-authorization"]).challenge
    forged = altered(headers, challenge=replace(echo, **changes(echo)))

    answer = await world.pay(world.cashier(), None, headers=forged)

    assert (answer.status, code(answer), detail(answer)) == (402, "payment_invalid", said)
    assert world.facilitator.calls == []


async def test_a_cheque_under_another_nonce_is_no_answer_to_the_challenge(world: World):
    cheque = world.cheque().payload
    signed = {**cheque.authorization.document(), "signature": cheque.signature}
    headers = altered(await in_mpp(world, world.cashier()), payload=signed)

    answer = await world.pay(world.cashier(), None, headers=headers)

    assert (code(answer), detail(answer)) == ("payment_invalid", "authorization.nonce is not the challenge's")


def test_the_nonce_is_the_one_that_pympp_derives():
    assert isinstance(_answered(challenge_of(ASK)), Reading)
    assert _answered(challenge_of(ASK)).wrong is None


def _answered(challenge: Challenge) -> Reading:
    nonce = challenge_hash(challenge.id, challenge.realm)
    signed = {
        "type": "authorization",
        "from": "0x" + "11" * 20,
        "to": SELLER,
        "value": str(PRICE_ATOMIC),
        "validAfter": "0",
        "validBefore": "2000000",
        "nonce": nonce,
        "signature": "0x" + "cd" * 65,
    }
    return MPP.read(Credential(challenge=challenge.to_echo(), payload=signed).to_authorization(), ASK)


async def test_a_challenge_outlives_the_process_that_minted_it_where_the_seller_has_a_key(world: World):
    headers = await in_mpp(world, world.cashier())
    stranger = replace(world, seller=dev_account(7), opened=world.opened)

    assert code(await stranger.pay(stranger.cashier(), None, headers=headers, price=world.price)) == "payment_invalid"
    assert (await world.pay(world.cashier(), None, headers=headers)).status == 200


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Payment " + "A" * 20_000, "larger than"),
        ("Bearer abc", "Expected 'Payment'"),
        ("Payment ???", "Invalid base64 or JSON"),
        (written({"payload": {}}), "challenge"),
        ("Payment " + base64.b64encode(b"[" * 11_000).decode(), "the credential cannot be read"),
        (written({"challenge": {"id": "1", "method": "evm"}, "payload": []}), "payload.type: only authorization"),
        (written({"challenge": {"id": "1", "method": "evm"}, "payload": {"type": "hash"}}), "payload.type"),
        (written({"challenge": {"id": "1", "method": "evm"}, "payload": {"type": "authorization"}}), "signature"),
    ],
)
async def test_a_credential_that_cannot_be_read_is_malformed(world: World, text, said):
    answer = await world.pay(world.cashier(), None, headers={"payment-authorization": text})

    assert (answer.status, code(answer)) == (400, "payment_malformed")
    assert said in detail(answer)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
ECHO = st.fixed_dictionaries(
    {"id": JSON, "method": st.just("evm")},
    optional={name: JSON for name in ("realm", "intent", "request", "expires", "digest", "opaque", "header")},
)


@given(st.fixed_dictionaries({"challenge": ECHO | JSON, "payload": JSON}) | JSON)
def test_no_credential_does_worse_than_being_malformed(credential):
    payload = {"type": "authorization", "signature": "0x00", "from": SELLER, "to": SELLER, "value": "1"}
    bounds = {"validAfter": "0", "validBefore": "1", "nonce": NONCE}
    if isinstance(credential, dict) and credential.get("payload") is None:
        credential = {**credential, "payload": {**payload, **bounds}}
    try:
        assert MPP.read(written(credential), ASK).wrong is not None
    except HeaderError:
        pass
