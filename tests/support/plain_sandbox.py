"""A sandbox that holds nothing back: see valetkey.testing.sandbox."""

from valetkey.testing.sandbox import FakeSandbox as PlainSandbox

__all__ = ["PlainSandbox"]
