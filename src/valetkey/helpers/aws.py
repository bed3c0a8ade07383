"""AWS's credential_process: one JSON document on standard output, version 1.

https://docs.aws.amazon.com/sdkref/latest/guide/feature-process-credentials.html
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from valetkey.credential import expires_at_of, secrets_of
from valetkey.errors import NotForThisUse
from valetkey.helpers.lasting import lasting

if TYPE_CHECKING:
    from valetkey.access import Access
    from valetkey.broker import Broker

__all__ = ["answer"]

# The SDKs ask again up to 15 minutes before the end; less than this would end under a request.
_LEAST = timedelta(minutes=5)
# The names of the document, and those that declarations and sources use.
_NAMES = {
    "AccessKeyId": "access_key_id",
    "SecretAccessKey": "secret_access_key",
    "SessionToken": "session_token",
}


async def answer(broker: Broker, name: str) -> dict[str, object]:
    """Give the document; it holds the secrets. Raises: NotForThisUse; what `lasting` raises."""
    access = await lasting(broker, name, least=_LEAST)
    held = {} if access.credential is None else secrets_of(access.credential)
    keys = {shown: held[ours].reveal() for shown, ours in _NAMES.items() if held.get(ours)}
    if not {"AccessKeyId", "SecretAccessKey"} <= keys.keys():
        raise _other(access)
    document: dict[str, object] = {"Version": 1, **keys}
    ends = None if access.credential is None else expires_at_of(access.credential)
    if ends is not None:
        document["Expiration"] = ends.strftime("%Y-%m-%dT%H:%M:%SZ")
    return document


def _other(access: Access) -> NotForThisUse:
    return NotForThisUse(
        f"{access.ref} holds no access key id with a secret access key, which is what AWS's tools sign with",
        provider=access.ref.provider,
        hint="name a login that does; `valetkey list` shows yours",
    )
