"""`valetkey serve` as a process of its own: see valetkey.testing.gateway."""

from valetkey.testing.gateway import GatewayProcess, serving

__all__ = ["GatewayProcess", "serving"]
