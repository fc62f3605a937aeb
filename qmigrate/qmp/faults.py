"""What goes wrong with a monitor, in words: one function an error of `core.errors`."""

from qemu.qmp import Message
from qemu.qmp.error import ProtocolError as QmpProtocolError

from qmigrate.core.errors import (
    CommandError,
    MonitorBusyError,
    MonitorError,
    MonitorGarbledError,
    MonitorLostError,
    MonitorSilentError,
    MonitorUnreachableError,
)

_QUOTED_BYTES = 200  # of what is not QMP, in the error


def unreachable(name: str, path: str, cause: OSError) -> MonitorUnreachableError:
    """Nothing listens at `path`, or it lets nobody in."""
    return MonitorUnreachableError(
        f"{name}: nothing answers at the monitor's socket {path}",
        last_words=cause.strerror or str(cause),
        next_step="look whether QEMU runs, and that its -qmp names this path",
    )


def busy(name: str, holder: str) -> MonitorBusyError:
    """Another client has it."""
    return MonitorBusyError(
        f"{name}: the monitor serves another client: {holder}",
        last_words="(no greeting)",
        next_step="let that client go, or give the guest a second -qmp monitor",
    )


def refused(name: str, command: str, words: str) -> CommandError:
    """QEMU, or what stands between, will not do `command`."""
    return CommandError(f"{name}: QEMU refused {command}: {words}", last_words=words)


def silent(
    name: str, command: str, deadline_s: float, *, pid: int | None, state: str
) -> MonitorSilentError:
    """No answer in time; what `command` asks for may still happen."""
    return MonitorSilentError(
        f"{name}: QEMU has not answered {command} within {deadline_s:g} s; "
        "it may still take effect",
        last_words=state,
        next_step=f"look at QEMU (pid {pid or 'unknown'}) and ask again",
    )


def ungreeted(name: str, deadline_s: float, *, pid: int | None, heard: bytes) -> MonitorSilentError:
    """It began to greet and went silent, or is stopped before that."""
    return MonitorSilentError(
        f"{name}: the monitor has not finished its greeting within {deadline_s:g} s",
        last_words=repr(heard) if heard else f"its process {pid} is stopped by a signal",
        next_step=f"look at QEMU (pid {pid or 'unknown'})",
    )


def deaf(name: str, command: str, cause: OSError) -> MonitorSilentError:
    """QEMU does not even read."""
    return MonitorSilentError(
        f"{name}: QEMU no longer reads its monitor; {command} was not sent",
        last_words=cause.strerror,
        next_step="look at QEMU's process and ask again",
    )


def garbled(name: str, doing: str, cause: BaseException) -> MonitorGarbledError:
    """What answers does not speak QMP; the bytes are quoted where `cause` has kept them."""
    while isinstance(inner := getattr(cause, "exc", None), Exception):
        cause = inner  # qemu.qmp wraps what it found while greeting
    raw = getattr(cause, "raw", None)  # what is not JSON
    if isinstance(message := getattr(cause, "msg", None), Message):  # what is, and no answer
        raw = bytes(message)
    words = repr(raw[:_QUOTED_BYTES]) if isinstance(raw, bytes) else str(cause)[:_QUOTED_BYTES]
    return MonitorGarbledError(
        f"{name}: what came during {doing} is not QMP",
        last_words=words,
        next_step="connect to a monitor made with -qmp or mode=control that nothing else uses",
    )


def is_garbled(cause: BaseException | None) -> bool:
    """Tell whether qemu.qmp's reader ended because of what it read, not because reading ended."""
    # ValueError: not UTF-8, or a line longer than the reader takes.
    return isinstance(cause, QmpProtocolError | ValueError | RecursionError)


def lost(name: str, command: str, cause: BaseException | None, *, sent: bool) -> MonitorError:
    """The link ended for `cause` (None: closed here) before `command` was answered."""
    fate = "whether it took effect is unknown" if sent else "it was not sent"
    if cause is not None and is_garbled(cause):
        return garbled(name, f"{command} ({fate})", cause)
    words: str | None = "end of file"
    what = "QEMU closed its monitor"
    if not isinstance(cause, EOFError | ConnectionError):
        what, words = "the monitor was closed here", str(cause) if cause else None
    return MonitorLostError(
        f"{name}: {what} during {command}; {fate}",
        last_words=words,
        next_step="look whether its process has ended, and ask again over a new connection",
    )


def closed_early(name: str, cause: BaseException | None) -> MonitorLostError:
    """The link ended within the greeting; QEMU may not have got as far as its guest."""
    return MonitorLostError(
        f"{name}: the monitor closed before it was ready",
        last_words=str(cause or "") or "end of file",
        next_step="look whether QEMU's process has ended",
    )
