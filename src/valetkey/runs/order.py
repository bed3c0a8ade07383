"""The order for one run, as it goes from the command to the process that becomes the run's parent: as JSON."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from valetkey.sandbox import Limits, Mount, Spec

__all__ = ["Order"]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the parent of a run has to know. `home` is VALETKEY_HOME, `folder` the run's below it.

    `image` is what the sandbox is made of, "" where it takes none.
    """

    run: str
    folder: Path
    home: Path
    sandbox: str
    image: str = ""
    spec: Spec

    def as_json(self) -> str:
        """Write it. It holds placeholders and no credential."""
        return json.dumps(asdict(self), default=_plain)

    @classmethod
    def from_json(cls, text: str) -> Order:
        """Read what `as_json` wrote."""
        found = json.loads(text)
        return cls(
            run=found["run"],
            folder=Path(found["folder"]),
            home=Path(found["home"]),
            sandbox=found["sandbox"],
            image=found["image"],
            spec=_spec(found["spec"]),
        )


def _plain(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(type(value).__name__)


def _spec(found: dict[str, Any]) -> Spec:
    paths = {name: Path(found[name]) for name in ("workspace", "home", "gateway")}
    mounts = tuple(Mount(**(mount | {"source": Path(mount["source"])})) for mount in found["mounts"])
    files = {path: base64.b64decode(content) for path, content in found["files"].items()}
    rest = {"command": tuple(found["command"]), "mounts": mounts, "files": files, "limits": Limits(**found["limits"])}
    return Spec(**(found | paths | rest))
