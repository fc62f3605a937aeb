"""The client's side of the linux guest's workload (``vm-images/linux/workload.c``).

Blocking calls with a deadline each; they use the network namespace of whoever calls. From trio:
``await trio.to_thread.run_sync(query, address)``.
"""

import json
import re
import socket
import struct
import sys
from collections import deque
from dataclasses import asdict, dataclass, fields
from enum import StrEnum

from qmigrate.core.errors import ProtocolError, QmigrateError, UnreachableError, UsageError

ECHO_PORT = 7
CONTROL_PORT = 8
QUERY_LIMIT_S = 5.0  # an emulated guest that is being migrated may stand still for a second or two
VERIFY_LIMIT_S = 60.0  # 1 GiB at 50 MiB/s, which is slow for an emulated CPU
LINE_LIMIT = 4096  # bytes

# 0       8       12    13     14  16       24        32      40    48     56         64        100
# | probe | magic | mem | disk | 0 | before | written | pages | bad | head | uptime_ms | boot id |
REPLY = struct.Struct("<QIBBHQQQQQQ36s")
REPLY_MAGIC = 0x314C5751
PROBE = struct.Struct("<Q")
BOOT_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Verdict(StrEnum):
    """What the guest says of a thing that it keeps a chain through."""

    ABSENT = "absent"  # not asked for
    INTACT = "intact"
    BROKEN = "broken"  # once broken, for ever


@dataclass(frozen=True, slots=True)
class WorkloadState:
    """What the guest knows of itself."""

    boot_id: str
    uptime_ms: int  # by the guest's clock, which stands still while it is paused
    answered_before: int  # UDP probes
    memory: Verdict
    pages: int  # in the chain
    written: int  # pages, ever
    bad_pages: int
    chain: str  # 16 hex digits: the link that the next page will hold
    rate_mib: int  # MiB/s asked for
    disk: Verdict
    records: int  # written to the disk's log, ever
    bad_records: int

    @property
    def passes(self) -> int:
        """Complete walks over the memory."""
        return self.written // self.pages if self.pages else 0


def query(
    address: str, *, port: int = CONTROL_PORT, limit_s: float = QUERY_LIMIT_S
) -> WorkloadState:
    """Return what the guest knows without looking.

    This and the calls below raise `UnreachableError` when there is no answer within `limit_s`, and
    `ProtocolError` when what answers is not the workload.
    """
    return command(address, "state", port=port, limit_s=limit_s)


def verify(
    address: str, *, port: int = CONTROL_PORT, limit_s: float = VERIFY_LIMIT_S
) -> WorkloadState:
    """Let the guest walk its whole memory and its disk's log now; return what it found."""
    return command(address, "verify", port=port, limit_s=limit_s)


def poke(address: str, page: int, *, port: int = CONTROL_PORT) -> WorkloadState:
    """Flip one bit of a page behind the chain's back; `verify` must say BROKEN afterwards."""
    return command(address, f"poke {page}", port=port)


def set_rate(address: str, rate_mib: int, *, port: int = CONTROL_PORT) -> WorkloadState:
    """Let the guest dirty its pages at another rate, in MiB/s."""
    return command(address, f"rate {rate_mib}", port=port)


def command(
    address: str, line: str, *, port: int = CONTROL_PORT, limit_s: float = QUERY_LIMIT_S
) -> WorkloadState:
    """Send one command line to the guest's control port; return the state that it answers with."""
    try:
        with socket.create_connection((address, port), timeout=limit_s) as sock:
            sock.sendall(line.encode() + b"\n")
            with sock.makefile("rb") as answers:
                return parse_state_untrusted(answers.readline(LINE_LIMIT))
    except OSError as exc:
        raise UnreachableError(f"the guest's workload at {address} does not answer: {exc}") from exc


