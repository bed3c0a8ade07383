"""`auth`: login, list, logout, status and switch under the names that gh taught."""

from __future__ import annotations

from valetkey.cli.frame import Commands

__all__ = ["auth"]

auth = Commands(
    "auth",
    help="Log in, list, log out: the same commands as without `auth`.",
    short_help="Switch an account; login, list, logout under other names.",
    table={
        "login": "valetkey.cli.login:login",
        "list": "valetkey.cli.accounts:list_accounts",
        "logout": "valetkey.cli.accounts:logout",
        "status": "valetkey.cli.accounts:status",
        "token": "valetkey.cli.token:token",
        "switch": "valetkey.cli.accounts:switch",
    },
    other_names={},
)
