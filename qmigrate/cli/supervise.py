"""Runs a command under trio, so that a signal is an event and never a KeyboardInterrupt."""

import logging
import os
import signal
from collections.abc import Coroutine
from typing import Any

import trio

from qmigrate.cli.context import INTERRUPTED, Interrupts

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(command: Coroutine[Any, Any, int], interrupts: Interrupts) -> int:
    """Run `command` to its end and return its exit code.

    A signal goes to the handler in `interrupts`, else it cancels the command, which then cleans up
    as after any cancel; a second one ends the process at once, as the signal's default does.
    """
    return trio.run(_supervise, command, interrupts)


async def _supervise(command: Coroutine[Any, Any, int], interrupts: Interrupts) -> int:
    # What is ignored stays so: nohup ignores SIGHUP, a shell's background job SIGINT.
    wanted = [s for s in _SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
    code: int | None = None
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as work:
            await nursery.start(_listen, wanted, interrupts, work)
            code = await command
        nursery.cancel_scope.cancel()
    if code is not None:
        return code
    return 128 + interrupts.last if interrupts.last else INTERRUPTED


async def _listen(
    wanted: list[signal.Signals],
    interrupts: Interrupts,
    work: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    with trio.open_signal_receiver(*wanted) as signals:
        task_status.started()
        async for signum in signals:
            if interrupts.deliver(signum):
                continue
            if interrupts.count > 1:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
            work.cancel()


def configure_logging(*, verbose: int, debug: bool) -> None:
    """Keep the libraries' logs off stderr unless asked: paramiko prints whole tracebacks there."""
    root = logging.getLogger()
    if not debug and verbose < 2:
        for name in ("paramiko", "asyncio", "qemu"):
            logging.getLogger(name).addHandler(logging.NullHandler())
            logging.getLogger(name).propagate = False
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(relativeCreated)6d ms %(name)s: %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if debug else logging.INFO)
