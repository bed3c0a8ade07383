"""A machine for the programs of seccomp: what it answers to a call, on any architecture (kernel: filter.rst)."""

from __future__ import annotations

import operator
import struct
from collections.abc import Sequence

__all__ = ["ALLOW", "decide"]

ALLOW = 0x7FFF0000
_ERRNO = 0x00050000

# Opcodes of linux/bpf_common.h, as far as libseccomp emits them.
_LOAD, _RETURN, _AND, _JUMP = 0x20, 0x06, 0x54, 0x05
_TESTS = {0x15: operator.eq, 0x25: operator.gt, 0x35: operator.ge}


def decide(program: bytes, *, architecture: int, call: int, arguments: Sequence[int] = ()) -> int:
    """Give the error number that the call is refused with, or 0 where it is allowed."""
    padded = [*arguments, *(0 for _ in range(6 - len(arguments)))]
    data = struct.pack("<IIQ6Q", call, architecture, 0, *(number & 0xFFFFFFFFFFFFFFFF for number in padded))
    accumulator = position = 0
    while True:
        code, true, false, value = struct.unpack_from("<HBBI", program, position * 8)
        position += 1
        if code == _LOAD:
            accumulator = struct.unpack_from("<I", data, value)[0]
        elif code == _AND:
            accumulator &= value
        elif code == _JUMP:
            position += value
        elif code in _TESTS:
            position += true if _TESTS[code](accumulator, value) else false
        elif code == _RETURN and value == ALLOW:
            return 0
        elif code == _RETURN and value & 0xFFFF0000 == _ERRNO:
            return int(value & 0xFFFF)
        else:
            raise ValueError(f"unknown instruction {code:#x} {value:#x}")
