"""What has to be true after a client has been served: who saw which secret."""

from __future__ import annotations

import re

from tests.support.ways import Access, Service, Way
from tests.support.workplace import Workplace
from valetkey.testing.local_server import Received

__all__ = ["assert_credentials_stay", "everything"]

# More than its first letters, which are in one of six packs of random bytes.
_VALET_KEY = re.compile("vk_[0-9a-z]+_[0-9a-f]{8}")


def everything(request: Received) -> str:
    """Give all that came of a request as one text."""
    return request.head + "\n" + request.body.decode(errors="replace")


def assert_credentials_stay(way: Way, service: Service, access: Access, workplace: Workplace) -> None:
    """Hold the provider to the real credential alone, and the client to what it was given."""
    requests = service.server.requests
    assert requests, "nothing reached the provider"
    assert service.door.opens(requests[-1]), requests[-1].head.split(":")[0]
    if way == "direct":
        return
    for request in requests:
        # Not one request without it, and none with what the client holds in its place.
        assert service.door.opens(request), f"{request.method} {request.path} came without the credential"
        assert not _VALET_KEY.search(everything(request))
        assert access.key not in everything(request)
    assert workplace.holds(service.door.key) == []
