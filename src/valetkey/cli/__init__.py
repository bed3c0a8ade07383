"""The command line: one file for each group of commands. Nothing is imported here: `token` must start at once."""

from __future__ import annotations

# Where each command is. A module is imported when its command is called, so that `ask` does not pay for `login`.
COMMANDS: dict[str, str] = {
    "login": "valetkey.cli.login:login",
    "logout": "valetkey.cli.accounts:logout",
    "list": "valetkey.cli.accounts:list_accounts",
    "status": "valetkey.cli.accounts:status",
    "token": "valetkey.cli.token:token",
    "env": "valetkey.cli.environment:env",
    "exec": "valetkey.cli.environment:exec_command",
    "helper": "valetkey.cli.helper:helper",
    "setup": "valetkey.cli.setup:setup",
    "ask": "valetkey.cli.ask:ask",
    "models": "valetkey.cli.models:models",
    "run": "valetkey.cli.run:run",
    "runs": "valetkey.cli.runs:runs",
    "mcp": "valetkey.cli.mcp:mcp",
    "providers": "valetkey.cli.providers:providers",
    "import": "valetkey.cli.imports:import_logins",
    "key": "valetkey.cli.key:key",
    "policy": "valetkey.cli.policy:policy",
    "trace": "valetkey.cli.trace:trace",
    "audit": "valetkey.cli.audit:audit",
    "serve": "valetkey.cli.serve:serve",
    "up": "valetkey.cli.serve:up",
    "down": "valetkey.cli.serve:down",
    "lock": "valetkey.cli.serve:lock",
    "unlock": "valetkey.cli.serve:unlock",
    "approvals": "valetkey.cli.approvals:approvals",
    "ca": "valetkey.cli.ca:ca",
    "store": "valetkey.cli.store:store",
    "config": "valetkey.cli.settings:config",
    "doctor": "valetkey.cli.doctor:doctor",
    "demo": "valetkey.cli.demo:demo",
    "completion": "valetkey.cli.settings:completion",
}

# How help shows them; "" is where the agents' own commands stand. Each command is in one group.
GROUPS: dict[str, tuple[str, ...]] = {
    "Run agents": ("run", "", "runs", "approvals", "mcp"),
    "Log in": ("login", "logout", "list", "status", "auth", "import", "providers"),
    "Use an account": ("ask", "models", "token", "env", "exec", "helper", "setup"),
    "Give tools a valet key": ("up", "down", "serve", "key", "policy", "trace", "ca", "lock", "unlock"),
    "See to it": ("doctor", "audit", "store", "config", "demo", "completion"),
}

# The same commands under the names that other tools taught.
OTHER_NAMES: dict[str, str] = {
    "grant": "valetkey.cli.login:login",
    "auth": "valetkey.cli.auth:auth",
}
