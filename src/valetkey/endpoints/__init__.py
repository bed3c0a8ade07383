"""The endpoints there are: those of the table, and what packages bring under the entry point group of that name."""

from __future__ import annotations

import importlib

from valetkey.endpoint import Endpoint
from valetkey.errors import EndpointUnavailable
from valetkey.packages import any_bring

__all__ = ["BUILT_IN", "GROUP", "endpoint_for"]

GROUP = "valetkey.endpoints"
# Imported when it is asked for: few accounts have one.
BUILT_IN = {"aws": "valetkey.endpoints.aws:Aws"}


def endpoint_for(id: str) -> Endpoint:
    """Give the endpoint that a declaration names. Raises: EndpointUnavailable."""
    if id in BUILT_IN:
        module, _, name = BUILT_IN[id].partition(":")
        found: Endpoint = getattr(importlib.import_module(module), name)()
        return found
    if any_bring(GROUP):
        # Loading it takes longer than all the rest here.
        from importlib.metadata import entry_points

        for entry in entry_points(group=GROUP, name=id):
            try:
                made: Endpoint = entry.load()()
            except Exception as error:  # a plugin is anybody's code
                raise EndpointUnavailable(
                    f"the endpoint {id} could not be loaded: {type(error).__name__}",
                    hint="update or uninstall the package that ships it",
                ) from error
            return made
    raise EndpointUnavailable(
        f"there is no endpoint {id[:60]!r}", hint="install the package that ships it, or correct the declaration"
    )
