"""Wires on loopback that a test can let fall silent."""

from functools import partial

import trio

serve_loopback = partial(trio.serve_tcp, port=0, host="127.0.0.1")


async def freezable(nursery: trio.Nursery, port: int, frozen: trio.Event) -> int:
    """Return a port that leads to `port` until `frozen` is set; then nothing passes any more."""

    async def copy(source: trio.SocketStream, target: trio.SocketStream) -> None:
        async for chunk in source:
            if frozen.is_set():
                await trio.sleep_forever()
            await target.send_all(chunk)

    async def forward(stream: trio.SocketStream) -> None:
        onward = await trio.open_tcp_stream("127.0.0.1", port)
        async with onward, trio.open_nursery() as both:
            both.start_soon(copy, stream, onward)
            both.start_soon(copy, onward, stream)

    (wire,) = await nursery.start(serve_loopback, forward)
    leads: int = wire.socket.getsockname()[1]
    return leads
