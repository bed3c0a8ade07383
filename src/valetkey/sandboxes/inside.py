"""What is inside of every sandbox, however it is made: variables, files of /etc, memory for files, the forwarder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from valetkey.sandbox import AGENT_HOME

__all__ = ["ENVIRONMENT", "FORWARDER", "START_SECONDS", "TMPFS_BYTES", "forwarder", "made_etc"]

# A sandbox that is not up by then has failed.
START_SECONDS = 30
FORWARDER = "/run/forward.py"
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
    "HOME": AGENT_HOME,
    "USER": "agent",
    "LANG": "C.UTF-8",
}
# Memory, all of it: nothing of them is on a disk.
TMPFS_BYTES = {"/tmp": 1 << 30, "/var": 256 << 20, "/dev/shm": 256 << 20, "/run": 16 << 20}  # noqa: S108  # inside


def forwarder() -> bytes:
    """Give the program that runs inside."""
    return Path(__file__).with_name("forward.py").read_bytes()


def made_etc(*, uid: int, gid: int) -> Mapping[str, bytes]:
    """Give the files of /etc that say who one is and that there is no network, by their names."""
    # Of two entries of one id the first counts: where the agent is 0 inside, it is called agent too.
    passwd = f"agent:x:{uid}:{gid}:agent:{AGENT_HOME}:/bin/sh\nroot:x:0:0:root:/root:/usr/sbin/nologin\n"
    group = f"agent:x:{gid}:\nroot:x:0:\n"
    return {
        "passwd": passwd.encode() + b"nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
        "group": group.encode() + b"nogroup:x:65534:\n",
        "hosts": b"127.0.0.1 localhost sandbox\n::1 localhost\n",
        "nsswitch.conf": b"passwd: files\ngroup: files\nhosts: files\n",
        "resolv.conf": b"",
        "hostname": b"sandbox\n",
    }
