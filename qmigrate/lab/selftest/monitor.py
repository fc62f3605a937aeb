"""A QMP monitor spoken to from the selftest's own process: nothing of the agent is in the way."""

import json
import socket
from pathlib import Path
from typing import Any

from qmigrate.core.errors import CommandError, MonitorLostError

ANSWER_DEADLINE_S = 30.0  # of a QEMU on a machine that many share


class Qmp:
    """One connection; events are kept, in order.

    Raises `MonitorLostError` when QEMU hangs up, `CommandError` for what it refuses, `OSError`
    where nothing listens.
    """

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(ANSWER_DEADLINE_S)
        try:
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise
        self._lines = self._socket.makefile("rb")
        self.events: list[dict[str, Any]] = []
        self._read()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: object) -> Any:
        """Return a command's answer."""
        request = {"execute": command, "arguments": arguments}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            message = self._read()
            if "error" in message:
                raise CommandError(f"{command}: {message['error']['desc']}")
            if "return" in message:
                return message["return"]
            self.events.append(message)

    def await_event(self, name: str) -> dict[str, Any]:
        """Return the next event of that name."""
        while True:
            message = self._read()
            self.events.append(message)
            if message.get("event") == name:
                return message

    def hmp(self, line: str) -> str:
        """Return what a line of the human monitor prints."""
        return str(self.execute("human-monitor-command", **{"command-line": line}))

    def _read(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise MonitorLostError("QEMU closed its monitor")
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """Let go of the monitor."""
        self._lines.close()
        self._socket.close()
