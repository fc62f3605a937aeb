"""What the two agents of a job say to each other over the link: one JSON object a frame.

::

    source                                destination
                    ◄── Twin(facts)       once the link stands and QEMU waits
    Load ──►                              both set QEMU up; a data socket is made beside the link
                    ◄── Loading           migrate-incoming was taken
    … memory …
    AreYouReady ──►                       the guest is stopped at pre-switchover
                    ◄── Ready             QEMU alive, announcer armed
    Go ──►                                repeated after every new connection until answered
                    ◄── Running | Refused | Returned | Lost
    Finish ──►                            the source's QEMU has ended; or: it is over, go
                    ◄── Farewell          what was sent and what is left there

`Ask` is for a source's new agent, `Refuse` for a source that has given up; both are answered as
`Go` is, from the destination's journal. What a message means is decided in `core.handover` alone.
"""

import json
from dataclasses import dataclass
from typing import Any

from cattrs.strategies import configure_tagged_union

from qmigrate.agent.protocol import codec, parse_json_untrusted, structure_untrusted
from qmigrate.core.job import Announced, AnnounceReport, Mark, Transport, TwinFacts


@dataclass(frozen=True, slots=True)
class Twin:
    """The destination's QEMU waits; this is what it is."""

    facts: TwinFacts


@dataclass(frozen=True, slots=True)
class Load:
    """Be ready for a data socket called `socket` and load from it. `ran`: see `AreYouReady`."""

    socket: str
    ran: bool = True
    transport: Transport = Transport.DIRECT
    slots: int = 1  # of a relay


@dataclass(frozen=True, slots=True)
class Loading:
    """QEMU took migrate-incoming."""


@dataclass(frozen=True, slots=True)
class AreYouReady:
    """The guest is stopped; is all that comes next prepared? With what was learned meanwhile.

    `ran`: it ran until QEMU stopped it now, and is to run there; Go says it again, if it comes.
    """

    addresses: tuple[Announced, ...]
    ran: bool = True


@dataclass(frozen=True, slots=True)
class Ready:
    """QEMU is alive and the network is armed."""


@dataclass(frozen=True, slots=True)
class Go:
    """The right to run the guest is offered. `run`: with cont; else it stays as it is.

    `alone`: the source's own copy is gone, so a copy that is silent must not be given up for dead.
    """

    run: bool
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """Would a GO be taken?"""


@dataclass(frozen=True, slots=True)
class Refuse:
    """The source gave up: never run it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """Answer to `Ask`: nothing was decided here yet."""


@dataclass(frozen=True, slots=True)
class Running:
    """Answer: the guest is here, in the state it had. Times are QEMU's and CLOCK_MONOTONIC."""

    resume_us: int | None
    announced: AnnounceReport | None


@dataclass(frozen=True, slots=True)
class Refused:
    """Answer: it will never run here."""

    reason: str


@dataclass(frozen=True, slots=True)
class Returned:
    """Answer: GO was taken, but it could not be run and never ran."""

    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """Answer: it was run, and its QEMU has died since."""

    reason: str


@dataclass(frozen=True, slots=True)
class Finish:
    """It is over on the source."""


@dataclass(frozen=True, slots=True)
class Farewell:
    """The destination's last words."""

    leftovers: tuple[str, ...]
    marks: tuple[Mark, ...] = ()  # for the report: when what happened here


FromSource = Load | AreYouReady | Go | Ask | Refuse | Finish
FromDestination = Twin | Loading | Ready | Loaded | Running | Refused | Returned | Lost | Farewell
Message = FromSource | FromDestination
configure_tagged_union(Message, codec, tag_name="op")


def encode(message: Message) -> bytes:
    """Return the message as a frame's content."""
    return json.dumps(codec.unstructure(message, Message), separators=(",", ":")).encode()


def decode_untrusted(frame: bytes) -> Message:
    """Return the message in a frame; raise `ProtocolError` otherwise."""
    union: Any = Message
    message: Message = structure_untrusted(parse_json_untrusted(frame), union)
    return message
