"""A keychain to talk to: gnome-keyring on a session bus of its own, unlocked, without a display."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import secretstorage
from jeepney.io.blocking import open_dbus_connection  # type: ignore[import-untyped]  # it ships no types
from jeepney.wrappers import DBusErrorResponse  # type: ignore[import-untyped]  # it ships no types

__all__ = ["gnome_keyring"]

# Without service files: the first question must not start a second daemon, which nobody would unlock.
_BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:dir={folder}</listen>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""


@contextmanager
def gnome_keyring(folder: Path) -> Iterator[str]:
    """Start both daemons with their files in `folder` and give the bus's address (Debian: gnome-keyring, dbus)."""
    folder.chmod(0o700)
    settings = folder / "bus.conf"
    settings.write_text(_BUS.format(folder=folder))
    bus = subprocess.Popen(
        ["dbus-daemon", f"--config-file={settings}", "--nofork", "--nopidfile", "--print-address=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert bus.stdout is not None
    address = bus.stdout.readline().strip()
    environ = os.environ | {
        "DBUS_SESSION_BUS_ADDRESS": address,
        "HOME": str(folder),
        "XDG_DATA_HOME": str(folder / "data"),
        "XDG_RUNTIME_DIR": str(folder),
    }
    daemon = subprocess.Popen(
        ["gnome-keyring-daemon", "--unlock", "--foreground", "--components=secrets"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environ,
    )
    assert daemon.stdin is not None
    try:
        daemon.stdin.write(b"the login password\n")
        daemon.stdin.close()
        for _ in range(200):
            if _is_unlocked(address):
                break
            time.sleep(0.05)  # a real daemon needs real time to start
        else:
            raise AssertionError("gnome-keyring-daemon did not start")
        yield address
    finally:
        for process in (daemon, bus):
            process.terminate()
            process.wait()
        bus.stdout.close()


def _is_unlocked(address: str) -> bool:
    connection = open_dbus_connection(address)
    try:
        collection = secretstorage.get_default_collection(connection)
        return not collection.is_locked()
    except (secretstorage.exceptions.SecretStorageException, DBusErrorResponse):
        return False
    finally:
        connection.close()
