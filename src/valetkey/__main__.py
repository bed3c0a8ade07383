"""Where `valetkey` starts: `token` by the short way, everything else by the command line."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command in sys.argv and give its exit status."""
    argv = sys.argv[1:]
    try:
        if argv and argv[0] == "token":
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
