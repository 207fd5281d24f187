"""Joining the agent's parts from its settings. The only file that knows them all."""

import secrets
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from agent.config import AgentSettings
from agent.core.errors import WalletError
from agent.core.policy import SpendingPolicy
from agent.edges.artifacts_folder import FolderArtifacts
from agent.edges.chain_evm import EvmChain
from agent.edges.file_tokens import SecretTokens
from agent.edges.planner_ab import AbPlanner
from agent.edges.planner_bandit import BanditPlanner
from agent.edges.planner_stub import StubPlanner
from agent.edges.revoker_evm import EvmRevoker
from agent.edges.vendor_http import HttpVendors
from agent.edges.wallet_cdp import Authorize, CdpWallet, cdp_authorize
from agent.edges.wallet_evm import (
    EvmWallet,
    account_from_key,
    account_from_keystore,
    create_keystore,
    write_secret,
)
from agent.edges.webhooks_http import HttpWebhooks, SignedCallbacks
from agent.ports import Agent, ArtifactStore, Limits, Planner, Revoker, Store, Wallet, Webhooks
from chain.rpc import Rpc
from chain.token import TokenReader
from outbound.http import HttpClient
from wire.money import ASSETS, to_atomic

if TYPE_CHECKING:
    from eth_account.signers.base import BaseAccount


def open_store(settings: AgentSettings) -> Store:
    """Return the store that DATABASE_URL names; nothing is connected yet. Raises ValueError for an unknown kind."""
    url = settings.database_url.get_secret_value()
    scheme = urlsplit(url).scheme
    if url.startswith("sqlite:///"):
        from agent.edges.store_sqlite import SqliteStore

        return SqliteStore(Path(url.removeprefix("sqlite:///")).expanduser())
    if scheme in ("mongodb", "mongodb+srv"):
        from agent.edges.store_mongo import MongoStore

        return MongoStore(url, urlsplit(url).path.strip("/") or settings.database_name)
    raise ValueError(f"DATABASE_URL begins with sqlite:///, mongodb:// or mongodb+srv://, not {scheme or 'nothing'}")


def open_artifacts(settings: AgentSettings) -> ArtifactStore:
    """Return the place that ARTIFACT_URL names; nothing is connected or made yet."""
    url = settings.artifact_url.get_secret_value()
    if url.startswith(("mongodb://", "mongodb+srv://")):
        from agent.edges.artifacts_gridfs import GridFsArtifacts

        return GridFsArtifacts(url, urlsplit(url).path.strip("/") or settings.database_name)
    return FolderArtifacts(Path(unquote(urlsplit(url).path) if url.startswith("file:///") else url).expanduser())


def open_wallet(settings: AgentSettings, http: HttpClient | None = None) -> Wallet | None:
    """
    Return the wallet, None where no key is configured. The key is read when it is first needed.

    A raw key wins over a CDP account, and that over a keystore, which may be there only because one was made once.
    """
    keys = (settings.cdp_api_key_id, settings.cdp_api_key_secret, settings.cdp_wallet_secret)
    if settings.private_key is None and all(keys):
        return CdpWallet(lambda: _cdp(settings), http or HttpClient(), settings.wallet_id or "")
    if settings.private_key is None and not settings.keystore_path.expanduser().exists():
        return None
    return EvmWallet(lambda: _account(settings))


def _cdp(settings: AgentSettings) -> Authorize:
    _refuse_unconfirmed(settings)
    if not settings.wallet_id:
        raise WalletError("a CDP wallet needs X402_WALLET_ID, the name or address of the account that pays")
    keys = (settings.cdp_api_key_id, settings.cdp_api_key_secret, settings.cdp_wallet_secret)
    return cdp_authorize(*(key.get_secret_value() for key in keys if key is not None))


def _refuse_unconfirmed(settings: AgentSettings) -> None:
    if settings.network != "base" or settings.mainnet_confirmed:
        return
    if not settings.mainnet_confirmed_path.expanduser().exists():
        raise WalletError(
            "mainnet was never confirmed: run `livery wallet show --network base` once,"
            " or set LIVERY_AGENT_MAINNET_CONFIRMED=true on a host"
        )


def _account(settings: AgentSettings) -> "BaseAccount":
    _refuse_unconfirmed(settings)
    if settings.private_key is not None:
        return account_from_key(settings.private_key.get_secret_value())
    return account_from_keystore(settings.keystore_path.expanduser(), keystore_password(settings))


