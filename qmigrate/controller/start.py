"""From a session to an agent that says hello: what the host answers, turned into one error each."""

import json
import secrets
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import trio

from qmigrate.agent.protocol import (
    PROTOCOL,
    FromAgent,
    Hello,
    LineSplitter,
    decode_untrusted,
    parse_json_untrusted,
)
from qmigrate.controller.payload import PYTHONS, Payload, start_command
from qmigrate.controller.session import Session
from qmigrate.controller.streams import CommandStream, Tail
from qmigrate.core.errors import AgentStartError, HostError, ProtocolError, SudoError
from qmigrate.core.model import HostSpec

START_DEADLINE_S = 60  # cold: push, unpack and compile on a slow host; seen 2 s on a fast one
LAST_WORDS_S = 2  # between the end of stdout and that of stderr


@dataclass(frozen=True, slots=True)
class StartSteps:
    """Seconds from the command to stage 0's word, for the push, and to the hello."""

    python_s: float
    push_s: float  # 0 when the host had the payload
    hello_s: float


class Lines:
    """A command's stdout, line by line."""

    def __init__(self, stream: CommandStream) -> None:
        self.stream = stream
        self._splitter = LineSplitter()
        self._ready: list[bytes] = []

    async def next(self) -> bytes | None:
        """Return the next line, None at the end; `ProtocolError` if one is too long."""
        while not self._ready:
            try:
                chunk = await self.stream.receive_some()
            except trio.BrokenResourceError:
                return None
            if not chunk:
                return None
            self._ready = self._splitter.feed_untrusted(chunk)[::-1]
        return self._ready.pop()


async def last_words(stream: CommandStream, session: Session) -> tuple[int | None, str]:
    """Return exit status and stderr of a command whose stdout has ended, waiting a moment."""
    status = None
    with trio.move_on_after(LAST_WORDS_S):
        status = await stream.wait()
        while await stream.receive_some():
            pass
    return status, stream.last_words() or session.why_lost() or ""


def hello_untrusted(line: bytes, version: str) -> Hello:
    """Return the agent's hello; `ProtocolError` names both versions if they differ.

    The number is looked at before the rest: another version's hello may have another shape.
    """
    value = parse_json_untrusted(line)
    theirs = value.get("protocol") if isinstance(value, dict) else None
    if isinstance(theirs, int) and theirs != PROTOCOL:
        what = (
            f"the agent speaks protocol {theirs} (qmigrate {value.get('version')}), "
            f"this controller {PROTOCOL} (qmigrate {version})"
        )
        raise ProtocolError(what, next_step="use the same version of qmigrate on both sides")
    hello = decode_untrusted(line, FromAgent)
    if not isinstance(hello, Hello):
        raise ProtocolError(f"the agent began with {type(hello).__name__}, not with Hello")
    return hello


class Start:
    """One attempt to start an agent; the words of the host are read in `_word`."""

    def __init__(self, spec: HostSpec, session: Session, payload: Payload) -> None:
        self._spec = spec
        self._session = session
        self._payload = payload
        self._marker = secrets.token_hex(16)  # no motd prints it
        self._noise = Tail()
        self._by_sudo = False

    def argv(self, *, as_user: bool) -> tuple[str, ...]:
        """Return the command that starts stage 0."""
        spec = self._spec
        return start_command(
            self._payload, self._marker, python=spec.python, sudo=spec.sudo, as_user=as_user
        )

    async def greet(self, lines: Lines, version: str) -> tuple[Hello, StartSteps]:
        """Bring the agent up to its hello, or raise why the host cannot."""
        began = perf_counter()
        with trio.move_on_after(START_DEADLINE_S):
            word = await self._word(lines)
            answered = pushed = perf_counter()
            if word == "NEED":
                await self._push(lines)
                pushed = perf_counter()
            line = await lines.next()
            if line is None:
                raise await self._died(lines)
            hello = hello_untrusted(line, version)
            return hello, StartSteps(answered - began, pushed - answered, perf_counter() - pushed)
        what = f"the agent did not say hello within {START_DEADLINE_S} s"
        raise AgentStartError(what, phase="connect", last_words=self._said(lines) or None)

    async def _push(self, lines: Lines) -> None:
        with suppress(trio.BrokenResourceError):  # what it said before it went is still to be read
            await lines.stream.send_all(self._payload.data)
        if await self._word(lines) != "HAVE":
            raise AgentStartError("the host asked for the agent twice", phase="connect")

    async def _word(self, lines: Lines) -> str:
        """Return NEED or HAVE; whatever else stage 0 says, or its death, is raised."""
        marker = self._marker.encode()
        while (line := await lines.next()) is not None:
            before, found, after = line.partition(marker)
            if not found:
                self._noise.add(before + b"\n")
                continue
            word, _, rest = after.decode(errors="replace").strip().partition(" ")
            if word in ("NEED", "HAVE"):
                return word
            if word == "SUDO":
                self._by_sudo = True
            else:
                raise self._problem(word, rest)
        raise await self._died(lines)

    def _problem(self, word: str, rest: str) -> HostError:
        root = "log in as root, or allow sudo without a password"
        match word:
            case "NOSUDO":
                what = "the agent needs root, the login is not, and there is no sudo"
                return SudoError(what, phase="connect", next_step=root)
            case "NOTROOT":
                what = f"the agent needs root; the login is {rest} and sudo is turned off"
                return SudoError(what, phase="connect", next_step=root)
            case "NOPYTHON":
                what = f"no python >= 3.11 there; tried {rest}"
                fix = f'install one of {", ".join(PYTHONS[:-1])}, or name one: python = "/path"'
                return AgentStartError(what, phase="connect", next_step=fix)
            case "ERROR":
                return _stage0_error_untrusted(rest)
            case _:
                return AgentStartError(f"stage 0 said {word!r:.80}", phase="connect")

    def _said(self, lines: Lines) -> str:
        return lines.stream.last_words() or self._noise.text()

    async def _died(self, lines: Lines) -> HostError:
        status, words = await last_words(lines.stream, self._session)
        words = words or self._noise.text()
        if self._by_sudo and not words.startswith("Traceback"):
            fix = "a line in /etc/sudoers.d there: LOGIN ALL=(root) NOPASSWD: ALL"
            if "tty" in words:
                fix = "a line in /etc/sudoers.d there: Defaults:LOGIN !requiretty"
            what = "sudo -n lets us not become root"
            return SudoError(what, phase="connect", last_words=words or None, next_step=fix)
        ended = "the connection ended" if status is None else f"it ended with status {status}"
        what = f"the agent did not start: {ended}"
        fix = "look at its last words; a login shell that runs no commands cannot start it"
        if "ImportError" in words or "ModuleNotFoundError" in words:
            fix = "install the whole of python there, and remove /var/cache/qmigrate/agent"
        return AgentStartError(what, phase="connect", last_words=words or None, next_step=fix)


def _stage0_error_untrusted(text: str) -> AgentStartError:
    try:
        value: Any = json.loads(text)
        what, fix = str(value["what"]), value["next_step"]
    except (ValueError, KeyError, TypeError):
        return AgentStartError(f"stage 0 failed: {text:.200}", phase="connect")
    return AgentStartError(what, phase="connect", next_step=str(fix) if fix else None)
