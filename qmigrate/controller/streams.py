"""A command's stdin and stdout as a trio stream, wherever it runs; its stderr kept for errors."""

from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    import paramiko

READ_BYTES = 64 * 1024
TAIL_BYTES = 8 * 1024  # of stderr: a traceback's end
WINDOW_RETRY_S = 0.002  # paramiko has no event for "the peer takes more again"
SMALL_BYTES = 16 * 1024  # fits a socket's buffer; larger sends may block and go to a thread
LAST_WORDS_S = 1  # from a command's end to that of its stderr
END_DEADLINE_S = 5  # a process whose stdin has ended ends by itself, or is killed


class Tail:
    """The last bytes of a stream, for error messages."""

    def __init__(self, limit: int = TAIL_BYTES) -> None:
        self._limit = limit
        self._kept = bytearray()

    def add(self, chunk: bytes | bytearray) -> None:
        """Take `chunk`, forget what is too old."""
        self._kept += chunk
        del self._kept[: -self._limit]

    def text(self) -> str:
        """What is kept, stripped; whatever its encoding."""
        return self._kept.decode(errors="replace").strip()


class CommandStream(trio.abc.HalfCloseableStream):
    """A running command. Closing it ends the command."""

    @abstractmethod
    def last_words(self) -> str:
        """The end of its stderr so far, read along with its stdout."""

    @abstractmethod
    async def wait(self) -> int | None:
        """Wait for its end; return the exit status, None if nobody can say."""


class ProcessStream(CommandStream):
    """A process of this machine."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._tail = Tail()
        self.drained = trio.Event()  # stderr has ended: the last words are complete

    async def drain(self) -> None:
        """Read stderr until it ends, in a task of its own: a full pipe would stop the command."""
        if self._process.stderr:
            async with self._process.stderr as stderr:
                async for chunk in stderr:
                    self._tail.add(chunk)
        self.drained.set()

    async def receive_some(self, max_bytes: int | None = READ_BYTES) -> bytes | bytearray:
        """Return what it printed, b"" at its end."""
        assert self._process.stdout  # noqa: S101 - we made it with a pipe
        return await self._process.stdout.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write to its stdin."""
        assert self._process.stdin  # noqa: S101
        await self._process.stdin.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """As trio says."""
        assert self._process.stdin  # noqa: S101
        await self._process.stdin.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Close its stdin."""
        assert self._process.stdin  # noqa: S101
        await self._process.stdin.aclose()

    def last_words(self) -> str:
        """The end of its stderr so far."""
        return self._tail.text()

    async def wait(self) -> int | None:
        """Wait for its end and its last words; return the exit status."""
        status = await self._process.wait()
        with trio.move_on_after(LAST_WORDS_S):  # a child of it may keep stderr open
            await self.drained.wait()
        return status

    async def aclose(self) -> None:
        """Close its stdin and wait for its end; what does not end is killed."""
        with trio.CancelScope(shield=True):
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe:
                    await pipe.aclose()
            with trio.move_on_after(END_DEADLINE_S):
                await self._process.wait()
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()
        await trio.lowlevel.checkpoint()


# What paramiko raises once its connection is gone: also from a read or a close, since both send a
# message of their own (seen: EOFError from packet.write_all when sshd hung up first).
GONE = (OSError, EOFError)


class ChannelStream(CommandStream):
    """A command at the other end of an SSH channel, without a thread: 400 us a round trip."""

    def __init__(self, channel: "paramiko.Channel") -> None:
        self._channel = channel
        channel.settimeout(0.0)
        self._fd = channel.fileno()
        self._tail = Tail()

    def _drain(self) -> None:
        # The descriptor is readable for stderr too: left alone, the read loop would spin.
        while self._channel.recv_stderr_ready():
            with suppress(*GONE):
                self._tail.add(self._channel.recv_stderr(READ_BYTES))

    async def receive_some(self, max_bytes: int | None = READ_BYTES) -> bytes | bytearray:
        """Return what it printed; b"" at its end, or when the connection is gone."""
        await trio.lowlevel.checkpoint()
        while True:
            self._drain()
            try:
                chunk: bytes = self._channel.recv(max_bytes or READ_BYTES)
            except TimeoutError:
                await trio.lowlevel.wait_readable(self._fd)
                continue
            except GONE:
                chunk = b""
            self._drain()
            return chunk

    async def _off_loop(self, send: Callable[[bytes], int], data: memoryview) -> int:
        if len(data) <= SMALL_BYTES:
            return send(bytes(data))
        return await trio.to_thread.run_sync(send, bytes(data))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write to its stdin; `BrokenResourceError` once the connection is gone."""
        await trio.lowlevel.checkpoint()
        view = memoryview(data)
        while view:
            try:
                sent = await self._off_loop(self._channel.send, view[: 8 * SMALL_BYTES])
            except TimeoutError:
                await trio.sleep(WINDOW_RETRY_S)
                continue
            except GONE as exc:
                raise trio.BrokenResourceError(str(exc)) from exc
            if sent == 0:
                raise trio.BrokenResourceError("the channel is closed")
            view = view[sent:]

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once: paramiko cannot say."""
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        """Close its stdin."""
        try:
            await trio.to_thread.run_sync(self._channel.shutdown_write)
        except GONE as exc:
            raise trio.BrokenResourceError(str(exc)) from exc

    def last_words(self) -> str:
        """The end of its stderr so far."""
        self._drain()
        return self._tail.text()

    async def wait(self) -> int | None:
        """Wait for its end; return the exit status, None if the connection ended first."""
        status = await trio.to_thread.run_sync(
            self._channel.recv_exit_status, abandon_on_cancel=True
        )
        return None if status == -1 else status

    async def aclose(self) -> None:
        """Close the channel: the command's stdin and stdout end."""
        with trio.CancelScope(shield=True), suppress(*GONE):
            await trio.to_thread.run_sync(self._channel.close)
        await trio.lowlevel.checkpoint()
