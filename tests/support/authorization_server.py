"""An authorization server that misbehaves on order: see valetkey.testing.authorization_server."""

from valetkey.testing.authorization_server import AuthorizationServer

__all__ = ["AuthorizationServer"]
