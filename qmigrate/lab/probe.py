"""Watches a guest from outside: a numbered UDP probe every 2 ms, a TCP connection kept busy.

``python -m qmigrate.lab.probe ADDRESS`` runs on the lab's client host until its standard input
closes. Commands are lines on standard input, answers are JSON objects a line on standard output::

    >                       {"event": "ready", "boot_id": …}     at the first reply, TCP connected
    < mark NAME             {"event": "marked", "period": NAME}  a new period begins
    < report                {"event": "report", "period": NAME, "outage": {…}, "tcp": {…}, …}
    < end of file           the same report, and the end

`problem` is why this cannot be one unbroken run of one guest that is well; null if it can.
A report covers the period since the last mark; its noise floor is the longest gap of the period
before that, in which nothing should have happened. All stamps are of one clock, this host's
CLOCK_MONOTONIC: the guest's own clock stands still while it is paused.
"""

import argparse
import contextlib
import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from qmigrate.core.errors import ProtocolError, QmigrateError
from qmigrate.lab.outage import History
from qmigrate.lab.workload import ECHO_PORT, PROBE, TcpEcho, parse_reply_untrusted

INTERVAL_MS = 2.0  # a blackout of 20 ms is ten probes
LINE_INTERVAL_S = 0.02  # of the TCP connection
STRAGGLERS_S = 0.5  # a report waits so long for replies to what was sent before it was asked for
REALTIME_PRIORITY = 10  # where allowed: two QEMUs share the cores with us
SO_TIMESTAMPNS = 35  # include/uapi/asm-generic/socket.h; Python has no name for it
STAMP_AGE_LIMIT_S = 1.0  # a kernel stamp that is older means that the wall clock was set: not used
_TIMESPEC = struct.Struct("@qq")


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to watch, and how closely."""

    address: str
    port: int = ECHO_PORT
    interval_s: float = INTERVAL_MS / 1e3
    tcp: bool = True


class Observer:
    """Sends, receives, reports; owns both sockets and nothing else."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._history = History()
        self._next = 0
        self._echo: TcpEcho | None = None
        self._ready = False
        self._strangers = 0
        family = socket.AF_INET6 if ":" in target.address else socket.AF_INET
        self._sock = socket.socket(family, socket.SOCK_DGRAM)
        self._sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._sock.connect((target.address, target.port))
        self._sock.setblocking(False)

    def run(self, commands: int) -> None:
        """Watch until the descriptor `commands` reaches its end; then report a last time."""
        probe_due_s = line_due_s = time.monotonic()
        reports: list[float] = []  # when each was asked for
        unread = b""
        ended = False
        while True:
            now_s = time.monotonic()
            if reports and now_s >= reports[0] + STRAGGLERS_S:
                self._report(reports.pop(0), now_s)
                if ended and not reports:
                    return
            # After a delay of our own there is no burst: it would look like a fast guest.
            if not ended and now_s >= probe_due_s:
                self._send_probe(now_s)
                probe_due_s = max(probe_due_s + self._target.interval_s, now_s)
            if self._echo and now_s >= line_due_s:
                self._echo.send_line(now_s)
                line_due_s = max(line_due_s + LINE_INTERVAL_S, now_s)
            wake_s = [reports[0] + STRAGGLERS_S] if reports else []
            wake_s += [] if ended else [probe_due_s]
            wake_s += [line_due_s] if self._echo else []
            inputs: list[int] = [self._sock.fileno()] + ([] if ended else [commands])
            if self._echo and not self._echo.check.broken:
                inputs.append(self._echo.sock.fileno())
            # select, not epoll: Python rounds epoll's timeout up to whole milliseconds.
            readable, _, _ = select.select(inputs, [], [], max(0.0, min(wake_s) - now_s))
            if self._sock.fileno() in readable:
                self._receive()
            if self._echo and self._echo.sock.fileno() in readable:
                self._echo.receive(time.monotonic())
            if commands in readable:
                chunk = os.read(commands, 4096)
                *lines, unread = (unread + chunk).split(b"\n")
                for line in lines:
                    self._obey(line.decode(errors="replace").strip(), reports)
                if not chunk:
                    ended = True
                    reports.append(time.monotonic())

    def close(self) -> None:
        """End both conversations."""
        self._sock.close()
        if self._echo:
            self._echo.close()

    def _obey(self, line: str, reports: list[float]) -> None:
        word, _, name = line.partition(" ")
        if word == "mark" and name:
            self._history.mark(name)
            if self._echo:
                self._echo.check.report(time.monotonic(), restart=True)
            _say({"event": "marked", "period": name})
        elif word == "report":
            reports.append(time.monotonic())
        else:
            _say({"event": "error", "what": f"not a command: {line!r:.80}"})

    def _send_probe(self, now_s: float) -> None:
        self._history.sent(self._next, now_s)
        with contextlib.suppress(OSError):  # nobody there yet, or no more: the probe is lost
            self._sock.send(PROBE.pack(self._next))
        self._next += 1

    def _receive(self) -> None:
        while True:
            try:
                datagram, stamps, _, _ = self._sock.recvmsg(65536, 64)
            except OSError:
                return
            try:
                reply = parse_reply_untrusted(datagram, _arrival_s(stamps))
            except ProtocolError:
                self._strangers += 1
                continue
            if self._ready:
                self._history.replied(reply)
            else:
                # Until its address was resolved our kernel queued probes (166 of them), and sends
                # them while newer ones already pass: what comes of these proves nothing.
                self._history = History()
                self._ready = True
                if self._target.tcp:
                    self._echo = TcpEcho(self._target.address, port=self._target.port)
                _say({"event": "ready", "boot_id": reply.boot_id})

    def _report(self, until_s: float, now_s: float) -> None:
        outage, problem = self._history.report(until_s, interval_s=self._target.interval_s)
        last = self._history.last_reply()
        if self._strangers:
            problem = problem or f"{self._strangers} replies were not the workload's"
        _say(
            {
                "event": "report",
                "period": self._history.name,
                "outage": asdict(outage),
                "problem": problem or None,
                "tcp": asdict(self._echo.check.report(now_s)) if self._echo else None,
                "guest": asdict(last) if last else None,
            }
        )


def _arrival_s(stamps: Sequence[tuple[int, int, bytes]]) -> float:
    """Return when the kernel got the datagram: what we did meanwhile is no silence of the guest."""
    now_s = time.monotonic()
    for level, kind, value in stamps:
        if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
            seconds, nanoseconds = _TIMESPEC.unpack(value[: _TIMESPEC.size])
            age_s: float = time.clock_gettime(time.CLOCK_REALTIME) - (seconds + nanoseconds / 1e9)
            if 0.0 <= age_s < STAMP_AGE_LIMIT_S:
                return now_s - age_s
    return now_s


def _say(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m qmigrate.lab.probe", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("address", help="of the guest, IPv4 or IPv6")
    parser.add_argument("--port", type=int, default=ECHO_PORT, help="of its echo (%(default)s)")
    parser.add_argument(
        "--interval-ms", type=float, default=INTERVAL_MS, help="between probes (%(default)s)"
    )
    parser.add_argument("--no-tcp", action="store_true", help="UDP probes only")
    options = parser.parse_args()
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(REALTIME_PRIORITY))
    observer = Observer(
        Target(options.address, options.port, options.interval_ms / 1e3, not options.no_tcp)
    )
    try:
        observer.run(sys.stdin.fileno())
    except QmigrateError as exc:
        print(f"probe: {exc}", file=sys.stderr)
        return exc.exit_code
    finally:
        observer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
