"""Tokens of the files door, made of the secret that is shared with the vendor: nothing new is kept anywhere."""

import hashlib
import hmac

from wire.decimal_json import dumps
from wire.vendor import secret_for, secrets_for


class SecretTokens:
    """A job's token is an HMAC under its vendor's bearer secret (`wire.vendor.secret_for`)."""

    def __init__(self, secrets: str) -> None:
        self._secrets = secrets

    def token(self, vendor_id: str, run_id: str, job_id: str) -> str | None:
        """See `FileTokens.token`."""
        secret = secret_for(vendor_id, self._secrets)
        return None if secret is None else _signed(secret, run_id, job_id)

    def is_token(self, vendor_id: str, run_id: str, job_id: str, token: str) -> bool:
        """Return whether `token` was made under any of the vendor's secrets: one may be in the place of another."""
        made = [_signed(secret, run_id, job_id) for secret in secrets_for(vendor_id, self._secrets)]
        return any([hmac.compare_digest(token.encode(), one.encode()) for one in made])


def _signed(secret: str, run_id: str, job_id: str) -> str:
    # A list in JSON: no run and job are written as another run and job are.
    return hmac.new(secret.encode(), dumps(["livery files", run_id, job_id]), hashlib.sha256).hexdigest()