def parse_state_untrusted(line: bytes) -> WorkloadState:
    """Return the state in one line of JSON; raise `ProtocolError` for anything else."""
    try:
        values = json.loads(line)
    except ValueError as exc:
        raise ProtocolError(f"the guest answered no JSON: {line[:80]!r}") from exc
    if isinstance(values, dict) and isinstance(values.get("error"), str):
        raise UsageError(f"the guest refused the command: {values['error']}")
    names = {field.name: field.type for field in fields(WorkloadState)}
    if not isinstance(values, dict) or values.keys() != names.keys():
        raise ProtocolError(f"the guest answered no state: {line[:80]!r}")
    for name, kind in names.items():
        if type(values[name]) is not (int if kind is int else str):
            raise ProtocolError(f"the guest answered {name} = {values[name]!r:.80}")
        if kind is Verdict and values[name] not in set(Verdict):
            raise ProtocolError(f"the guest answered {name} = {values[name]!r:.80}")
    chains = {name: Verdict(values[name]) for name in ("memory", "disk")}
    return WorkloadState(**{**values, **chains})


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer to a numbered probe, and when it came."""

    at_s: float  # the observer's CLOCK_MONOTONIC
    probe: int
    answered_before: int
    memory: Verdict
    disk: Verdict
    written: int
    bad_pages: int
    uptime_ms: int
    boot_id: str


def parse_reply_untrusted(datagram: bytes, at_s: float) -> Reply:
    """Return the reply in a datagram; raise `ProtocolError` if the workload did not send it."""
    verdicts = tuple(Verdict)  # in the order of workload.h
    if len(datagram) < REPLY.size:
        raise ProtocolError(f"a reply of {len(datagram)} bytes, too short")
    probe, magic, memory, disk, _, answered, written, _, bad, _, uptime, boot = REPLY.unpack_from(
        datagram
    )
    boot_id = boot.decode("ascii", "replace")
    if magic != REPLY_MAGIC or max(memory, disk) >= len(verdicts) or not BOOT_ID.fullmatch(boot_id):
        raise ProtocolError("a reply that is not the workload's")
    return Reply(
        at_s, probe, answered, verdicts[memory], verdicts[disk], written, bad, uptime, boot_id
    )


@dataclass(frozen=True, slots=True)
class EchoReport:
    """What became of a TCP connection that was kept busy."""

    broken: str | None  # why it is of no use any more
    longest_stall_ms: float  # with bytes on their way and none coming back
    bytes: int  # that came back as they were sent


class EchoCheck:
    """Judges the bytes that an echo service sends back; no I/O, `now_s` is an argument."""

    def __init__(self) -> None:
        self._awaited: deque[bytes] = deque()
        self._progress_at_s = 0.0
        self._longest_stall_s = 0.0
        self._came_back = 0
        self.broken: str | None = None

    def sent(self, chunk: bytes, now_s: float) -> None:
        """Note that `chunk` left."""
        if not chunk:
            return
        if not self._awaited:
            self._progress_at_s = now_s
        self._awaited.append(chunk)

    def received(self, chunk: bytes, now_s: float) -> None:
        """Compare what came with what was sent; the first difference breaks the connection."""
        self._longest_stall_s = max(self._longest_stall_s, self._stall_s(now_s))
        self._progress_at_s = now_s
        while chunk and not self.broken:
            if not self._awaited:
                self.broken = "more came back than was sent"
                return
            expected = self._awaited.popleft()
            size = min(len(expected), len(chunk))
            if expected[:size] != chunk[:size]:
                self.broken = f"{expected[:size]!r:.40} came back as {chunk[:size]!r:.40}"
                return
            self._came_back += size
            chunk = chunk[size:]
            if expected[size:]:
                self._awaited.appendleft(expected[size:])

    def report(self, now_s: float, *, restart: bool = False) -> EchoReport:
        """Say what was seen so far, a stall that still lasts included; `restart` forgets stalls."""
        longest_s = max(self._longest_stall_s, self._stall_s(now_s))
        if restart:
            self._longest_stall_s = 0.0
            self._progress_at_s = now_s
        return EchoReport(self.broken, round(longest_s * 1e3, 2), self._came_back)

    def _stall_s(self, now_s: float) -> float:
        return now_s - self._progress_at_s if self._awaited else 0.0


class TcpEcho:
    """A connection to the guest's echo port: one numbered line after another, each checked.

    Never reconnects: that it lives on is what it shows. The owner waits for `sock` to become
    readable and calls `send_line` every 10 to 20 ms.
    """

    def __init__(self, address: str, *, port: int = ECHO_PORT) -> None:
        self.check = EchoCheck()
        self._line = 0
        self._unsent = b""
        try:
            self.sock = socket.create_connection((address, port), timeout=QUERY_LIMIT_S)
        except OSError as exc:
            raise UnreachableError(f"no TCP connection to {address}: {exc}") from exc
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)

    def send_line(self, now_s: float) -> None:
        """Send the next line, or the rest of the last; what the kernel has no room for waits."""
        if self.check.broken:
            return
        if not self._unsent:
            self._line += 1
            self._unsent = b"line %d\n" % self._line
        try:
            size = self.sock.send(self._unsent)
        except BlockingIOError:
            return
        except OSError as exc:
            self.check.broken = str(exc)
            return
        self.check.sent(self._unsent[:size], now_s)
        self._unsent = self._unsent[size:]

    def receive(self, now_s: float) -> None:
        """Read and check what came; call it when `sock` is readable."""
        try:
            chunk = self.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError as exc:
            self.check.broken = str(exc)
            return
        if chunk:
            self.check.received(chunk, now_s)
        elif not self.check.broken:
            self.check.broken = "the guest closed the connection"

    def close(self) -> None:
        """End the connection."""
        self.sock.close()


def main() -> int:
    """``python -m qmigrate.lab.workload ADDRESS COMMAND…``: print the guest's answer as JSON."""
    address, *words = sys.argv[1:]
    try:
        state = command(address, " ".join(words) or "state", limit_s=VERIFY_LIMIT_S)
    except QmigrateError as exc:
        sys.stderr.write(f"workload: {exc}\n")
        return exc.exit_code
    sys.stdout.write(json.dumps(asdict(state)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
