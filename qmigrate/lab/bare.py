"""The floor: the fewest QMP commands that move a guest right, and nothing else.

``python -m qmigrate.lab.bare --source SOCKET --destination SOCKET --uri URI [--before-switchover
COMMAND] -- COMMAND`` starts the destination by COMMAND, sets both sides up, migrates, waits for the
events, quits the source and prints QEMU's figures as JSON. The destination's QEMU starts the guest
by itself. There are no checks, no way back, nothing at a lost connection: a yardstick, no tool.

It stands alone on purpose, standard library only: its start is a part of what it costs.
"""

import argparse
import json
import shlex
import socket
import subprocess
import sys
from typing import Any

CAPABILITIES = ("events", "return-path")  # without return-path QEMU's "downtime" is false
QMP_DEADLINE_S = 60.0  # for any one answer or event
LISTENS_INTERVAL_S = 0.002  # between looks whether the new QEMU's monitor is there


class Monitor:
    """A QMP connection that keeps the events it meets."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(QMP_DEADLINE_S)
        self._socket.connect(path)
        self._stream = self._socket.makefile("rw")
        self._events: list[dict[str, Any]] = []
        self._read()  # the greeting
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: Any) -> Any:
        """Execute a command and return its reply."""
        json.dump({"execute": command, "arguments": arguments}, self._stream)
        self._stream.flush()
        while True:
            message = self._read()
            if "error" in message:
                raise SystemExit(f"bare: {command}: {message['error']['desc']}")
            if "return" in message:
                return message["return"]
            self._events.append(message)

    def wait(self, event: str, status: str | None = None) -> float:
        """Wait for an event, of this status if one is given; return QEMU's stamp in ms."""
        seen = 0
        while True:
            for message in self._events[seen:]:
                found = message.get("data", {}).get("status")
                if found == "failed":
                    raise SystemExit("bare: the migration failed")
                if message["event"] == event and status in (None, found):
                    stamp: dict[str, int] = message["timestamp"]
                    return stamp["seconds"] * 1e3 + stamp["microseconds"] / 1e3
            seen = len(self._events)
            self._events.append(self._read())

    def wait_until_closed(self) -> None:
        """Return when QEMU has closed the connection, that is, has exited."""
        while self._stream.readline():
            pass

    def _read(self) -> dict[str, Any]:
        line = self._stream.readline()
        if not line:
            raise SystemExit("bare: QEMU closed its monitor")
        message: dict[str, Any] = json.loads(line)
        return message


def start(command: list[str], path: str) -> Monitor:
    """Start a QEMU and connect to its monitor as soon as it listens."""
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while True:
        try:
            return Monitor(path)
        except OSError:
            pass
        try:
            code = process.wait(LISTENS_INTERVAL_S)
        except subprocess.TimeoutExpired:
            continue
        raise SystemExit(f"bare: the destination's QEMU exited with {code}")


def main() -> None:
    """Move the guest and print what it cost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--downtime-limit", type=int, default=20, help="ms; default: %(default)s")
    parser.add_argument("--source", required=True, help="QMP socket of the running guest")
    parser.add_argument("--destination", required=True, help="QMP socket that the new QEMU serves")
    parser.add_argument("--uri", required=True, help="where the new QEMU shall listen")
    parser.add_argument("--plug", help="command that plugs the new QEMU's tap")
    parser.add_argument("command", nargs="+", help="command that starts it, after --")
    words = parser.parse_args()

    source = Monitor(words.source)
    destination = start([*words.command, "-incoming", "defer"], words.destination)
    if words.plug:
        subprocess.run(shlex.split(words.plug), check=True)
    capabilities = [{"capability": name, "state": True} for name in CAPABILITIES]
    for monitor in (source, destination):
        monitor("migrate-set-capabilities", capabilities=capabilities)
    limits = {"downtime-limit": words.downtime_limit, "max-bandwidth": 0}
    source("migrate-set-parameters", **limits)
    destination("migrate-incoming", uri=words.uri)
    source("migrate", uri=words.uri)
    source.wait("MIGRATION", "completed")
    blackout_ms = destination.wait("RESUME") - source.wait("STOP")
    figures = source("query-migrate")
    source("quit")
    source.wait_until_closed()
    json.dump(
        {
            "qemu_total_ms": figures["total-time"],
            "qemu_downtime_ms": figures["downtime"],
            "blackout_ms": round(blackout_ms, 3),
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
