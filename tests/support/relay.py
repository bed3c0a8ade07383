"""Bytes between two connections: see valetkey.testing.relay."""

from valetkey.testing.relay import relay

__all__ = ["relay"]