def create_wallet(settings: AgentSettings) -> str:
    """
    Make a key in a new keystore and return its address; its password is the settings', or is made and kept in a file.

    Raises:
        WalletError: there is a keystore already; nothing is overwritten.
    """
    keystore = settings.keystore_path.expanduser()
    if keystore.exists():
        raise WalletError(f"there is a keystore at {keystore} already; it is never overwritten")
    # A password file without a keystore is what an interrupted creation leaves: it is used again.
    password = settings.keystore_password_path.expanduser()
    if settings.keystore_password is None and not password.exists():
        write_secret(password, secrets.token_urlsafe(32))
    return create_keystore(keystore, keystore_password(settings))


def keystore_password(settings: AgentSettings) -> str:
    """Return the keystore's password. Raises WalletError where there is none."""
    if settings.keystore_password is not None:
        return settings.keystore_password.get_secret_value()
    try:
        return settings.keystore_password_path.expanduser().read_text().strip()
    except OSError:
        raise WalletError(
            f"no password for the keystore: none is set and none is in {settings.keystore_password_path}"
        ) from None


def spending_policy(settings: AgentSettings) -> SpendingPolicy:
    asset = ASSETS[settings.network]
    return SpendingPolicy(
        asset=asset,
        payment_atomic_max=to_atomic(settings.payment_max, asset),
        run_atomic_max=to_atomic(settings.run_max, asset),
        vendor_day_atomic_max=to_atomic(settings.vendor_day_max, asset),
        wallet_day_atomic_max=to_atomic(settings.wallet_day_max, asset),
    )


def token_reader(settings: AgentSettings, http: HttpClient) -> TokenReader:
    return TokenReader(Rpc(settings.rpc_url, http), ASSETS[settings.network])


def open_revoker(settings: AgentSettings, wallet: Wallet | None, http: HttpClient) -> Revoker | None:
    """Return what cancels cheques on the chain, None where the wallet's key does not sign transactions here."""
    if not isinstance(wallet, EvmWallet):
        return None
    return EvmRevoker(wallet, Rpc(settings.rpc_url, http), ASSETS[settings.network])


def open_webhooks(settings: AgentSettings, http: HttpClient) -> Webhooks | None:
    """Return the receiver of webhooks, None where none is configured."""
    if settings.webhook_url is None:
        return None
    return HttpWebhooks(http, settings.webhook_url, settings.webhook_secret.get_secret_value())


def open_planner(settings: AgentSettings, http: HttpClient) -> Planner:
    """Return the planner of PLANNER_MODE; unset, `llm` where a key of a model is set, else `bandit`."""
    has_model = settings.llm_api_key is not None
    mode = settings.planner_mode or ("llm" if has_model else "bandit")
    if mode == "ab":
        return AbPlanner(BanditPlanner(), _llm_planner(settings, http) if has_model else StubPlanner())
    if mode == "llm":
        return _llm_planner(settings, http)
    return StubPlanner() if mode == "stub" else BanditPlanner()


def _llm_planner(settings: AgentSettings, http: HttpClient) -> Planner:
    from agent.edges.planner_llm import LlmPlanner
    from outbound.chat import ChatEndpoint

    key = settings.llm_api_key.get_secret_value() if settings.llm_api_key else ""
    endpoint = ChatEndpoint(
        http,
        base_url=settings.llm_base_url,
        model=settings.llm_model,
        api_key=key,
        # Asking is one step of a tick, and the tick has its lease.
        timeout_s=min(settings.llm_timeout_s, settings.lease_s / 3),
    )
    return LlmPlanner(endpoint)


def open_agent(settings: AgentSettings, http: HttpClient | None = None) -> Agent:
    """
    Return the agent of `settings`; nothing is connected, no key is read.

    Args:
        http: what calls vendors and the chain instead of the network.
    """
    http = http or HttpClient()
    wallet = open_wallet(settings, http)
    return Agent(
        store=open_store(settings),
        artifacts=open_artifacts(settings),
        vendors=HttpVendors(http, settings.vendor_secrets.get_secret_value()),
        chain=EvmChain(token_reader(settings, http)),
        planner=open_planner(settings, http),
        policy=spending_policy(settings),
        wallet=wallet,
        limits=Limits(
            lease_s=settings.lease_s,
            poll_interval_s=settings.poll_interval_s,
            attempts_max=settings.attempts_max,
            misses_max=settings.lost_polls,
            missed_s_max=settings.lost_after_s,
            # Well inside the lease: polling and paying have their time in the same tick.
            artifacts_s=max(1, settings.lease_s // 3),
            artifact_bytes_max=settings.artifact_bytes_max,
        ),
        webhooks=open_webhooks(settings, http),
        callbacks=SignedCallbacks(settings.vendor_secrets.get_secret_value()),
        callback_base_url=settings.callback_url,
        revoker=open_revoker(settings, wallet, http),
        file_tokens=SecretTokens(settings.vendor_secrets.get_secret_value()),
    )
