"""The door of a job: a unix socket by which later sessions reach the job's own agent.

Made by the session that starts the job and kept open by the guardian, so a connection made at any
time is accepted by whichever agent of the job is alive. It speaks `agent.protocol`, as stdio does;
a session that is asked about a job only relays.
"""

import os
import socket
from pathlib import Path
from typing import Any

import trio

from qmigrate.agent.protocol import (
    Answer,
    Call,
    Failure,
    FromAgent,
    Hello,
    LineSplitter,
    Note,
    decode_untrusted,
    encode,
    structure_untrusted,
)
from qmigrate.agent.requests import NOTES, REPLIES
from qmigrate.agent.server import READ_BYTES, AgentContext, Handler, Server, make_hello
from qmigrate.core.errors import AgentLostError, HostError, QmigrateError

DOOR_DEADLINE_S = 60.0  # for the job's agent to answer at its door: it may be starting QEMU


def make_door(path: Path) -> int:
    """Return the descriptor of a listening socket at `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(16)
        return os.dup(listener.fileno())


class Door:
    """The agent's side of the door: answers whoever knocks."""

    def __init__(self, descriptor: int, handlers: dict[type, Handler]) -> None:
        self._descriptor = descriptor
        self._handlers = handlers
        self._scope = trio.CancelScope()
        self._visitors = 0
        self._left = trio.Event()

    async def serve(self) -> None:
        """Answer for ever; one visitor's trouble is not another's."""
        listening = socket.socket(fileno=os.dup(self._descriptor))
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        with self._scope:
            await trio.serve_listeners(self._answer, [listener])

    def close(self) -> None:
        """Answer nobody any more."""
        self._scope.cancel()

    async def wait_alone(self) -> None:
        """Return when nobody is at the door: visitors go when they have had their answer."""
        while self._visitors:
            await self._left.wait()

    async def _answer(self, stream: trio.SocketStream) -> None:
        self._visitors += 1
        try:
            await Server(stream, stream, handlers=self._handlers).serve(make_hello("door"))
        except* (trio.BrokenResourceError, QmigrateError):
            pass
        finally:
            self._visitors -= 1
            self._left.set()
            self._left = trio.Event()


async def ask(path: Path, request: Any, ctx: AgentContext | None = None) -> Any:
    """Ask the agent behind the door; its notes go to `ctx`, its failure is raised.

    Raises `HostError` when nobody is there, `AgentLostError` when it went away meanwhile.
    """
    try:
        stream = await trio.open_unix_socket(str(path))
    except OSError as exc:
        raise HostError(f"the job's agent does not answer at {path}: {exc.strerror}") from exc
    kind = type(request)
    async with stream:
        splitter = LineSplitter()
        await stream.send_all(encode(Call(1, request)))
        while True:
            try:
                chunk = await stream.receive_some(READ_BYTES)
            except trio.BrokenResourceError:
                chunk = b""
            if not chunk:
                raise AgentLostError("the job's agent ended before it had answered")
            for line in splitter.feed_untrusted(chunk):
                message: FromAgent = decode_untrusted(line, FromAgent)
                match message:
                    case Hello():
                        pass
                    case Note(note=note):
                        if ctx is not None:
                            await ctx.note(structure_untrusted(note, NOTES[kind]))
                    case Answer(value=value):
                        return structure_untrusted(value, REPLIES[kind])
                    case Failure(problem=problem):
                        raise QmigrateError.of(problem)
