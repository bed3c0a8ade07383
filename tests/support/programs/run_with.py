"""`valetkey run` with what none of its options says: an agent's name with another command, a mount at another path.

Its argument is JSON: `command`, `grants`, `workspace`, and where wanted `agent`, `mounts` (from source to target),
`variables`.
"""

import json
import sys
from pathlib import Path

from valetkey.cli.run import begin
from valetkey.cli.state import State
from valetkey.errors import ValetkeyError
from valetkey.runs.launch import Wanted
from valetkey.sandbox import Mount

asked = json.loads(sys.argv[1])
state = State()
try:
    begin(
        state,
        Wanted(
            command=tuple(asked["command"]),
            grants=tuple(state.broker.resolve(name) for name in asked["grants"]),
            workspace=Path(asked["workspace"]),
            agent=asked.get("agent"),
            mounts=tuple(Mount(source=Path(at), target=to) for at, to in asked.get("mounts", {}).items()),
            variables=asked.get("variables", {}),
        ),
    )
except ValetkeyError as error:
    sys.stderr.write(f"{error.message}\n{error.hint}\n")
    sys.exit(error.exit_status)
