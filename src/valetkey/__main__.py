"""Where `valetkey` starts: `token` and a helper by the short way, everything else by the command line."""

from __future__ import annotations

import sys

__all__ = ["docker", "main"]


def main() -> int:
    """Run the command in sys.argv and give its exit status."""
    return _run(sys.argv[1:])


def docker() -> int:
    """Be `docker-credential-valetkey`, under which name docker calls its helper."""
    return _run(["helper", "docker", *sys.argv[1:]])


def _run(argv: list[str]) -> int:
    try:
        if argv and argv[0] in ("token", "helper"):
            # Called by other tools before each request: it must answer before click would even be imported.
            from valetkey.cli.fast import fast

            status = fast(argv)
            if status is not None:
                return status
        from valetkey.cli.frame import run

        return run(argv)
    except KeyboardInterrupt:  # during an import; everything later is caught in run()
        return 130


if __name__ == "__main__":
    sys.exit(main())
