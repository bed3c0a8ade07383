"""The filter as it is checked in decides what its table says, on both architectures."""

from __future__ import annotations

import json
import platform
import tempfile
from errno import ENOSYS, EPERM

import pyseccomp
import pytest

from tests.support.bpf import decide
from valetkey.sandboxes.seccomp import ARCHITECTURES, REFUSED, Refusal, compiled, profile

# AUDIT_ARCH_X86_64, _AARCH64, _I386, _ARM of linux/audit.h.
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
FOREIGN = {"i386": 0x40000003, "arm": 0x40000028}
X32 = 0x40000000

# What programs cannot do without, and a filter of denials must not hit by mistake.
NEEDED = "read write openat close execve exit_group futex mmap connect bind accept4 sendmsg wait4 kill prlimit64 statx"

# call, arguments, what it is answered
ARGUMENTS = [
    ("socket", (1, 1, 0), 0),
    ("socket", (2, 1, 6), 0),
    ("socket", (10, 2, 17), 0),
    ("socket", (16, 3, 0), 0),
    ("socket", (16, 3, 9), EPERM),
    ("socket", (17, 3, 0), EPERM),
    ("socket", (38, 5, 0), EPERM),
    ("socket", (40, 1, 0), EPERM),
    ("socket", (40 | 1 << 32, 1, 0), EPERM),
    ("socket", (0, 1, 0), EPERM),
    ("socket", (-1, 1, 0), EPERM),
    ("socketpair", (1, 1, 0), 0),
    ("socketpair", (30, 1, 0), EPERM),
    ("clone", (0x003D0F00,), 0),  # a thread, as C libraries make one
    ("clone", (0x01200011,), 0),  # a fork
    ("clone", (0x10000011,), EPERM),
    ("clone", (0x7C020011,), EPERM),
    ("clone", (0x00020011,), EPERM),
    ("clone3", (0, 88), ENOSYS),
    ("unshare", (0x200,), 0),
    ("unshare", (0x80,), EPERM),
    ("unshare", (0x40000000,), EPERM),
    ("ioctl", (0, 0x5401), 0),
    ("ioctl", (0, 0x5412), EPERM),
    ("ioctl", (0, 0x5412 | 7 << 32), EPERM),
    ("ioctl", (0, 0x541C), EPERM),
    ("ioctl", (0, 0x5423), EPERM),
]


def number(architecture: str, call: str) -> int:
    """Give the number of a call as libseccomp knows it; below 0 where the architecture has none."""
    return int(pyseccomp.resolve_syscall(getattr(pyseccomp.Arch, architecture.upper()), call))


def decided(architecture: str, call: str, *arguments: int) -> int:
    return decide(compiled(), architecture=AUDIT[architecture], call=number(architecture, call), arguments=arguments)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("refusal", [each for each in REFUSED if not each.conditions], ids=lambda each: each.call)
def test_each_call_of_the_table_is_refused(architecture: str, refusal: Refusal) -> None:
    if number(architecture, refusal.call) < 0:
        assert number("x86_64", refusal.call) >= 0
    else:
        assert decided(architecture, refusal.call) == refusal.error


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("call", "arguments", "error"), ARGUMENTS)
def test_a_call_is_judged_by_its_arguments(
    architecture: str, call: str, arguments: tuple[int, ...], error: int
) -> None:
    assert decided(architecture, call, *arguments) == error


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("call", NEEDED.split())
def test_what_programs_need_is_allowed(architecture: str, call: str) -> None:
    assert decided(architecture, call) == 0


@pytest.mark.parametrize("architecture", FOREIGN)
@pytest.mark.parametrize("call", [1, 3, 11, 102])
def test_a_32_bit_program_gets_nothing(architecture: str, call: int) -> None:
    assert decide(compiled(), architecture=FOREIGN[architecture], call=call) == EPERM


def test_the_x32_convention_gets_nothing() -> None:
    assert decide(compiled(), architecture=AUDIT["x86_64"], call=X32 | number("x86_64", "read")) == EPERM


# --- the profile of containers --------------------------------------------------------------------

OPERATORS = {
    "SCMP_CMP_EQ": pyseccomp.EQ,
    "SCMP_CMP_NE": pyseccomp.NE,
    "SCMP_CMP_GT": pyseccomp.GT,
    "SCMP_CMP_MASKED_EQ": pyseccomp.MASKED_EQ,
}


@pytest.fixture(scope="module")
def of_engine() -> bytes:
    """Give the filter that an engine makes of the profile: by the same library, on this machine."""
    found = json.loads(profile())
    assert found.pop("defaultAction") == "SCMP_ACT_ALLOW"
    made = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    made.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.ERRNO(EPERM))
    for entry in found.pop("syscalls"):
        assert entry["action"] == "SCMP_ACT_ERRNO"
        arguments = [
            pyseccomp.Arg(each["index"], OPERATORS[each["op"]], each["value"], each["valueTwo"])
            for each in entry["args"]
        ]
        for name in entry["names"]:
            made.add_rule(pyseccomp.ERRNO(entry["errnoRet"]), name, *arguments)
    assert found == {}
    with tempfile.TemporaryFile() as file:
        made.export_bpf(file)
        file.seek(0)
        return file.read()


CASES = [(each.call, (), each.error) for each in REFUSED if not each.conditions] + ARGUMENTS


@pytest.mark.parametrize(("call", "arguments", "error"), CASES + [(call, (), 0) for call in NEEDED.split()])
def test_the_profile_of_containers_decides_as_the_filter_does(
    of_engine: bytes, call: str, arguments: tuple[int, ...], error: int
) -> None:
    here = platform.machine()
    if number(here, call) >= 0:
        decided_here = decide(of_engine, architecture=AUDIT[here], call=number(here, call), arguments=arguments)
        assert decided_here == error == decided(here, call, *arguments)


def test_the_x32_convention_gets_nothing_in_a_container_either(of_engine: bytes) -> None:
    if platform.machine() == "x86_64":
        assert decide(of_engine, architecture=AUDIT["x86_64"], call=X32 | number("x86_64", "read")) == EPERM
