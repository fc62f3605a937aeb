"""One side of a link as a process of its own, told what to do by JSON lines on its stdin.

``python -m tests.support.link_peer`` reads its `EndpointSpec` as the first line; `Remote` is how a
test talks to it. It can be put into a network namespace, stopped and killed.
"""

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio

from qmigrate.agent.protocol import codec, structure_untrusted
from qmigrate.core.errors import Problem, QmigrateError
from qmigrate.core.model import Address, Side
from qmigrate.core.secret import Identity
from qmigrate.transport import endpoint as endpoint_module
from qmigrate.transport.endpoint import Endpoint, EndpointSpec, open_endpoint
from qmigrate.transport.link import Link
from tests.support.link_pair import job_keys
from tests.support.netns import Namespace


async def _serve() -> None:
    lines = trio.lowlevel.FdStream(os.dup(0))
    buffer = bytearray()

    async def next_line() -> dict[str, Any] | None:
        while b"\n" not in buffer:
            chunk = await lines.receive_some(65536)
            if not chunk:
                return None
            buffer.extend(chunk)
        line, _, rest = bytes(buffer).partition(b"\n")
        buffer[:] = rest
        fields: dict[str, Any] = json.loads(line)
        return fields

    opened = await next_line()
    assert opened is not None
    spec = EndpointSpec(
        identity=structure_untrusted(opened["identity"], Identity),
        side=Side(opened["side"]),
        job="job-1",
        boot_id=f"boot of {opened['side']}",
        listen_addresses=tuple(opened["listen"]),
    )
    # Which address wins must not depend on how loaded the machine is.
    endpoint_module.STAGGER_S = opened["stagger_s"]
    async with trio.open_nursery() as nursery, open_endpoint(spec, nursery) as endpoint:
        _say({"addresses": [[a.host, a.port] for a in endpoint.addresses]})
        peer = _Peer(endpoint)
        while (order := await next_line()) is not None:
            try:
                _say({"value": await getattr(peer, order.pop("do"))(**order)})
            except QmigrateError as exc:
                _say({"problem": codec.unstructure(exc.problem)})
        nursery.cancel_scope.cancel()


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


class _Peer:
    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._link: Link | None = None

    @property
    def link(self) -> Link:
        assert self._link is not None
        return self._link

    async def set_peer(self, addresses: list[list[Any]]) -> None:
        self._endpoint.set_peer(tuple(Address(host, port) for host, port in addresses))

    async def connect(self, deadline_s: float) -> dict[str, Any]:
        self._link = await self._endpoint.connect(deadline_s)
        return {
            "dialled_by": self._link.dialled_by,
            "remote": self._link.remote.host,
            "note": self._link.note,
            "count": self._link.generation.count,
        }

    async def send(self, text: str) -> None:
        await self.link.send(text.encode())

    async def receive(self) -> str:
        return (await self.link.receive()).decode()

    async def ended(self) -> str:
        return await self.link.wait_ended()

    async def data(self, name: str, say: str) -> str:
        with await self._endpoint.data_socket(self.link, name, 5) as sock:
            sock.sendall(say.encode())
            return sock.recv(100).decode()


@dataclass
class Remote:
    """A running peer, seen from the test."""

    process: trio.Process
    addresses: list[list[Any]]
    _buffer: bytearray

    async def ask(self, do: str, **arguments: Any) -> Any:
        """Return what it answers; its errors are raised here as themselves."""
        assert self.process.stdin is not None
        await self.process.stdin.send_all(json.dumps({"do": do, **arguments}).encode() + b"\n")
        answer = await self.read()
        if "problem" in answer:
            raise QmigrateError.of(structure_untrusted(answer["problem"], Problem))
        return answer["value"]

    async def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while b"\n" not in self._buffer:
            chunk = await self.process.stdout.receive_some(65536)
            assert chunk, "the peer's process ended"
            self._buffer.extend(chunk)
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer[:] = rest
        fields: dict[str, Any] = json.loads(line)
        return fields


@asynccontextmanager
async def remote(place: Namespace, side: Side, listen: list[str]) -> AsyncIterator[Remote]:
    """Run a peer in the namespace `place`; it ends with the block."""
    keys = job_keys()
    identity = keys.source if side is Side.SOURCE else keys.destination
    argv = [sys.executable, "-m", "tests.support.link_peer"]
    async with trio.open_nursery() as nursery:
        start = partial(trio.run_process, stdin=-1, stdout=-1, check=False)
        process: trio.Process = await nursery.start(
            start, ["nsenter", f"--net={place.path}", *argv]
        )
        peer = Remote(process, [], bytearray())
        opened = {
            "identity": codec.unstructure(identity),
            "side": side,
            "listen": listen,
            "stagger_s": 5.0,
        }
        assert process.stdin is not None
        await process.stdin.send_all(json.dumps(opened).encode() + b"\n")
        peer.addresses = (await peer.read())["addresses"]
        try:
            yield peer
        finally:
            nursery.cancel_scope.cancel()  # run_process terminates it


if __name__ == "__main__":
    trio.run(_serve)
