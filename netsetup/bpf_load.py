"""A program's octets made into a descriptor of a checked program: bpf(2), without libbpf.

Source: linux/bpf.h, `union bpf_attr` of BPF_PROG_LOAD.
"""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from struct import Struct

from netsetup.errors import HostError, RefusedError

_libc = ctypes.CDLL(None, use_errno=True)
_SYSCALL_NUMBER = {
    "x86_64": 321, "aarch64": 280, "ppc64le": 361, "s390x": 351, "riscv64": 280,
    "loongarch64": 280,
}  # fmt: skip
_BPF_PROG_LOAD = 5
_BPF_PROG_TYPE_SCHED_CLS = 3
_INSTRUCTION_BYTES = 8
# type, instructions, their address, the licence's; log level, size and address; kernel version,
# flags, name
_LOAD = Struct("=IIQQIIQII16s")


@contextmanager
def loaded(program: bytes, name: str) -> Iterator[int]:
    """Yield a descriptor of `program` as a tc classifier; tc keeps it once it is attached.

    Raises `HostError` on a machine whose call number is not known, `RefusedError`.
    """
    number = _SYSCALL_NUMBER.get(platform.machine())
    if number is None:
        raise HostError(f"bpf(2) has no number that is known here on {platform.machine()}")
    instructions = ctypes.create_string_buffer(program, len(program))
    licence = ctypes.create_string_buffer(b"Dual MIT/GPL")
    packed = _LOAD.pack(
        _BPF_PROG_TYPE_SCHED_CLS,
        len(program) // _INSTRUCTION_BYTES,
        ctypes.addressof(instructions),
        ctypes.addressof(licence),
        *(0, 0, 0),
        *(0, 0),
        "".join(c if c.isalnum() else "_" for c in name).encode()[:15],
    )
    attributes = ctypes.create_string_buffer(packed, len(packed))
    descriptor = _libc.syscall(number, _BPF_PROG_LOAD, attributes, len(packed))
    if descriptor < 0:
        raise RefusedError(
            "load a BPF program that drops frames at a tunnel's port",
            ctypes.get_errno(),
            next_step="it takes root, and a kernel that is not locked down to confidentiality",
        )
    try:
        yield descriptor
    finally:
        os.close(descriptor)
