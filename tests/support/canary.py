"""Where a secret shows: see valetkey.testing.canary."""

from valetkey.testing.canary import holding, holds

__all__ = ["holding", "holds"]
