"""What a fault point does: an agent strikes itself, its guardian, its QEMU or its link.

For tests only. It is the agent that strikes, so that the moment is exact and nothing but the job's
own is ever hit; it works alike in a lab and between real hosts.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from qmigrate.agent import twin
from qmigrate.core.errors import ProtocolError
from qmigrate.core.faults import FROZEN_S, Action
from qmigrate.core.job import JobNote
from qmigrate.core.model import Progress

if TYPE_CHECKING:
    from qmigrate.agent.job import JobAgent
    from qmigrate.agent.monitoring import Watched

GUARDIAN = b"guardian"
FAULT_PHASE = "fault"  # of the progress by which it is told

# Lets a stopped process go on, unless it has ended; argv: its pidfd, and for how long it stands.
_WAKER = """
import select, signal, sys
held = int(sys.argv[1])
if not select.select([held], [], [], float(sys.argv[2]))[0]:
    signal.pidfd_send_signal(held, signal.SIGCONT)
"""


async def strike(agent: "JobAgent", moment: str, action: str) -> None:
    """Do `action` now; what is killed is gone when this returns, what is stopped stands."""
    match action:
        case Action.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        case Action.STOP:
            os.kill(os.getpid(), signal.SIGSTOP)
        case Action.HANG:
            await trio.sleep_forever()
        case Action.STOP_10S:
            _freeze(os.pidfd_open(os.getpid()))
        case Action.KILL_QEMU:
            await _kill(os.dup(_qemu(agent)))
        case Action.STOP_QEMU:
            _freeze(os.dup(_qemu(agent)))
        case Action.KILL_GUARDIAN:
            await _kill(_guardian())
        case Action.KILL_BOTH:
            await _kill(_guardian())
            os.kill(os.getpid(), signal.SIGKILL)
        case Action.CUT_LINK:
            if agent.linking.direct is None:
                raise ProtocolError(f"there is no link to cut {moment}")
            agent.linking.direct.drop("a fault point has cut it")
        case Action.UNTIL_LEFT:
            await _until_left(agent, moment)
        case _:
            raise ProtocolError(f"no fault is called {action}")


def _qemu(agent: "JobAgent") -> int:
    """Return the pidfd of the guest's QEMU on this side."""
    watched: Watched | None = getattr(agent, "qemu", None)
    if watched is None or watched.pidfd < 0:
        raise ProtocolError("there is no QEMU to strike")
    return watched.pidfd


def _guardian() -> int:
    """Return a pidfd of our parent, if that is a guardian: it may have been killed before."""
    parent = os.getppid()
    pidfd = os.pidfd_open(parent)
    words = Path(f"/proc/{parent}/cmdline").read_bytes().split(b"\0")
    if parent != os.getppid() or GUARDIAN not in words:
        os.close(pidfd)
        raise ProtocolError("there is no guardian to strike")
    return pidfd


async def _kill(pidfd: int) -> None:
    try:
        await twin.kill(pidfd)
    finally:
        os.close(pidfd)


def _freeze(pidfd: int) -> None:
    """Stop a process for `FROZEN_S`; the child that wakes it is there before it stands still."""
    try:
        waker = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WAKER, str(pidfd), str(FROZEN_S)],
            stdin=subprocess.DEVNULL,
            pass_fds=[pidfd],
        )
        waker.returncode = 0  # else Popen warns that it still runs, which is what it is for
        signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
    finally:
        os.close(pidfd)


async def _until_left(agent: "JobAgent", moment: str) -> None:
    """Tell who watches the job that it stands here, and return when nobody does any more."""
    await agent.attended.wait()
    here = Progress(
        phase=FAULT_PHASE,
        percent=None,
        transferred_bytes=None,
        remaining_bytes=None,
        rate_bps=None,
        dirty_rate_bps=None,
        passes=None,
        elapsed_s=0.0,
        text=f"fault point {moment}",
    )
    agent.tell(JobNote(progress=here))
    await agent.deserted.wait()
