"""Joins admission from the worker's settings."""

from pathlib import Path

from gpu_worker.config import WorkerSettings
from gpu_worker.core.errors import OwnersFault
from gpu_worker.inference.text.admission import Admission, Passes, PrepaidKeys, UsedPasses
from gpu_worker.model_config import words


def open_admission(settings: WorkerSettings, keys: PrepaidKeys | None = None) -> Admission:
    """
    Return who may ask this worker for text; nothing is opened and nobody is called yet.

    Raises:
        OwnersFault: the keys of session passes cannot be read, or could be changed on the way here.
    """
    passes, used = (None, None) if settings.pass_keys is None else _passes(settings, settings.pass_keys)
    return Admission(
        secret=settings.api_secret.get_secret_value() if settings.api_secret else "",
        passes=passes,
        used=used,
        keys=keys,
        is_priced=settings.is_priced,
        free_per_hour=settings.free_requests_per_hour or 0,
        priority=frozenset(each.lower() for each in words(settings.priority_users)),
    )


def _passes(settings: WorkerSettings, place: str) -> tuple[Passes, UsedPasses]:
    from gpu_worker.edges.passes.jwks import KeyRing, is_url, key_source, read_keys
    from gpu_worker.edges.passes.session_passes_jwt import JwtSessionPasses
    from gpu_worker.edges.passes.used_jti_sqlite import SqliteUsedPasses
    from outbound.http import HttpClient

    if not is_url(place):
        # What the owner has written is looked at now; a registry may be up later than we are.
        try:
            keys = read_keys(Path(place).expanduser().read_bytes())
        except OSError as error:
            raise OwnersFault(f"PASS_KEYS {place} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise OwnersFault(f"PASS_KEYS {place}: {error}") from None
        if not keys:
            raise OwnersFault(f"PASS_KEYS {place} has no Ed25519 key, and no RSA key of 2048 bits at least")
    ring = KeyRing(key_source(place, HttpClient()))
    agent_id = settings.agent_id or settings.vendor_id
    passes = JwtSessionPasses(ring, issuer=settings.pass_issuer, agent_id=agent_id)
    return passes, SqliteUsedPasses(settings.database)
