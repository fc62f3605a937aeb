"""A small real QEMU with a QMP monitor at a path, ready when yielded and dead afterwards."""

import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import trio

READY_DEADLINE_S = 60.0  # two cores shared by many; alone it takes a tenth of a second
BARE = ("-machine", "q35", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none")


class BareQemu:
    def __init__(self, process: trio.Process, path: str) -> None:
        self.process = process
        self.pid = process.pid
        self.path = path


@contextlib.asynccontextmanager
async def bare_qemu(directory: Path, name: str, *args: str) -> AsyncIterator[BareQemu]:
    """Start ``qemu-system-x86_64`` with `BARE` and `args`.

    A second monitor, on a socket pair, tells when: its greeting comes early, from a thread of its
    own, but the first answer only from the main loop, when all devices are there.
    """
    path = str(directory / f"{name}.qmp")
    ours, theirs = socket.socketpair()
    fd = theirs.fileno()
    argv = ["qemu-system-x86_64", "-name", name, *BARE, *args]
    argv += ["-qmp", f"unix:{path},server=on,wait=off"]
    argv += ["-chardev", f"socket,id=ready,fd={fd}", "-mon", "chardev=ready,mode=control"]
    with ours:
        with theirs:
            process = await trio.lowlevel.open_process(argv, pass_fds=(fd,))
        try:
            ready = trio.socket.from_stdlib_socket(ours)
            with trio.fail_after(READY_DEADLINE_S):
                greeting = await ready.recv(4096)
                assert greeting.startswith(b'{"QMP"'), greeting
                await ready.send(b'{"execute": "qmp_capabilities"}')
                assert b"return" in await ready.recv(4096), "see QEMU's stderr"
            ready.close()
            yield BareQemu(process, path)
        finally:
            with trio.CancelScope(shield=True):
                process.kill()
                await process.wait()
