"""A server on loopback: see valetkey.testing.local_server."""

from valetkey.testing.local_server import Answer, Drop, Hang, LocalServer, Received, Relay, Reply, Stream

__all__ = ["Answer", "Drop", "Hang", "LocalServer", "Received", "Relay", "Reply", "Stream"]
