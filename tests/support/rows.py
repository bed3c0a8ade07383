"""Rows of the gateway's trace, for tests."""

from __future__ import annotations

from typing import Any

from valetkey.gateway.row import Row
from valetkey.testing.clock import START

__all__ = ["row"]


def row(**given: Any) -> Row:
    """Give a request that went well, with what is said of it in place of the usual."""
    usual = Row(
        at=START.timestamp(),
        client="k1",
        account="acme@default",
        method="POST",
        host="api.acme.example",
        path="/v1/chat/completions",
        status=200,
        outcome="ok",
        way="base-url",
        bytes_in=100,
        bytes_out=488,
        first_byte_ms=1.25,
        duration_ms=2.5,
        model="small",
        input_tokens=11,
        output_tokens=22,
    )
    return usual._replace(**given)
