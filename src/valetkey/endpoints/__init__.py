"""The endpoints there are: those of the table, and what packages bring under the entry point group of that name."""

from __future__ import annotations

from valetkey.endpoint import Endpoint
from valetkey.errors import EndpointUnavailable
from valetkey.packages import Group

__all__ = ["BROUGHT", "BUILT_IN", "endpoint_for"]

BROUGHT = Group(name="valetkey.endpoints", what="endpoint", broken=EndpointUnavailable)
# Imported when it is asked for: few accounts have one.
BUILT_IN = {"aws": "valetkey.endpoints.aws:Aws"}


def endpoint_for(id: str) -> Endpoint:
    """Give the endpoint that a declaration names. Raises: EndpointUnavailable."""
    found: Endpoint | None = BROUGHT.made(id, BUILT_IN)
    if found is not None:
        return found
    raise EndpointUnavailable(
        f"there is no endpoint {id[:60]!r}", hint="install the package that ships it, or correct the declaration"
    )
