"""A tunnel's relay started, found, asked and ended; it outlives who starts it.

Blocks, in the thread of `netsetup.rtnl` or any other that is in the tunnel's network namespace.
"""

import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from errno import ECONNREFUSED, ECONNRESET
from pathlib import Path
from typing import Any

from netsetup.errors import HostError
from netsetup.relay import RelaySpec, arguments, control_address
from netsetup.wire import Fate

START_DEADLINE_S = 5.0  # it takes 0.1 s; below `tunnel_build.LOCK_DEADLINE_S` of who waits for us
END_DEADLINE_S = 2.0  # a process that is told to end and does nothing else does so at once
ANSWER_DEADLINE_S = 1.0  # it answers between two batches of frames
_CREDENTIALS = struct.Struct("=iII")


@dataclass(frozen=True, slots=True)
class Running:
    """A relay that answered."""

    pid: int
    arguments: tuple[str, ...]
    frames: Mapping[str, Mapping[Fate, int]]  # by "out" and "in"
    octets: Mapping[str, int]


def running(tunnel: str) -> Running | None:
    """Return what the tunnel's relay says; None if there is none, or a stranger has its name."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as wire:
        wire.settimeout(ANSWER_DEADLINE_S)
        try:
            wire.connect(control_address(tunnel))
            pid, uid, _ = _CREDENTIALS.unpack(
                wire.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
            if uid not in (0, os.geteuid()):
                return None
            said = b"".join(iter(lambda: wire.recv(1 << 16), b""))
        except TimeoutError as exc:
            raise HostError(
                f"the relay of tunnel {tunnel} does not answer",
                next_step="see whether it is stopped: `ps` shows it by the tunnel's id",
            ) from exc
        except OSError as exc:
            if exc.errno not in (ECONNREFUSED, ECONNRESET):  # none, or one at its end
                raise
            return None
    return _parsed(pid, said)


def _parsed(pid: int, said: bytes) -> Running:
    try:
        told: Any = json.loads(said)
        # Its child carries: credentials are those of the process that made the socket.
        return Running(
            int(told["pid"]),
            tuple(told["arguments"]),
            {
                way: {Fate[name]: number for name, number in told[way]["frames"].items()}
                for way in ("out", "in")
            },
            {way: int(told[way]["octets"]) for way in ("out", "in")},
        )
    except (ValueError, KeyError, TypeError) as exc:
        raise HostError(f"process {pid} answers as the relay of a tunnel, in other words") from exc


def ensure_relay(spec: RelaySpec) -> list[str]:
    """See to it that there is a relay for `spec`, and no other; return what was mended.

    Raises `HostError` with its last words if it does not start.
    """
    found = running(spec.tunnel)
    if found is not None and found.arguments == tuple(arguments(spec)):
        return []
    mended = []
    if found is not None:
        end_relay(spec.tunnel)
        mended.append("its relay carried something else")
    _start(spec)
    return mended


def relay_wanting(spec: RelaySpec) -> list[str]:
    """Say whether there is no relay for `spec`, or one that carries something else."""
    try:
        found = running(spec.tunnel)
    except HostError as exc:
        return [exc.what]
    if found is None:
        return ["its relay is not running"]
    differs = found.arguments != tuple(arguments(spec))
    return ["its relay carries something else"] if differs else []


def end_relay(tunnel: str) -> bool:
    """End the tunnel's relay if there is one; return whether there was.

    Raises `HostError` if it does not end within `END_DEADLINE_S`.
    """
    found = running(tunnel)
    if found is None:
        return False
    try:
        process = os.pidfd_open(found.pid)
    except ProcessLookupError:
        return True
    try:
        again = running(tunnel)  # the number is this process's still: it holds the socket
        if again is None or again.pid != found.pid:
            return True
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGTERM)
        if not select.select([process], [], [], END_DEADLINE_S)[0]:
            raise HostError(f"the relay of tunnel {tunnel}, process {found.pid}, does not end")
    finally:
        os.close(process)
    return True


def command_line(spec: RelaySpec, *, scope: bool) -> list[str]:
    """Return what starts it; with `scope` in a unit of its own, that of who starts it may end."""
    words = [sys.executable, "-m", "netsetup", "relay", *arguments(spec)]
    if not scope:
        return words
    unit = f"--unit=netsetup-relay-{spec.tunnel}"
    return ["systemd-run", "--scope", "--quiet", "--collect", unit, "--", *words]


def _start(spec: RelaySpec) -> None:
    scope = Path("/run/systemd/system").is_dir() and shutil.which("systemd-run") is not None
    here = str(Path(__file__).resolve().parents[1])
    environment = {"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": here}
    try:
        # It returns when its child carries frames, and closes these pipes.
        done = subprocess.run(
            command_line(spec, scope=scope),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
            timeout=START_DEADLINE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise HostError(f"the relay did not start within {START_DEADLINE_S:g} s") from exc
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        raise HostError(f"the relay did not start: {words[-1] if words else 'no word of it'}")
