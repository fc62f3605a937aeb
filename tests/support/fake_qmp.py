"""A QMP server that misbehaves on demand, for what a real QEMU does not do when asked."""

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

GREETING = {
    "QMP": {
        "version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""},
        "capabilities": ["oob"],
    }
}


class Line:
    """One client's connection, seen from the server: JSON lines and raw bytes."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._buffer = b""
        self._decoder = json.JSONDecoder()

    async def say(self, *messages: dict[str, Any]) -> None:
        for message in messages:
            await self.stream.send_all(json.dumps(message).encode() + b"\r\n")

    async def hear(self) -> dict[str, Any]:
        """The next request; qemu.qmp sends no newlines between them. EndOfChannel at the end."""
        while True:
            with contextlib.suppress(ValueError):
                text = self._buffer.decode().lstrip()
                message, end = self._decoder.raw_decode(text)
                self._buffer = text[end:].encode()
                return message  # type: ignore[no-any-return]
            data = await self.stream.receive_some()
            if not data:
                raise trio.EndOfChannel
            self._buffer += data

    async def greet(self) -> None:
        await self.say(GREETING)
        request = await self.hear()
        assert request["execute"] == "qmp_capabilities"
        await self.say({"return": {}})

    async def answer(self, value: Any = None) -> dict[str, Any]:
        """Answer the next request with `value`; return the request."""
        request = await self.hear()
        await self.say({"return": {} if value is None else value, "id": request["id"]})
        return request


Script = Callable[[Line], Awaitable[None]]


@contextlib.asynccontextmanager
async def fake_qmp(directory: Path, script: Script) -> AsyncIterator[str]:
    """Serve `script` to every client that connects to the path that is yielded."""
    path = str(directory / "fake.qmp")
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(path)
    sock.listen(8)

    async def serve(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.EndOfChannel, trio.BrokenResourceError):
            await script(Line(stream))
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, serve, [trio.SocketListener(sock)])
        try:
            yield path
        finally:
            nursery.cancel_scope.cancel()
