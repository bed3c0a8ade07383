"""The system calls that a sandboxed command is refused: the table, and the filter that was compiled from it.

`scripts/seccomp-filter` compiles the table with libseccomp to seccomp.txt, which is checked in: so a user's machine
needs no libseccomp, and a start no time for it. The filter decides for x86_64 and aarch64; a call by any other
convention (32-bit, x32) is refused whole, for it would need a table of its own. The engines of containers compile the
same table themselves (`profile`).
"""

from __future__ import annotations

import base64
import json
from errno import ENOSYS, EPERM
from pathlib import Path
from typing import Literal, NamedTuple

__all__ = ["ARCHITECTURES", "REFUSED", "Condition", "Refusal", "compiled", "profile"]

# As `uname -m` names them.
ARCHITECTURES = ("x86_64", "aarch64")


class Condition(NamedTuple):
    """What `argument` (from 0) has to be: as a 64-bit number, after `mask` where the test is of bits."""

    argument: int
    test: Literal["equal", "unequal", "above", "bits"]
    value: int
    mask: int = 0


class Refusal(NamedTuple):
    """Refuse `call` with `error` where all conditions hold."""

    call: str
    conditions: tuple[Condition, ...] = ()
    error: int = EPERM


# Reading and changing other processes; /proc/PID/mem stays, and reaches no further than the sandbox's own processes.
_PROCESSES = "ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp"
# The kernel's keyrings know no namespaces: a session's keys of the host would be in reach.
_KEYS = "add_key request_key keyctl"
# Large, young, or made for privileged use: what most escapes from containers went through.
_KERNEL = (
    "io_uring_setup io_uring_enter io_uring_register userfaultfd bpf perf_event_open fanotify_init lookup_dcookie"
    " init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct quotactl quotactl_fd"
    " syslog settimeofday clock_settime"
    " sethostname setdomainname iopl ioperm vhangup modify_ldt uselib ustat nfsservctl"
    " move_pages migrate_pages open_by_handle_at"
)
_MOUNTS = "mount umount2 pivot_root chroot open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr setns"

# CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET of linux/sched.h.
_NEW_TIME = 0x00000080
_NEW_OTHERS = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)

# TIOCSTI types into a terminal, TIOCLINUX pastes into it, TIOCSETD loads line disciplines. The kernel looks at the
# lower 32 bits of the request alone.
_TERMINAL = (0x5412, 0x541C, 0x5423)
_LOWER = 0xFFFFFFFF

# AF_UNIX, AF_INET, AF_INET6, AF_NETLINK of linux/socket.h: all but these are refused, AF_VSOCK (40) among them, which
# a network namespace does not hold back.
_UNIX, _INET, _INET6, _NETLINK = 1, 2, 10, 16
_FAMILIES = (_UNIX, _INET, _INET6, _NETLINK)


def _refused() -> tuple[Refusal, ...]:
    rules = [Refusal(call) for call in " ".join((_PROCESSES, _KEYS, _KERNEL, _MOUNTS)).split()]
    # Its flags lie in memory, where a filter cannot look; ENOSYS makes a C library take clone instead.
    rules.append(Refusal("clone3", error=ENOSYS))
    for call, flags in (("clone", _NEW_OTHERS), ("unshare", (_NEW_TIME, *_NEW_OTHERS))):
        rules += [Refusal(call, (Condition(0, "bits", flag, flag),)) for flag in flags]
    rules += [Refusal("ioctl", (Condition(1, "bits", request, _LOWER),)) for request in _TERMINAL]
    for call in ("socket", "socketpair"):
        others = [family for family in range(max(_FAMILIES)) if family not in _FAMILIES]
        rules += [Refusal(call, (Condition(0, "equal", family),)) for family in others]
        rules.append(Refusal(call, (Condition(0, "above", max(_FAMILIES)),)))
        # Of netlink only NETLINK_ROUTE, which C libraries ask for the addresses of the machine.
        rules.append(Refusal(call, (Condition(0, "equal", _NETLINK), Condition(2, "unequal", 0))))
    return tuple(rules)


REFUSED = _refused()


def compiled() -> bytes:
    """Give the filter as the kernel wants it: an array of `struct sock_filter`."""
    return base64.b64decode(Path(__file__).with_name("seccomp.txt").read_bytes())


_TESTS = {"equal": "SCMP_CMP_EQ", "unequal": "SCMP_CMP_NE", "above": "SCMP_CMP_GT", "bits": "SCMP_CMP_MASKED_EQ"}


def profile() -> bytes:
    """Give the table as docker and podman take it: JSON, close to the `seccomp` of the OCI's config-linux.

    Only the machine's own convention of calls is named; a call by any other one then ends the thread.
    """
    calls = [
        {
            "names": [refusal.call],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": refusal.error,
            "args": [_argument(condition) for condition in refusal.conditions],
        }
        for refusal in REFUSED
    ]
    return json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": calls}).encode()


def _argument(condition: Condition) -> dict[str, object]:
    made: dict[str, object] = {"index": condition.argument, "op": _TESTS[condition.test]}
    # Of bits, the mask comes first.
    first, second = (condition.mask, condition.value) if condition.test == "bits" else (condition.value, 0)
    return made | {"value": first, "valueTwo": second}
